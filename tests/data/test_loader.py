import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from videoattn.data.dataset import ClipDataset, Sample
from videoattn.data.decode import DecodeError, decode
from videoattn.data.lists import Samples, read_folders
from videoattn.data.loader import ClipLoader
from videoattn.data.sampling import train_sampler
from videoattn.data.transforms import AreaCrop, TrainTransform, to_video
from videoattn.types import Batch, Frames


def dataset(root: Path, **kwargs) -> ClipDataset:
    samples = kwargs.pop("samples", None) or read_folders(root)
    sampler = train_sampler("dense", num_frames=4, frame_stride=2)
    return ClipDataset(
        samples, sample_frames=sampler, transform=TrainTransform(AreaCrop((16, 16))), **kwargs
    )


def loader(root: Path, **kwargs) -> ClipLoader:
    return ClipLoader(dataset(root), **{"batch_size": 4, "shuffle": True, **kwargs})


def same(a: Iterator[Batch], b: Iterator[Batch]) -> bool:
    return all(
        torch.equal(x.frames, y.frames)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.indices, y.indices)
        for x, y in zip(a, b, strict=True)
    )


def test_batches(thirteen: Path) -> None:
    train = loader(thirteen)
    assert len(train) == 4
    batches = list(train.epoch(0))
    assert [len(b.labels) for b in batches] == [4, 4, 4, 1]
    assert sorted(torch.cat([b.indices for b in batches]).tolist()) == list(range(13))
    labels = [train.dataset.samples.label(i) for i in batches[0].indices.tolist()]
    assert batches[0].labels.tolist() == labels
    assert batches[0].frames.shape == (4, 1, 4, 3, 16, 16)
    video = to_video(batches[0].frames[:, 0], (0.5,) * 3, (0.5,) * 3)
    assert video.is_contiguous(memory_format=torch.channels_last_3d)


