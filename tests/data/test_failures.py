"""Training on broken files with `videoattn train`: failures are reported, counted, limited."""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.data.conftest import BreakDecoder, MakeClip
from videoattn.cli.app import main
from videoattn.data.decode import DecodeError
from videoattn.data.prepare.verify import probe
from videoattn.engine import train as engine
from videoattn.engine.parallel import Parallel
from videoattn.recipe.data import make_loader
from videoattn.recipe.load import load

RECIPE = """\
name: tiny
data: {root: videos, num_workers: 0, on_error: skip}
clip: {sampling: segments, num_frames: 4, height: 16, width: 16}
augment: {flip: false}
test: {short_side: 16}
model: {name: i3d_r18, options: {width: 2}}
train: {num_epochs: 2, batch_size: 16, precision: float32, validate_every: 0}
"""


@pytest.fixture
def videos(make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """videos/{train,test}/{left,right} with a clip in each; a recipe in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    for split in ("train", "test"):
        for name in ("left", "right"):
            make_clip(f"videos/{split}/{name}/000.mp4", 10)
    return tmp_path / "videos"


def fill(videos: Path, count: int) -> None:
    """Copies training clips under other names, to `count` in all."""
    for number in range(2, count):
        folder = videos / "train" / ("left" if number % 2 else "right")
        (folder / f"{number:03d}.mp4").hardlink_to(folder / "000.mp4")


def made_broken(videos: Path, tmp_path: Path) -> list[Path]:
    """Returns five kinds of files without a frame that decodes."""
    whole = (videos / "train/left/000.mp4").read_bytes()
    start, end = whole.index(b"mdat") + 4, whole.index(b"moov") - 4
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.avi").write_text("not a video\n" * 40)
    (folder / "cut.mp4").write_bytes(whole[:200])
    (folder / "zeros.mp4").write_bytes(bytes(4000))
    (folder / "no_pictures.mp4").write_bytes(whole[:start] + bytes(end - start) + whole[end:])
    return sorted(folder.iterdir())


def mix_in(broken: list[Path], videos: Path) -> set[str]:
    """Copies the files to the training clips; returns those without a frame."""
    lost = set()
    for number, path in enumerate(broken):
        copy = videos / "train" / ("left" if number % 2 else "right") / path.name
        shutil.copyfile(path, copy)
        try:
            probe(copy)
        except DecodeError:
            lost.add(str(copy.relative_to(videos.parent)))
    return lost


def train(*words: str) -> str | int:
    """Runs `videoattn train tiny.yaml WORDS`; returns 0, or the line of its error."""
    with pytest.raises(SystemExit) as stop:
        main(["train", "tiny.yaml", *words])
    return stop.value.code or 0


def records(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(f"runs/tiny/{name}").read_text().splitlines()]


def weights() -> dict[str, torch.Tensor]:
    return torch.load("runs/tiny/checkpoint-last.pt", weights_only=True)["model"]


def losses() -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in records("metrics.jsonl")]


@pytest.mark.parametrize("source", ["made", "real"])
def test_skipping_finishes_and_names_each_failed_file(
    source: str,
    videos: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Of the files, 5 % are broken: artificial and real ones."""
    broken = made_broken(videos, tmp_path)
    if source == "real":
        fixtures = request.getfixturevalue("real_data") / "fixtures"
        broken = sorted(
            [*(fixtures / "broken").iterdir(), *(fixtures / "derived_truncated").iterdir()]
        )
    lost = mix_in(broken, videos)
    assert len(lost) >= 5
    good = 19 * len(broken)
    fill(videos, good)
    assert train("data.num_workers=2") == 0
    last = records("metrics.jsonl")[-1]
    assert last["seen"] + last["skipped"] == 2 * (good + len(broken))
    assert last["skipped"] == 2 * len(lost)
    assert last["failed"] == len(lost)
    skipped = records("skipped.jsonl")
    assert len(skipped) == len(lost)
    assert {line["path"] for line in skipped} == lost
    assert all(line["reason"] for line in skipped)
    out, err = capfd.readouterr()
    assert f"skipped {2 * len(lost)}  " in err.splitlines()[-1]
    for line in skipped:
        assert f"  {line['path']}: {line['reason']}" in out
    assert f"seen {last['seen']} + skipped {2 * len(lost)} of {20 * len(broken)} videos x 2" in out


@pytest.mark.parametrize("num_workers", [0, 2])
def test_raise_stops_at_the_first_and_names_it(
    num_workers: int, videos: Path, tmp_path: Path
) -> None:
    lost = mix_in(made_broken(videos, tmp_path), videos)
    fill(videos, 45)
    words = ("data.on_error=raise", f"data.num_workers={num_workers}", "train.batch_size=4")
    batches = make_loader(load("tiny.yaml", words), "train", Parallel())
    paths = [str(batches.dataset.samples.path(index)) for index in batches.order(0)]
    first = next(path for path in paths if path in lost)
    message = train(*words)
    assert isinstance(message, str)
    assert message.startswith(f"error: {first}: ")
    assert message.endswith("; on_error=skip continues without it")
    steps = records("metrics.jsonl")
    assert all(record["step"] <= paths.index(first) // 4 for record in steps)


def test_a_decoder_that_never_returns_is_skipped_and_listed(
    videos: Path, break_decoder: BreakDecoder
) -> None:
    fill(videos, 30)
    break_decoder(lambda: time.sleep(3600), "007.mp4")
    assert train("data.num_workers=2", "data.decode_timeout_seconds=1") == 0
    (line,) = records("skipped.jsonl")
    assert line["path"] == "videos/train/left/007.mp4"
    assert line["reason"] == "took longer to decode than timeout_seconds=1"
    last = records("metrics.jsonl")[-1]
    assert (last["seen"], last["skipped"], last["failed"]) == (58, 2, 1)


def test_a_worker_that_is_killed_ends_the_run_with_the_files_name(
    videos: Path, break_decoder: BreakDecoder
) -> None:
    """The run ends although it skips broken files: the next process may be killed, too."""
    fill(videos, 30)
    break_decoder(lambda: os.kill(os.getpid(), signal.SIGKILL), "007.mp4")
    started = time.monotonic()
    assert train("data.num_workers=2") == (
        "error: videos/train/left/007.mp4: a worker was killed by SIGKILL while it decoded this "
        "file; is memory short?"
    )
    assert time.monotonic() - started < 60  # the promise; seconds, mostly of waiting


@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # on fewer cores
def test_resumed_inside_an_epoch_the_batches_left_are_the_same_bits(
    num_workers: int, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With files that fail before and after the interruption, from a checkpoint of the recipe."""
    mix_in(made_broken(videos, tmp_path), videos)
    fill(videos, 23)
    words = (f"data.num_workers={num_workers}", "train.batch_size=4", "train.save_every_steps=2")
    seen: list[tuple[int, int, str]] = []
    update, stop_at = engine.update, [0]

    def spy(model, optimizer, group, *, context, **kwargs):
        if stop_at[0] and context.step_of_run == stop_at[0]:
            raise OSError("the lights went out")
        frames = b"".join(batch.frames.contiguous().numpy().tobytes() for batch in group)
        digest = hashlib.sha256(frames).hexdigest()
        seen.append((context.epoch, context.step, digest))
        return update(model, optimizer, group, context=context, **kwargs)

    monkeypatch.setattr(engine, "update", spy)
    assert train(*words, "data.num_workers=0") == 0
    whole, seen[:] = list(seen), []
    want = weights(), records("skipped.jsonl"), losses()
    assert len(whole) == 14
    stop_at[0] = 10  # after 3 steps of the second epoch, 1 after the checkpoint
    assert train(*words, "--overwrite") == "error: the lights went out"
    stop_at[0] = 0
    before, seen[:] = list(seen), []
    assert train(*words, "--resume") == 0
    assert before == whole[:10]
    assert seen == whole[10:]
    assert all(torch.equal(value, want[0][name]) for name, value in weights().items())
    assert records("skipped.jsonl") == want[1]
    assert losses() == want[2]
    last = records("metrics.jsonl")[-1]
    assert last["seen"] + last["skipped"] == 2 * 28
