"""Intervals, rank correlations, baselines and fields."""

import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances

from videoattn.attention.maps import GateMap
from videoattn.explain.faithful.score import (
    center_map,
    field_of,
    frame_map,
    motion_map,
    smooth_map,
)
from videoattn.explain.faithful.statistics import bootstrap, spearman


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_spearman_is_the_correlation_of_mean_ranks() -> None:
    a, b = torch.tensor([3.0, 1.0, 1.0, 7.0, 5.0]), torch.tensor([2.0, 2.0, 0.0, 9.0, 9.0])
    ranks = np.array([[3, 1.5, 1.5, 5, 4], [2.5, 2.5, 1, 4.5, 4.5]])
    expected = 1 - pairwise_distances(ranks, metric="correlation")[0, 1]
    assert spearman(a, b) == pytest.approx(expected)
    assert spearman(a, a.exp()) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, torch.ones(5)) == 0


def test_bootstrap_covers_the_mean() -> None:
    """The interval of a normal sample is that of its standard error; a seed repeats it."""
    values = torch.randn(400, generator=seeded()).double()
    found = bootstrap(values, seed=1)
    error = float(values.std()) / 20
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert bootstrap(values, seed=1) == found != bootstrap(values, seed=2)
    shared = bootstrap(3 * values.abs(), over=values.abs())
    assert shared == pytest.approx((3, 3, 3))


def test_smooth_maps_have_the_autocorrelation_of_the_map() -> None:
    found = torch.randn(4, 6, 5, generator=seeded(), dtype=torch.float64).cumsum(1)
    smooth = smooth_map(found, seeded(1))
    assert smooth.shape == found.shape

    def autocorrelation(x: torch.Tensor, t: int, y: int, w: int) -> float:
        return float((x * x.roll((t, y, w), (0, 1, 2))).sum())

    for shift in ((0, 0, 0), (1, 0, 0), (0, 2, 0), (3, 1, 2)):
        expected = autocorrelation(found, *shift)
        assert autocorrelation(smooth, *shift) == pytest.approx(expected)
    assert smooth.mean() == pytest.approx(float(found.mean()))
    assert abs(spearman(smooth, found)) < 0.6
    assert not torch.equal(smooth_map(found, seeded(2)), smooth)


def test_center_is_highest_in_the_middle() -> None:
    center = center_map((3, 4, 5))
    assert center.shape == (3, 4, 5)
    highest = (center == center.max()).nonzero().tolist()
    assert highest == [[1, 1, 2], [1, 2, 2]]
    assert float(center[0, 0, 0]) == pytest.approx(-((2 / 3) ** 2 + 0.75**2 + 0.8**2))


def test_motion_is_the_change_to_the_frame_before() -> None:
    video = torch.zeros(1, 3, 4, 4, 4)
    video[:, :, 2:, :2, :2] = 6.0
    motion = motion_map(video, (2, 2, 2))
    assert motion.tolist() == [[[0, 0], [0, 0]], [[3, 0], [0, 0]]]


def test_frame_keeps_only_the_timing() -> None:
    found = torch.arange(12.0).view(2, 2, 3)
    assert frame_map(found).tolist() == [[[2.5] * 3] * 2, [[8.5] * 3] * 2]


def test_fields_of_every_kind() -> None:
    clip = (4, 8, 8)
    mask = torch.rand(1, 3, 2, 2, 2)
    assert torch.equal(field_of(GateMap("mask", mask), clip), mask[0].mean(0))
    temporal = field_of(GateMap("temporal", torch.tensor([[1.0, 2.0]])), clip)
    assert temporal.tolist() == [[[1.0]], [[2.0]]]
    assert field_of(GateMap("channel", torch.rand(1, 5)), clip) is None
    box = field_of(GateMap("box", torch.tensor([[[0.0, 0.0, 4.0, 8.0]] * 4])), clip)
    assert box.sum((1, 2)).tolist() == [32.0] * 4
    fine = torch.rand(1, 16, 28, 28)
    pooled = field_of(GateMap("cam", fine), (16, 28, 28))
    expected = torch.nn.functional.avg_pool3d(fine, 2)[0]
    torch.testing.assert_close(pooled, expected)
