"""Loader processes that die or never return: the file is named, and the run does not hang."""

import ctypes
import faulthandler
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path

import PIL.Image
import pytest
import torch
from torch.utils.data import get_worker_info

from tests.data.conftest import BreakDecoder
from videoattn.data.dataset import ClipDataset
from videoattn.data.decode import DecodeError, Video
from videoattn.data.lists import Samples, read_folders
from videoattn.data.loader import ClipLoader
from videoattn.data.sampling import train_sampler
from videoattn.data.transforms import TestTransform
from videoattn.data.workers import WorkerDiedError


def loader(root: Path, *, on_error: str = "raise", timeout_seconds: float = 0.0, **kwargs):
    dataset = ClipDataset(
        read_folders(root),
        sample_frames=train_sampler("dense", num_frames=4, frame_stride=2),
        transform=TestTransform(16, crop=(16, 16)),
        on_error=on_error,
    )
    settings = {"batch_size": 2, "shuffle": True, "num_workers": 2, **kwargs}
    return ClipLoader(dataset, timeout_seconds=timeout_seconds, **settings)


def sleep_for_ever() -> None:
    time.sleep(3600)


def crash() -> None:
    faulthandler.disable()  # pytest's would print the stack
    ctypes.string_at(0)


def abort() -> None:
    faulthandler.disable()
    os.abort()


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("do", "timeout_seconds", "reason"),
    [
        (sleep_for_ever, 0.5, "took longer to decode than timeout_seconds=0.5"),
        (crash, 0.0, "the worker that decoded it was killed by SIGSEGV"),
    ],
)
def test_a_file_that_stops_a_worker_is_named(
    do: Callable[[], None],
    timeout_seconds: float,
    reason: str,
    thirteen: Path,
    break_decoder: BreakDecoder,
) -> None:
    break_decoder(do, "04.mp4")
    batches = loader(thirteen, timeout_seconds=timeout_seconds)
    message = rf"^\S+/right/04\.mp4: {re.escape(reason)}; on_error=skip continues without it$"
    with pytest.raises(WorkerDiedError, match=message):
        list(batches.epoch(0))


def test_skipping_continues_with_new_workers_bit_for_bit(
    thirteen: Path, break_decoder: BreakDecoder
) -> None:
    whole = list(loader(thirteen, num_workers=0, shuffle=False).epoch(1))
    break_decoder(abort, "04.mp4", "07.mp4")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    batches = loader(thirteen, on_error="skip", shuffle=False)
    for _ in range(2):  # in the second epoch they are known, and cost no worker
        rest = list(batches.epoch(1))
        failed = [failure for batch in rest for failure in batch.failures]
        assert sorted(Path(failure.path).name for failure in failed) == ["04.mp4", "07.mp4"]
        assert {failure.reason for failure in failed} == {
            "the worker that decoded it was killed by SIGABRT"
        }
        lost = torch.tensor([failure.index for failure in failed])
        for want, got in zip(whole, rest, strict=True):
            kept = ~torch.isin(want.indices, lost)
            assert torch.equal(want.frames[kept], got.frames)
            assert torch.equal(want.indices[kept], got.indices)
        before_next = active_children()
    assert active_children() == before_next
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("do", "how", "on_error"),
    [(kill_itself, "killed by SIGKILL", "skip"), (leave, "ended (code 3)", "raise")],
)
def test_a_kill_from_outside_is_not_attributed_to_a_file(
    do: Callable[[], None],
    how: str,
    on_error: str,
    thirteen: Path,
    break_decoder: BreakDecoder,
) -> None:
    break_decoder(do, "04.mp4")
    message = rf"/right/04\.mp4: a worker was {re.escape(how)} while it decoded this file"
    with pytest.raises(WorkerDiedError, match=message):
        list(loader(thirteen, on_error=on_error).epoch(0))


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_an_idle_worker_that_is_killed(signum: int, thirteen: Path) -> None:
    """The error comes with the next batch, not in the middle of a training step."""
    known = active_children()
    batches = loader(thirteen, batch_size=1, num_workers=1)
    epoch = batches.epoch(0)
    next(epoch)
    (worker,) = [child for child in active_children() if child not in known]
    assert worker.pid is not None
    time.sleep(0.5)  # it has made all that it was asked for
    os.kill(worker.pid, signum)
    worker.join()
    time.sleep(0.1)
    with pytest.raises(WorkerDiedError, match=r"\.mp4: a worker was .* this file"):
        list(epoch)
    assert len(list(batches.epoch(0))) == 13  # with new workers


def test_killed_before_anything_was_read(thirteen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "videoattn.data.loader._SampleFetcher.__getitems__", lambda *_: kill_itself()
    )
    with pytest.raises(WorkerDiedError, match=r"^worker process \d+: was killed by SIGKILL before"):
        list(loader(thirteen).epoch(0))


def test_other_errors_of_a_worker_pass(thirteen: Path, break_decoder: BreakDecoder) -> None:
    def fail() -> None:
        raise RuntimeError("of another kind")

    break_decoder(fail, "04.mp4")
    with pytest.raises(RuntimeError, match="of another kind"):
        list(loader(thirteen).epoch(0))


def test_the_limit_is_for_one_file(thirteen: Path, break_decoder: BreakDecoder) -> None:
    break_decoder(lambda: time.sleep(0.1), *(f"{i:02d}.mp4" for i in range(13)))
    batches = loader(thirteen, timeout_seconds=1.0, num_workers=1)
    assert len(list(batches.epoch(0))) == 7
    time.sleep(1.1)  # no alarm rings between files
    assert len(list(batches.epoch(1))) == 7


def busy_for_ever(ended: threading.Event) -> None:
    while not ended.is_set():
        sum(range(1000))


