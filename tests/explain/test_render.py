import pytest
import torch
from matplotlib import colormaps

from tests.explain.maps import CLIP, gray_frames, one_hot_map
from videoattn.explain.render import (
    DIVERGING,
    SEQUENTIAL,
    STRONGEST_ALPHA,
    blend,
    make_scale,
    resize,
    strength,
    upsample,
)
from videoattn.explain.words import grid_note


def test_the_unit_is_the_uniform_weight() -> None:
    scale = make_scale(one_hot_map().weights[0, 0], normalized=True)
    assert scale.top == pytest.approx(24.0)
    assert (scale.bottom, scale.diverging) == (0.0, False)


def test_the_unit_may_be_the_uniform_weight_of_the_visible_positions() -> None:
    scale = make_scale(one_hot_map().weights[0, 0], normalized=True, visible=6)
    assert (scale.unit, scale.top) == pytest.approx((1 / 6, 6.0))


def test_a_flat_map_does_not_look_peaked() -> None:
    scale = make_scale(torch.full((2, 3, 4), 1 / 24), normalized=True)
    assert scale.top == 3.0
    assert strength(torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0]), scale).tolist() == [0, 0, 0.5, 1, 1]


def test_responses_keep_their_values_around_zero() -> None:
    weights = torch.tensor([[[-0.5, 0.2]]])
    scale = make_scale(weights, normalized=False)
    assert (scale.unit, scale.bottom, scale.top, scale.diverging) == (1.0, -0.5, 0.5, True)
    assert make_scale(torch.zeros(1, 1, 2), normalized=False).top == 1.0


def test_upsampling_keeps_cell_centers_and_the_range() -> None:
    weights = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    drawn = upsample(weights, (15, 20))  # 5 pixels per cell: one pixel at each center
    torch.testing.assert_close(drawn[:, 2::5, 2::5], weights, atol=1e-5, rtol=0)
    assert drawn.min() >= weights.min()
    assert drawn.max() <= weights.max()


@pytest.mark.parametrize(
    ("weight", "normalized", "position"), [(1.0, True, 1.0), (0.3, False, 1.0), (-0.3, False, 0.0)]
)
def test_the_color_of_a_hot_cell(weight: float, normalized: bool, position: float) -> None:
    attention_map = one_hot_map((1, 1, 2), weight=weight, normalized=normalized)
    weights = attention_map.weights[0, 0]
    frames = gray_frames((4, 15, 20))
    drawn = blend(frames, weights, make_scale(weights, normalized=normalized))
    hot = torch.tensor(colormaps[SEQUENTIAL if normalized else DIVERGING](position)[:3])
    expected = 255 * (STRONGEST_ALPHA * hot + (1 - STRONGEST_ALPHA) * 128 / 255)
    for frame in (2, 3):  # the frames that temporal cell 1 of 2 covers
        torch.testing.assert_close(
            drawn[frame, :, 7, 12].double(), expected.double(), atol=1.5, rtol=0
        )
    assert torch.equal(drawn[:2], frames[:2])


def test_frames_keep_their_brightness_without_attention() -> None:
    weights = one_hot_map((0, 0, 0)).weights[0, 0]
    frames = gray_frames(level=60)
    frames[:, 0] = 200
    drawn = blend(frames, weights, make_scale(weights, normalized=True))[3].float()
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert torch.allclose((drawn[:, 0, 0] * luma).sum(), (frames[3, :, 0, 0] * luma).sum(), atol=1)
    assert drawn[0, 0, 0] - drawn[1, 0, 0] < 0.3 * (200 - 60)


def test_resizing() -> None:
    frames = gray_frames()
    assert resize(frames, CLIP[1:]) is frames
    assert torch.equal(resize(frames, (48, 64)), gray_frames((4, 48, 64)))


def test_the_note_of_a_grid() -> None:
    """It names the grid of the queries if it is another one, and maps that are too coarse."""
    note = grid_note((4, 7, 7), (16, 112, 112))
    assert note == (
        "7 \u00d7 7 places over the frame, 4 over time: each covers 2 % of the frame and 4 frames"
    )
    assert grid_note((4, 7, 7), (16, 112, 112), (4, 7, 7)) == note
    found = grid_note((4, 7, 7), (16, 112, 112), (4, 14, 14))
    assert found == f"{note}; queries have 14 \u00d7 14 places"
    assert grid_note((1, 1, 1), (8, 64, 64), (8, 2, 2)) == (
        "1 \u00d7 1 places over the frame, 1 over time: each covers all of the frame and 8 frames; "
        "queries have 2 \u00d7 2 places, 8 over time; too coarse to show shapes"
    )
