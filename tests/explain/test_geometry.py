import math

import pytest
import torch

from tests.explain.maps import CLIP, one_hot_map
from videoattn.explain.pairwise import query_position, strongest_keys, weights_of, window_of
from videoattn.explain.render import Position, cell_center, cells_of_frames, frame_shares


def test_a_temporal_cell_covers_its_frames() -> None:
    assert cells_of_frames(8, 4) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cells_of_frames(8, 8) == list(range(8))
    assert cells_of_frames(8, 3) == [0, 0, 0, 1, 1, 1, 2, 2]
    frames = [cell_center((cell, 0, 0), (2, 1, 1), (8, 2, 2)).frame for cell in range(2)]
    assert frames == [1, 5]
    with pytest.raises(
        ValueError, match=r"8 temporal cells over 4 frames; need at most one cell per frame"
    ):
        cells_of_frames(4, 8)


def test_a_cell_is_marked_at_its_center() -> None:
    assert cell_center((1, 2, 3), (2, 3, 4), (4, 24, 32)) == Position(2, 20.0, 28.0)
    assert cell_center((0, 0, 0), (4, 24, 32), (4, 24, 32)) == Position(0, 0.5, 0.5)


def test_strongest_keys_have_the_largest_absolute_weights() -> None:
    weights = torch.zeros(2, 3, 4)
    weights[0, 1, 2], weights[1, 0, 0], weights[1, 2, 3] = 0.3, -0.5, 0.1
    keys = strongest_keys(weights, 2, CLIP)
    assert [round(weight, 6) for _, weight in keys] == [-0.5, 0.3]
    assert [position for position, _ in keys] == [Position(2, 4.0, 4.0), Position(0, 12.0, 20.0)]
    assert len(strongest_keys(torch.full_like(weights, 1 / 24), 100, CLIP)) == 24


def test_keys_below_the_mean_are_omitted() -> None:
    weights = torch.full((2, 3, 4), 0.001)
    weights[0, 1, 2] = 0.6
    weights[1, 0, 0] = 0.3
    assert [round(weight, 3) for _, weight in strongest_keys(weights, 20, CLIP)] == [0.6, 0.3]


@pytest.mark.parametrize("cells", [1, 2, 3, 4])
def test_shares_sum_to_one(cells: int) -> None:
    weights = torch.randn(cells, 3, 4, generator=torch.Generator().manual_seed(cells))
    shares = frame_shares(weights, 4)
    assert math.isclose(sum(shares), 1.0, abs_tol=1e-9)
    mass = weights.abs().sum(dim=(1, 2))
    assert math.isclose(
        shares[0] * cells_of_frames(4, cells).count(0), mass[0] / mass.sum(), rel_tol=1e-5
    )


def test_shares_of_one_cell_and_of_a_zero_map() -> None:
    assert frame_shares(one_hot_map().weights[0, 0], 4) == [0, 0, 0.5, 0.5]
    assert frame_shares(torch.zeros(2, 3, 4), 4) == [0.25] * 4


def test_a_query_is_at_its_cell_or_at_the_given_pixel() -> None:
    attention_map = one_hot_map(query=(2, 3, 5))
    assert query_position(attention_map, 0, CLIP) == Position(2, 14.0, 22.0)
    assert query_position(attention_map, 0, CLIP, (2, 12, 23)) == Position(2, 12.5, 23.5)
    assert query_position(attention_map, 0, CLIP, (2, 11, 23)).y == 11.5  # rounding may do this
    with pytest.raises(ValueError, match=r"pixel .* \(2, 7, 23\) .* not in the cell of query 0"):
        query_position(attention_map, 0, CLIP, (2, 7, 23))
    corner = one_hot_map(query=(3, 5, 7))
    for pixel in ((4, 23, 31), (3, 24, 31), (3, 23, 32)):
        with pytest.raises(ValueError, match=r"of a clip of 4 x 24 x 32 is not in the cell"):
            query_position(corner, 0, CLIP, pixel)


def test_weights_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="some weights are not finite; find the layer that"):
        weights_of(one_hot_map(weight=float("nan")), 0, 0)


def test_the_window_holds_all_nonzero_weights() -> None:
    weights = torch.zeros(2, 3, 4)
    weights[1, 1, 2], weights[1, 2, 1] = 0.5, -0.5
    assert window_of(weights, CLIP) == ([2, 3], 8.0, 8.0, 24.0, 24.0)
    assert window_of(torch.zeros(2, 3, 4), CLIP) == ([0, 1, 2, 3], 0.0, 0.0, 24.0, 32.0)