@pytest.fixture
def ended() -> Iterator[threading.Event]:
    """Ends the threads that a time limit has left to themselves, after the test."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize(
    ("hang", "num_cores"),
    [(threading.Event.wait, 1), (threading.Event.wait, 2), (busy_for_ever, 2)],
)
def test_the_limit_without_workers(
    hang: Callable[[threading.Event], object],
    num_cores: int,
    ended: threading.Event,
    thirteen: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many files hang at once as there are threads; the others are the same, bit for bit."""
    monkeypatch.setattr("videoattn.data.loader.num_cores", lambda: num_cores)
    settings = {"shuffle": False, "num_workers": 0, "batch_size": 4}
    whole = list(loader(thirteen, **settings).epoch(1))
    names = ("01.mp4", "04.mp4", "07.mp4")
    opened = Video.__init__

    def hanging(video: Video, path: Path) -> None:
        if Path(path).name in names:
            hang(ended)
        opened(video, path)

    monkeypatch.setattr(Video, "__init__", hanging)
    batches = loader(thirteen, on_error="skip", timeout_seconds=1.0, **settings)
    for num_left in (3, 3):  # in the second epoch they are known, and cost no thread
        rest = list(batches.epoch(1))
        failed = [failure for batch in rest for failure in batch.failures]
        assert sorted(Path(failure.path).name for failure in failed) == list(names)
        assert {f.reason for f in failed} == {"took longer to decode than timeout_seconds=1"}
        lost = torch.tensor([failure.index for failure in failed])
        for want, got in zip(whole, rest, strict=True):
            kept = ~torch.isin(want.indices, lost)
            assert torch.equal(want.frames[kept], got.frames)
        assert sum(thread.name == "clips" for thread in threading.enumerate()) == num_left
    batches = loader(thirteen, timeout_seconds=0.5, **settings)
    message = r"/0[147]\.mp4: took longer to decode than timeout_seconds=0\.5; on_error=skip cont"
    with pytest.raises(DecodeError, match=message):
        list(batches.epoch(0))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Pillow's open file
def test_the_limit_without_workers_for_images_that_never_come(tmp_path: Path) -> None:
    """A named pipe that nobody writes to is like a file on a network that is down."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for i in (1, 2):
            PIL.Image.new("RGB", (20, 20)).save(tmp_path / name / f"{i}.png")
    pipe = tmp_path / "b" / "2.png"
    pipe.unlink()
    os.mkfifo(pipe)
    samples = Samples(
        tmp_path, paths=["a", "b", "c"], labels=[0, 0, 0], class_names=["x"],
        frame_template="{}.png",
    )  # fmt: skip
    dataset = ClipDataset(
        samples,
        sample_frames=train_sampler("dense", num_frames=2),
        transform=TestTransform(16, crop=(16, 16)),
        on_error="skip",
    )
    (batch,) = ClipLoader(dataset, batch_size=3, shuffle=False, timeout_seconds=0.5).epoch(0)
    assert batch.indices.tolist() == [0, 2]
    assert [failure.path for failure in batch.failures] == [str(tmp_path / "b")]
    os.close(os.open(pipe, os.O_WRONLY))  # the thread that waits for it ends
    for thread in threading.enumerate():
        if thread.name == "clips":
            thread.join(timeout=20)
    gc.collect()


def test_a_thread_that_hangs_does_not_keep_the_process(thirteen: Path) -> None:
    code = (
        "import time, sys, pathlib, videoattn\n"
        "from tests.data.test_workers import Video, loader\n"
        "Video.__init__ = lambda *_: time.sleep(3600)\n"
        "batches = loader(pathlib.Path(sys.argv[1]), num_workers=0, timeout_seconds=0.5)\n"
        "next(batches.epoch(0))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, thirteen], stderr=subprocess.PIPE, text=True, timeout=100
    )
    assert process.returncode == 1
    assert "took longer to decode than timeout_seconds=0.5" in process.stderr.splitlines()[-1]


@pytest.mark.parametrize("num_taken", [1, 3])
@pytest.mark.parametrize("state", ["idle", "decoding", "hanging", "failing"])
def test_workers_of_an_abandoned_epoch_end_at_once(
    state: str, num_taken: int, thirteen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(loader(thirteen, num_workers=0).epoch(1))
    known = set(active_children())
    opened = Video.__init__

    def slow(video: Video, path: Path) -> None:
        if get_worker_info() is not None and Path(path).name in ("04.mp4", "08.mp4"):
            time.sleep({"decoding": 2.0, "hanging": 3600.0}.get(state, 0.0))
        opened(video, path)

    monkeypatch.setattr(Video, "__init__", slow)
    batches = loader(thirteen, shuffle=state == "idle")
    epoch = batches.epoch(0)
    if state == "failing":
        (thirteen / "right" / "04.mp4").write_bytes(b"")
        with pytest.raises(DecodeError, match=r"04\.mp4: the file is empty"):
            list(batches.epoch(0))
    else:
        for _ in range(num_taken):
            held = next(epoch)
        before = held.frames.clone()
        started = set(active_children()) - known
        assert len(started) == 2
        if state == "idle":
            time.sleep(0.5)
        del epoch
        assert not any(process.is_alive() for process in started)
        assert torch.equal(held.frames, before)
    assert set(active_children()) <= known
    if state == "idle":
        for want, got in zip(whole, batches.epoch(1), strict=True):  # with new workers
            assert torch.equal(want.frames, got.frames)


def test_errors(thirteen: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^timeout_seconds: got -1\.0; need 0 \(no limit\) or more$"
    ):
        loader(thirteen, timeout_seconds=-1.0)