def test_order_depends_on_seed_and_epoch(thirteen: Path) -> None:
    first = loader(thirteen)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert first.order(0) == loader(thirteen).order(0)
    assert len({tuple(loader(thirteen, seed=s).order(e)) for s in (0, 1) for e in (0, 1)}) == 4
    list(first.epoch(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert loader(thirteen, shuffle=False).order(5) == list(range(13))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # on fewer cores
def test_same_bits_with_workers_over_epochs_and_resume(thirteen: Path) -> None:
    alone, four = loader(thirteen), loader(thirteen, num_workers=4)
    for epoch in (0, 1):
        assert same(alone.epoch(epoch), four.epoch(epoch))
    for skip in (1, 3, 4):
        rest = list(alone.epoch(1))[skip:]
        assert len(rest) == 4 - skip
        assert same(iter(rest), four.epoch(1, skip_batches=skip))
        assert same(iter(rest), loader(thirteen).epoch(1, skip_batches=skip))


def test_workers_survive_an_epoch_left_early(thirteen: Path) -> None:
    two = loader(thirteen, num_workers=2)
    next(two.epoch(0))
    assert same(loader(thirteen).epoch(1), two.epoch(1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_is_dropped_while_another_device_is_the_default(
    num_workers: int, thirteen: Path
) -> None:
    """The garbage collector may drop it at any time, for example while a network is built."""
    other = loader(thirteen, num_workers=num_workers)
    batches = other.epoch(0)
    next(batches)
    with torch.device("meta"):
        batches.close()
    assert same(loader(thirteen).epoch(1), other.epoch(1))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_take_the_samples_of_one_process(world_size: int, thirteen: Path) -> None:
    one = loader(thirteen, batch_size=2 * world_size)
    ranks = [
        loader(thirteen, batch_size=2, rank=r, world_size=world_size) for r in range(world_size)
    ]
    for step, parts in enumerate(zip(*(r.batches(0) for r in ranks), strict=True)):
        whole = one.batches(0)[step]
        assert [part[i] for i in range(2) for part in parts if i < len(part)] == whole
    for rank, part in enumerate(ranks):
        frames = torch.cat([b.frames for b in part.epoch(0)])
        indices = [i for batch in part.batches(0) for i in batch]
        want = torch.stack([one.dataset[0, i].frames for i in indices])
        assert torch.equal(frames, want), rank


def test_training_remainder_below_the_world_size_is_left_out(thirteen: Path) -> None:
    ranks = [loader(thirteen, batch_size=2, rank=r, world_size=2) for r in range(2)]
    assert [len(r) for r in ranks] == [3, 3]
    assert [[len(b) for b in r.batches(0)] for r in ranks] == [[2, 2, 2], [2, 2, 2]]
    ranks = [loader(thirteen, batch_size=5, rank=r, world_size=2) for r in range(2)]
    assert [[len(b) for b in r.batches(0)] for r in ranks] == [[5, 2], [5, 1]]


def test_evaluation_counts_thirteen_on_two_ranks(thirteen: Path) -> None:
    counts, seen = [], []
    for rank in range(2):
        part = loader(thirteen, batch_size=2, shuffle=False, rank=rank, world_size=2)
        batches = list(part.epoch(0))
        assert len(part) == len(batches)
        counts.append(sum(len(b.labels) for b in batches))
        seen += torch.cat([b.indices for b in batches]).tolist()
    assert counts == [7, 6]
    assert sorted(seen) == list(range(13))


def test_failures_are_separate_from_samples(thirteen: Path) -> None:
    (thirteen / "left" / "01.mp4").write_bytes(b"")
    data = dataset(thirteen, on_error="skip")
    for num_workers in (0, 2):
        batches = ClipLoader(data, batch_size=1, shuffle=False, num_workers=num_workers)
        first, second = list(batches.epoch(0))[:2]
        assert first.frames.shape == (0, 1, 4, 3, 16, 16)
        assert len(first.labels) == len(first.indices) == 0
        assert first.failures[0].index == 0
        assert first.failures[0].reason == "the file is empty (0 bytes)"
        assert second.failures == ()
        assert len(second.labels) == 1


@pytest.mark.parametrize("num_cores", [1, 2])
def test_a_failure_in_the_middle_leaves_no_gap(
    num_cores: int, thirteen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the training process, whether in its own thread or in two more."""
    monkeypatch.setattr("videoattn.data.loader.num_cores", lambda: num_cores)
    data = dataset(thirteen, on_error="skip")
    for i in (0, 5, 6, 11):  # the first of a batch, two in the middle, the last
        data.samples.path(i).write_bytes(b"")
    seen = []
    for batch in ClipLoader(data, batch_size=4, shuffle=False).epoch(0):
        assert len(batch.frames) == len(batch.labels) == len(batch.indices)
        for frames, label, index in zip(*batch[:3], strict=True):
            sample = data[0, int(index)]
            assert isinstance(sample, Sample)
            assert torch.equal(frames, sample.frames)
            assert label == sample.label
        seen.append((batch.indices.tolist(), [failure.index for failure in batch.failures]))
    assert seen == [([1, 2, 3], [0]), ([4, 7], [5, 6]), ([8, 9, 10], [11]), ([12], [])]


@pytest.mark.parametrize(("num_cores", "num_threads"), [(1, 1), (2, 2), (8, 2)])
def test_threads_of_one_process(
    num_cores: int, num_threads: int, thirteen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In these threads torch starts no others; its setting here does not change."""
    monkeypatch.setattr("videoattn.data.loader.num_cores", lambda: num_cores)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    found: list[tuple[str, int]] = []

    def noting(path: Path, wanted: np.ndarray, **options: Any) -> Frames:
        found.append((threading.current_thread().name, torch.get_num_threads()))
        together.wait(timeout=20)  # both are at work at once
        return decode(path, wanted, **options)

    together = threading.Barrier(num_threads)
    try:
        batches = ClipLoader(dataset(thirteen, decode=noting), batch_size=2, shuffle=False)
        for _ in range(2):
            assert sum(len(batch.labels) for batch in islice(batches.epoch(0), 6)) == 12
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert len(found) == 24
    assert set(found) == {("clips", 1)}
    for thread in threading.enumerate():
        if thread.name == "clips":  # it ends with its sample
            thread.join(timeout=20)
            assert not thread.is_alive()


def test_no_thread_runs_after_an_error(thirteen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videoattn.data.loader.num_cores", lambda: 2)
    done: list[int] = []

    def failing(path: Path, wanted: np.ndarray, **options: Any) -> Frames:
        if str(path).endswith("01.mp4"):
            raise RuntimeError("of another kind")
        time.sleep(0.1)
        frames = decode(path, wanted, **options)
        done.append(1)
        return frames

    batches = ClipLoader(dataset(thirteen, decode=failing), batch_size=4, shuffle=False)
    with pytest.raises(RuntimeError, match=r"^of another kind$"):
        list(batches.epoch(0))
    assert len(done) == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_in_use_do_not_change(num_workers: int, thirteen: Path) -> None:
    batches = loader(thirteen, num_workers=num_workers, batch_size=1)
    held = [batch.frames for epoch in range(3) for batch in batches.epoch(epoch)]
    fresh = [
        batch.frames.clone()
        for epoch in range(3)
        for batch in loader(thirteen, batch_size=1).epoch(epoch)
    ]
    assert len(held) == 39
    assert all(torch.equal(a, b) for a, b in zip(held, fresh, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_channels_last_in_memory(num_workers: int, thirteen: Path) -> None:
    for batch in loader(thirteen, num_workers=num_workers).epoch(0):
        assert batch.frames.movedim(-3, -1).is_contiguous()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_raise_names_the_file(num_workers: int, thirteen: Path) -> None:
    (thirteen / "left" / "01.mp4").write_bytes(b"")
    train = loader(thirteen, num_workers=num_workers)
    with pytest.raises(DecodeError, match=r"left/01\.mp4: the file is empty \(0 bytes\)"):
        list(train.epoch(0))


def test_table_of_a_large_list_is_flat() -> None:
    paths = [f"class {i % 7}/é {i}.mp4" for i in range(1000)]
    samples = Samples(
        Path("root"), paths=paths, labels=[i % 7 for i in range(1000)], class_names=[]
    )
    assert [str(samples.path(i)) for i in (0, 1, 999)] == [f"root/{paths[i]}" for i in (0, 1, 999)]
    assert all(not isinstance(value, list) for value in vars(samples).values())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, r"^batch_size: got 0; need at least 1$"),
        ({"num_workers": -1}, r"^num_workers: got -1; need 0 \(this process\) or more$"),
        ({"rank": 2, "world_size": 2}, r"^rank: got 2; need 0 to 1$"),
        ({"world_size": 14}, r"^13 samples cannot train on 14 processes; use at most one process"),
    ],
)
def test_errors(kwargs: dict, message: str, thirteen: Path) -> None:
    with pytest.raises(ValueError, match=message):
        loader(thirteen, **kwargs)
