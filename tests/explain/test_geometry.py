import math

import pytest
import torch

from tests.explain.maps import CLIP, one_hot_map
from videoattn.explain.geometry import (
    Position,
    cell_centre,
    cells_of_frames,
    check_query,
    frame_of_cell,
    frame_shares,
    query_position,
    strongest_keys,
    weights_of,
    window_of,
)


def test_a_temporal_cell_covers_its_frames() -> None:
    assert cells_of_frames(8, 4) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cells_of_frames(8, 8) == list(range(8))
    assert cells_of_frames(8, 3) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [frame_of_cell(cell, 8, 2) for cell in range(2)] == [1, 5]
    with pytest.raises(
        ValueError, match=r"8 temporal cells over 4 frames; at most one cell a frame"
    ):
        cells_of_frames(4, 8)


def test_a_cell_is_marked_at_its_centre() -> None:
    assert cell_centre((1, 2, 3), (2, 3, 4), (4, 24, 32)) == Position(2, 20.0, 28.0)
    assert cell_centre((0, 0, 0), (4, 24, 32), (4, 24, 32)) == Position(0, 0.5, 0.5)


def test_strongest_keys_are_those_of_largest_size() -> None:
    weights = torch.zeros(2, 3, 4)
    weights[0, 1, 2], weights[1, 0, 0], weights[1, 2, 3] = 0.3, -0.5, 0.1
    keys = strongest_keys(weights, 2, CLIP)
    assert [round(key.weight, 6) for key in keys] == [-0.5, 0.3]
    assert [key.position for key in keys] == [Position(2, 4.0, 4.0), Position(0, 12.0, 20.0)]
    assert len(strongest_keys(torch.full_like(weights, 1 / 24), 100, CLIP)) == 24


def test_keys_below_the_mean_are_not_strong() -> None:
    weights = torch.full((2, 3, 4), 0.001)
    weights[0, 1, 2] = 0.6
    weights[1, 0, 0] = 0.3
    assert [round(key.weight, 3) for key in strongest_keys(weights, 20, CLIP)] == [0.6, 0.3]


@pytest.mark.parametrize("cells", [1, 2, 3, 4])
def test_shares_sum_to_one(cells: int) -> None:
    weights = torch.randn(cells, 3, 4, generator=torch.Generator().manual_seed(cells))
    shares = frame_shares(weights, 4)
    assert math.isclose(sum(shares), 1.0, abs_tol=1e-9)
    mass = weights.abs().sum(dim=(1, 2))
    assert math.isclose(
        shares[0] * cells_of_frames(4, cells).count(0), mass[0] / mass.sum(), rel_tol=1e-5
    )


def test_shares_of_one_cell_and_of_nothing() -> None:
    assert frame_shares(one_hot_map().weights[0, 0], 4) == [0, 0, 0.5, 0.5]
    assert frame_shares(torch.zeros(2, 3, 4), 4) == [0.25] * 4


def test_a_query_lies_at_its_cell_or_at_the_pixel_that_was_asked() -> None:
    attention_map = one_hot_map(query=(2, 3, 5))
    assert query_position(attention_map, 0, CLIP) == Position(2, 14.0, 22.0)
    assert query_position(attention_map, 0, CLIP, (2, 12, 23)) == Position(2, 12.5, 23.5)
    with pytest.raises(ValueError, match=r"in cell \(2, 1, 5\) of the query grid.*record this"):
        query_position(attention_map, 0, CLIP, (2, 7, 23))
    assert query_position(attention_map, 0, CLIP, (2, 11, 23)).y == 11.5  # rounding may do this


def test_a_query_outside_the_clip_is_told_the_allowed_range() -> None:
    check_query((3, 23, 31), CLIP)
    for query, message in (
        ((4, 0, 0), r"\(4, 0, 0\): frame 4 is outside the clip; allowed is 0 to 3"),
        ((0, -1, 0), r"y -1 is outside the clip; allowed is 0 to 23"),
        ((0, 0, 32), r"x 32 is outside .* 0 to 31: a query is a frame and a pixel of the clip"),
    ):
        with pytest.raises(ValueError, match=message):
            check_query(query, CLIP)


def test_rows_that_the_map_does_not_hold() -> None:
    attention_map = one_hot_map()
    with pytest.raises(ValueError, match="query 1 is not in the attention map; it holds 1"):
        weights_of(attention_map, 0, 1)
    with pytest.raises(ValueError, match="sample 2 is not in the attention map; it holds 1"):
        weights_of(attention_map, 2, 0)
    with pytest.raises(ValueError, match="weights that are not finite; allowed are finite numbers"):
        weights_of(one_hot_map(weight=float("nan")), 0, 0)


def test_the_window_is_around_all_that_is_not_zero() -> None:
    weights = torch.zeros(2, 3, 4)
    weights[1, 1, 2], weights[1, 2, 1] = 0.5, -0.5
    assert window_of(weights, CLIP) == ([2, 3], 8.0, 8.0, 24.0, 24.0)
    assert window_of(torch.zeros(2, 3, 4), CLIP) == ([0, 1, 2, 3], 0.0, 0.0, 24.0, 32.0)
