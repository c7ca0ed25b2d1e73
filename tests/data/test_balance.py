"""Classes of unequal size: how often each is drawn, which videos repeat, and loss weights."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.conftest import MakeClip
from tests.data.test_loader import dataset, same
from videoattn.data.classes import balanced_order, class_weights, epoch_counts
from videoattn.data.decode import Video
from videoattn.data.lists import LabelSets, Samples, read_folders
from videoattn.data.loader import ClipLoader

COUNTS = np.array([100, 0, 10, 5])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))


@pytest.mark.parametrize(
    ("exponent", "expected"),
    [(0.0, [100, 0, 10, 5]), (1.0, [39, 0, 38, 38]), (0.5, [75, 0, 23, 17])],
)
def test_clips_of_each_class_in_an_epoch(exponent: float, expected: list[int]) -> None:
    assert epoch_counts(COUNTS, exponent).tolist() == expected


def test_counts_are_rounded_shares() -> None:
    random = np.random.default_rng(1)
    for exponent in (0.0, 0.3, 0.77, 1.0):
        counts = random.integers(0, 2000, size=50)
        got = epoch_counts(counts, exponent)
        shares = [n ** (1 - exponent) if n else 0.0 for n in counts.tolist()]
        exact = np.array(shares) * counts.sum() / sum(shares)
        assert got.sum() == counts.sum()
        assert (np.abs(got - exact) < 1).all()
        assert (got[counts > 0] >= 1).all()


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_every_video_of_a_class_is_repeated_equally_often(exponent: float) -> None:
    numbers = balanced_order(LABELS, exponent, torch.Generator().manual_seed(3)).numpy()
    assert len(set(numbers.tolist())) == len(numbers) == 115
    drawn = np.bincount(numbers % 115, minlength=115)
    assert np.bincount(LABELS, drawn).tolist() == epoch_counts(COUNTS, exponent).tolist()
    for label in (0, 2, 3):
        times = drawn[label == LABELS]
        assert times.max() - times.min() <= 1
    # The repetitions of a video are numbered from 0.
    repeats = [sorted((numbers[numbers % 115 == i] // 115).tolist()) for i in range(115)]
    assert repeats == [list(range(count)) for count in drawn]


def test_the_order_depends_on_the_generator_only() -> None:
    orders = [
        balanced_order(LABELS, 1.0, torch.Generator().manual_seed(seed)).tolist()
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    largest = {number for number in orders[0] if LABELS[number % 115] == 0}
    assert largest != {number for number in orders[2] if LABELS[number % 115] == 0}


def test_loss_weights_by_their_formulas() -> None:
    inverse, effective = (class_weights(COUNTS, method) for method in ("inverse", "effective"))  # type: ignore[arg-type]
    by_hand = [[1 / n for n in (100, 10, 5)], [(1 - 0.999) / (1 - 0.999**n) for n in (100, 10, 5)]]
    for weights, expected in zip((inverse, effective), by_hand, strict=True):
        assert weights[1] == 0
        assert (weights * COUNTS).sum() / 115 == pytest.approx(1.0)
        kept = weights[[0, 2, 3]]
        assert kept / kept[0] == pytest.approx(np.array(expected) / expected[0], rel=1e-12)


@pytest.fixture
def unequal(make_clip: MakeClip, tmp_path: Path) -> Path:
    """10 clips of class a, 2 of class b."""
    for i in range(12):
        make_clip(f"unequal/{'a' if i < 10 else 'b'}/{i:02d}.mp4", 16 + i)
    return tmp_path / "unequal"


def balanced(root: Path, **kwargs) -> ClipLoader:
    options = {"batch_size": 4, "shuffle": True, "seed": 5, "balance": 1.0, **kwargs}
    return ClipLoader(dataset(root, on_error="skip"), **options)


def test_workers_and_resuming_do_not_change_a_balanced_epoch(unequal: Path) -> None:
    alone, two = balanced(unequal), balanced(unequal, num_workers=2)
    batches = list(alone.epoch(1))
    assert torch.cat([batch.labels for batch in batches]).bincount().tolist() == [6, 6]
    assert same(iter(batches), two.epoch(1))
    assert same(iter(batches[2:]), two.epoch(1, skip_batches=2))
    assert alone.order(0) != alone.order(1)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_a_balanced_epoch(unequal: Path, world_size: int) -> None:
    whole = balanced(unequal, batch_size=2 * world_size).order(0)
    ranks = [
        balanced(unequal, batch_size=2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    joined = [number for numbers in zip(*(r.batches(0) for r in ranks), strict=True)
              for pair in zip(*numbers, strict=True) for number in pair]  # fmt: skip
    assert joined == whole
    indices = torch.cat([batch.indices for rank in ranks for batch in rank.epoch(0)])
    assert indices.bincount(minlength=12)[10:].tolist() == [3, 3]


def test_a_repeated_video_gives_other_clips_and_fails_as_itself(unequal: Path) -> None:
    data = dataset(unequal, on_error="skip")
    clips = [data[0, 11 + repetition * 12] for repetition in range(3)]
    assert [clip.index for clip in clips] == [11, 11, 11]
    assert torch.equal(clips[0].frames, dataset(unequal)[0, 11].frames)
    assert not torch.equal(clips[0].frames, clips[1].frames)
    assert not torch.equal(clips[1].frames, clips[2].frames)
    (unequal / "b/11.mp4").write_bytes(b"")
    failures = [failure for batch in balanced(unequal).epoch(0) for failure in batch.failures]
    assert [failure.index for failure in failures] == [11, 11, 11]


@pytest.mark.parametrize("balance", [-0.1, 1.01, float("nan")])
def test_exponents_out_of_range(unequal: Path, balance: float) -> None:
    with pytest.raises(ValueError, match=r"balance: got .*; need 0 \(as in the data\) to 1"):
        balanced(unequal, balance=balance)


def test_videos_without_one_label_cannot_be_balanced(unequal: Path) -> None:
    known = read_folders(unequal)
    for labels in ([-1] * 12, LabelSets.of([(0, 1)] * 12)):
        samples = Samples(unequal, paths=known.paths, labels=labels, class_names="ab")
        with pytest.raises(ValueError, match=r"balance: needs one known label for every video"):
            ClipLoader(dataset(unequal, samples=samples), batch_size=4, shuffle=True, balance=1.0)


def test_a_repeated_video_that_hangs_is_recorded_once(
    unequal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, opened, hung = threading.Event(), Video.__init__, []

    def hanging(video: Video, path: Path) -> None:
        if Path(path).name == "11.mp4":
            hung.append(path)
            ended.wait(60)
        opened(video, path)

    monkeypatch.setattr(Video, "__init__", hanging)
    try:
        batches = balanced(unequal, timeout_seconds=0.5)
        # An order in which the first clip of this video is not its repetition 0.
        epoch = next(e for e in range(99) if next(n for n in batches.order(e) if n % 12 == 11) > 11)
        failures = [failure for batch in batches.epoch(epoch) for failure in batch.failures]
    finally:
        ended.set()
    assert [failure.index for failure in failures] == [11, 11, 11]
    assert {failure.reason for failure in failures} == {
        "took longer to decode than timeout_seconds=0.5"
    }
    assert 1 <= len(hung) <= 2  # of one batch
