import numpy as np
import pytest
import torch
from matplotlib import colormaps
from numpy.testing import assert_allclose
from PIL import Image

from tests.explain.maps import CLIP, grey_frames, hot_spot, one_box
from videoattn.attention.blocks.cgnl import CompactNonLocal
from videoattn.attention.record import GateMap
from videoattn.explain import boxes, draw_field
from videoattn.explain.boxes import GAP, LINE_COLOUR
from videoattn.explain.charts import Chart, bar_limits, paint_bars, paint_heat
from videoattn.explain.geometry import Position, field_of
from videoattn.explain.heat import HEADING_WITH_BAR, describe_map, frame_amounts, placed_weights
from videoattn.explain.layout import make_layout
from videoattn.explain.marks import SOFT, Picture
from videoattn.explain.page import describe, number_text, with_neutral
from videoattn.explain.render import SEQUENTIAL, STRONGEST_ALPHA, make_field_scale

GRID = (2, 3, 4)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def at_place(picture: np.ndarray, position: Position, layout: object = None) -> np.ndarray:
    x, y = (layout or make_layout(*CLIP)).point(position)  # type: ignore[attr-defined]
    return picture[int(y), int(x)]


def hottest() -> np.ndarray:
    """The strongest heat over a grey frame."""
    heat = 255 * np.array(colormaps[SEQUENTIAL](1.0)[:3])
    return STRONGEST_ALPHA * heat + (1 - STRONGEST_ALPHA) * 128


@pytest.mark.parametrize(
    "field_map",
    [
        GateMap("spatial", hot_spot(1, *GRID, at=(0, 1, 2, 3)), identity_value=1.0),
        GateMap("spatial", hot_spot(1, *GRID, at=(0, 1, 2, 3), low=0.0, high=1.0)),
        GateMap("mask", hot_spot(1, 5, *GRID, at=(0, slice(None), 1, 2, 3)), identity_value=0.0),
        GateMap(
            "pooling", hot_spot(1, 1, *GRID, at=(0, 0, 1, 2, 3), low=0.0, high=1.0), normalized=True
        ),
        GateMap("pooling", hot_spot(1, 1, *GRID, at=(0, 0, 1, 2, 3))),
    ],
    ids=["gate", "spatial", "mask", "pooling", "responses"],
)
def test_the_heat_lies_on_the_cell_and_in_its_frames(field_map: GateMap) -> None:
    picture = pixels(draw_field(grey_frames(), field_map, title="Juggling, 64 %\nlayer2 of small"))
    for frame in (2, 3):  # what temporal cell 1 of 2 covers
        assert_allclose(at_place(picture, Position(frame, 20.0, 28.0)), hottest(), atol=3)
    for place in (Position(1, 20.0, 28.0), Position(2, 4.0, 4.0)):
        assert_allclose(at_place(picture, place), 128, atol=1)


def test_a_gate_on_both_sides_of_neutral_has_two_colours() -> None:
    weights = hot_spot(1, *GRID, at=(0, 1, 2, 3), low=1.0, high=1.6)
    weights[0, 1, 0, 0] = 0.4
    field_map = GateMap("spatial", weights, identity_value=1.0)
    picture = pixels(draw_field(grey_frames(), field_map, title="A"))
    red, blue = (at_place(picture, Position(2, *at)) for at in ((20.0, 28.0), (4.0, 4.0)))
    assert red[0] > red[2] + 80
    assert blue[2] > blue[0] + 80
    assert_allclose(at_place(picture, Position(0, 4.0, 4.0)), 128, atol=1)


@pytest.mark.parametrize(
    ("low", "high", "identity_value", "expected"),
    [
        (0.2, 0.8, 1.0, (0.2, 0.8, 0.2, False)),  # one side: its own range
        (0.4, 1.5, 1.0, (0.4, 1.6, 1.0, True)),  # both sides: alike around neutral
        (-0.5, 0.2, None, (-0.5, 0.5, 0.0, True)),
        (0.5, 0.5, 1.0, (0.5, 0.55, 0.5, False)),  # flat: a twentieth of what 1 is
        (1.0, 1.0, 1.0, (0.95, 1.05, 1.0, True)),
        (0.0, 0.0, 0.0, (-1.0, 1.0, 0.0, True)),
    ],
)
def test_scales_of_fields(
    low: float,
    high: float,
    identity_value: float | None,
    expected: tuple[float, float, float, bool],
) -> None:
    weights = torch.tensor([low, high])
    scale = make_field_scale(weights, normalized=False, identity_value=identity_value)
    assert_allclose(scale[1:4], expected[:3], atol=1e-6)
    assert scale.diverging == expected[3]


def test_words_on_the_range() -> None:
    weights = torch.tensor([0.25, 0.75])
    assert describe(weights, 1.0) == "min 0.25, mean 0.5, max 0.75  ·  1 changes nothing"
    assert describe(weights, None, unit=0.25) == "min 1\u00d7, mean 2\u00d7, max 3\u00d7"
    assert describe(torch.tensor([-1e-9, -0.5]), None) == "min \u22120.5, mean \u22120.25, max 0"
    small = torch.tensor([0.6] + 400 * [0.001])
    assert describe(small / small.sum(), None, unit=1 / 401).split(", ")[1] == "mean 1\u00d7"
    scale = make_field_scale(weights, normalized=False, identity_value=1.0)
    assert with_neutral("gate", scale, 1.0) == "gate  (1 is off this scale)"
    assert with_neutral("gate", scale, 0.5) == with_neutral("gate", scale, None) == "gate"
    texts = [number_text(value) for value in (23_123.0, 999.4, 0.012345, -0.0000123)]
    assert texts == ["2.3e4", "999", "0.0123", "\u22121.2e\u22125"]


def test_a_block_may_say_what_its_weights_are() -> None:
    weights = torch.rand(1, *GRID, generator=torch.Generator().manual_seed(0))
    assert describe_map(GateMap("spatial", weights), 0).startswith(
        "Spatial attention: the weight of"
    )
    assert describe_map(GateMap("spatial", weights, description="How loud"), 0) == "How loud"
    x = torch.rand(1, 64, *GRID, generator=torch.Generator().manual_seed(0))
    cgnl = CompactNonLocal(64).maps(x)[""]
    assert (
        describe_map(cgnl, 0)
        == "How strongly each position of each frame responds to the whole clip"
    )


def test_masks_and_poolings_are_averaged_and_frames_summed_up() -> None:
    weights = torch.rand(2, 5, *GRID, generator=torch.Generator().manual_seed(0))
    mask = GateMap("mask", weights)
    torch.testing.assert_close(placed_weights(mask, 1), weights[1].mean(0))
    means, texts = frame_amounts(mask, placed_weights(mask, 1), 4)
    cells = weights[1].mean(dim=(0, 2, 3)).tolist()
    assert_allclose(means, [cells[0], cells[0], cells[1], cells[1]], rtol=1e-5)
    assert texts[0] == f"{cells[0]:.3g}"
    one = GateMap("pooling", hot_spot(1, 1, *GRID, at=(0, 0, 1, 2, 3), low=0.0, high=1.0), True)
    assert frame_amounts(one, placed_weights(one, 0), 4)[1] == ["0 %", "0 %", "50 %", "50 %"]


def test_few_weightings_are_drawn_each() -> None:
    weights = torch.zeros(1, 3, *GRID)
    for index in range(3):
        weights[0, index, 1, index, index] = 1
    field_map = GateMap("pooling", weights, normalized=True)
    picture = pixels(draw_field(grey_frames(), field_map, title="A"))
    layout = make_layout(*CLIP, groups=(4, 4, 4), heading=34)
    assert picture.shape == (layout.height, layout.width, 3)
    for index in range(3):
        place = (8.0 * index + 4, 8.0 * index + 4)
        for group in range(3):
            spot = at_place(picture, Position(4 * group + 2, *place), layout)
            assert_allclose(spot, hottest() if group == index else 128, atol=4)


def test_of_many_weightings_the_mean_and_the_most_peaked_are_drawn() -> None:
    weights = torch.full((1, 6, *GRID), 1 / 24)
    weights[0, 4] = 0
    weights[0, 4, 1, 2, 3] = 1.0
    field_map = GateMap("pooling", weights, normalized=True)
    picture = pixels(draw_field(grey_frames(), field_map, title="A"))
    layout = make_layout(*CLIP, groups=(4, 4), heading=HEADING_WITH_BAR)
    assert picture.shape == (layout.height, layout.width, 3)
    spots = [at_place(picture, Position(panel, 20.0, 28.0), layout) for panel in range(8)]
    assert_allclose(spots[4], hottest(), atol=4)  # weighting 4 comes first, in frame 2
    assert_allclose(spots[5:], 128, atol=1)  # the others are flat
    assert_allclose(spots[:2], 128, atol=1)
    assert spots[2][0] > 150  # the mean: (5 / 24 + 1) / 6 is 4.8 times uniform


def bar_lengths(picture: np.ndarray, colour: tuple[int, int, int]) -> list[int]:
    """Of the bars below the panels, in pixels."""
    layout = make_layout(*CLIP)
    rows = [y + layout.panel[0] + 16 for y, _ in layout.corners]
    return [
        int((np.abs(picture[row, x : x + layout.panel[1]] - colour).max(axis=1) < 12).sum())
        for row, (_, x) in zip(rows, layout.corners, strict=True)
    ]


def test_temporal_bars_are_as_long_as_the_gates_and_neutral_is_marked() -> None:
    gates = torch.tensor([[0.2, 0.8, 1.6, 0.4]])
    picture = pixels(
        draw_field(grey_frames(), GateMap("temporal", gates, identity_value=1.0), title="A")
    )
    layout = make_layout(*CLIP)
    measure = (layout.panel[1] - 60) / 1.6
    lengths = bar_lengths(picture, (0, 180, 216))
    assert_allclose(lengths, gates[0] * measure, atol=4)  # the line hides a little of the third
    for y, x in layout.corners:  # the line, above the bar where nothing covers it
        row = picture[y + layout.panel[0] + 5, x : x + layout.panel[1] - 60]
        assert abs(int(row.min(axis=1).argmin()) - measure) < 2


def test_a_gate_below_zero_begins_at_the_zero() -> None:
    gates = torch.tensor([[-0.5, 0.5]])
    picture = pixels(draw_field(grey_frames(), GateMap("temporal", gates), title="A"))
    layout = make_layout(*CLIP)
    half = (layout.panel[1] - 60) / 2
    y, x = layout.corners[0]
    row = picture[y + layout.panel[0] + 14]
    assert row[x + int(half / 2), 0] < 20  # left of the middle
    assert row[x + int(1.5 * half), 0] > 230
    y, x = layout.corners[2]  # the second of two cells covers frames 2 and 3
    row = picture[y + layout.panel[0] + 14]
    assert row[x + int(half / 2), 0] > 230
    assert row[x + int(1.5 * half), 0] < 20


def painted(picture: Picture, chart: Chart) -> np.ndarray:
    """Of each column of the chart, how many pixels are not the ground."""
    area = picture[chart.top : chart.bottom, chart.left : chart.left + chart.width].astype(int)
    return (np.abs(area - 246).max(axis=2) > 0).sum(axis=0)


@pytest.mark.parametrize("count", [4, 300, 2048])
def test_channel_bars_are_as_high_as_the_gates(count: int) -> None:
    gates = torch.linspace(0.9, 0.1, count)
    chart, frames = Chart(grey_frames(), spread=False), grey_frames()
    picture = chart.start(frames)
    limits = bar_limits(gates, 1.0)
    assert_allclose(limits, (0.0, 1.06))
    scale = make_field_scale(gates, normalized=False, identity_value=1.0)
    paint_bars(picture, chart, gates, limits, scale)
    heights = painted(picture, chart)
    height = chart.bottom - chart.top
    for share in (0.0, 0.3, 0.6, 0.95):
        column = int(share * chart.width) + (2 if count < 300 else 0)
        index = column * count // chart.width
        expected = height * float(gates[index]) / 1.06
        if heights[column]:  # not a gap between bars
            assert abs(heights[column] - expected) <= 2
    assert (heights == 0).mean() < 0.2
    assert_allclose(
        picture[chart.bottom - 1, chart.left],
        255 * np.array(colormaps[SEQUENTIAL](1.0)[:3]),
        atol=2,
    )


def test_bars_of_both_signs_part_at_zero() -> None:
    gates = torch.tensor([1.0, -1.0])
    chart = Chart(grey_frames(), spread=False)
    picture = chart.start(grey_frames())
    limits = bar_limits(gates, None)
    paint_bars(
        picture,
        chart,
        gates,
        limits,
        make_field_scale(gates, normalized=False, identity_value=None),
    )
    zero, quarter = chart.row(0.0, limits), chart.width // 4
    left, right = (picture[:, chart.left + at] for at in (quarter, 3 * quarter))
    assert left[zero - 10, 0] > left[zero - 10, 2] + 80
    assert right[zero + 10, 2] > right[zero + 10, 0] + 80
    assert (left[zero + 10] == 246).all()
    assert (right[zero - 10] == 246).all()


def test_gates_of_channels_and_frames_are_a_heat_map_below_the_frames() -> None:
    chart = Chart(grey_frames(), spread=True)
    column = chart.width / 4
    for index, x in enumerate(chart.thumbs):
        assert_allclose(x + chart.thumb[1] / 2, chart.left + (index + 0.5) * column, atol=2)
    gates = torch.zeros(3, 4)
    gates[1, 2] = 1.0
    picture = chart.start(grey_frames())
    paint_heat(
        picture, chart, gates, make_field_scale(gates, normalized=False, identity_value=None)
    )
    hot = (
        np.abs(picture.astype(int) - 255 * np.array(colormaps[SEQUENTIAL](1.0)[:3])).max(axis=2) < 3
    )
    rows, columns = np.nonzero(hot)
    third = (chart.bottom - chart.top) / 3
    assert_allclose((rows.min(), rows.max() + 1), chart.top + third * np.array([1, 2]), atol=1)
    left = chart.left + column * np.array([2, 3])
    assert_allclose((columns.min(), columns.max() + 1), left, atol=1)
    many = torch.zeros(2000, 4)
    many[:1000] = 1.0
    paint_heat(picture, chart, many, make_field_scale(many, normalized=False, identity_value=None))
    middle = (chart.top + chart.bottom) // 2
    assert picture[middle - 10, chart.left, 0] > 230  # the upper half: averaged, still in order
    assert picture[middle + 10, chart.left, 0] < 30


@pytest.mark.parametrize("shape", [(1, 16), (1, 300), (1, 24, 2), (1, 64, 4), (1, 1)])
@pytest.mark.parametrize("identity_value", [1.0, None])
def test_channel_sheets(shape: tuple[int, ...], identity_value: float | None) -> None:
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    field_map = GateMap("channel", weights, identity_value=identity_value)
    picture = pixels(draw_field(grey_frames(), field_map, title="Juggling, 64 %\nlayer2"))
    chart = Chart(grey_frames(), spread=len(shape) == 3)
    assert picture.shape == (chart.size[1], chart.size[0], 3)
    assert (picture[: chart.top, :40] == 255).all()  # nothing stands in the margins
    assert (picture[:, -30:] == 255).all()
    first = picture[chart.bottom - 12, chart.left + 1]
    assert np.ptp(first) > 60 or shape == (1, 1)  # the strongest channel's colour


def test_the_rectangle_and_its_crop() -> None:
    frames = grey_frames(level=100)
    frames[:, :, 6:18, 8:24] = 200  # what the box holds
    picture = pixels(draw_field(frames, one_box(left_out=3), title="A"))
    layout = make_layout(CLIP[0], 100 * CLIP[1], round((200 + 100 * GAP) * CLIP[2]))
    assert picture.shape == (layout.height, layout.width, 3)
    yellow = np.abs(picture - LINE_COLOUR).max(axis=2) < 12
    height, side = layout.panel[0], layout.panel[1] / (2 + GAP)
    for index, (y, x) in enumerate(layout.corners):
        panel = yellow[y : y + height, x : x + layout.panel[1]]
        if index == 3:
            assert not panel.any()
            assert_allclose(picture[y + height // 2, x + int(0.5 * side)], 90, atol=1)
            assert_allclose(picture[y + height // 2, x + int(1.6 * side)], 235, atol=1)
            continue
        rows, columns = np.nonzero(panel)
        assert_allclose((rows.min(), rows.max() + 1), (height / 4, 3 * height / 4), atol=3)
        assert_allclose((columns.min(), columns.max() + 1), (side / 4, 3 * side / 4), atol=3)
        assert_allclose(picture[y + height // 2, x + int(0.5 * side)], 200, atol=1)
        assert_allclose(picture[y + height // 2, x + int(0.1 * side)], 45, atol=2)  # dimmed
        crop = picture[y + 4 : y + height - 4, x + int(1.1 * side) : x + layout.panel[1] - 4]
        assert_allclose(crop, 200, atol=1)  # all of what is inside, nothing else
    row = layout.corners[0][0] + height + 14
    soft = tuple(int(SOFT[i : i + 2], 16) for i in (1, 3, 5))
    x = layout.corners[0][1]
    assert_allclose(picture[row, x + 5], soft, atol=2)


def test_boxes_are_in_the_pixels_of_the_networks_input() -> None:
    frames = grey_frames()
    found = boxes.boxes_in_frames(frames, one_box((3.0, 4.0, 9.0, 12.0)), 0, (12, 16))
    assert found == [(6, 8, 18, 24)] * 4
    half = GateMap("box", torch.tensor([[[0.0, 0, 24, 32], [6, 8, 18, 24]]]))
    assert boxes.boxes_in_frames(frames, half, 0, None) == [(0, 0, 24, 32)] * 2 + found[:2]
    assert boxes.area_shares(frames, [*found[:1], None]) == [0.25, 0.0]
    thin = boxes.boxes_in_frames(frames, one_box((0.0, 0.0, 0.1, 32.0)), 0, None)
    assert thin == [(0, 0, 1, 32)] * 4


@pytest.mark.parametrize(
    "box", [(6.0, 8.0, 6.0, 24.0), (6.0, 8.0, 18.0, 33.0), (-1.0, 0, 4.0, 4.0)]
)
def test_a_box_outside_the_input(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"box \(y0, x0, y1, x1\) = .* input of 24 x 32 pixels"):
        draw_field(grey_frames(), one_box(box), title="A")


def test_a_clip_of_which_every_frame_is_left_out() -> None:
    field_map = GateMap("box", torch.zeros(1, 4, 4))
    assert draw_field(grey_frames(), field_map, title="A").mode == "RGB"


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (
            "channel",
            (1, 2, 3, 4),
            r"channel map: weights of shape \(1, 2, 3, 4\); need \(N, C\) or",
        ),
        (
            "spatial",
            (1, 3, 4),
            r"spatial map: .* need \(N, T, H, W\), none of them 0: see GateMap",
        ),
        ("temporal", (1, 2, 4), r"temporal map: .* need \(N, T\)"),
        ("mask", (1, 2, 3, 4), r"mask map: .* need \(N, C, T, H, W\)"),
        ("pooling", (1, 0, 2, 3, 4), r"pooling map: .* need \(N, D, T, H, W\), none of them 0"),
        ("box", (1, 4, 6), r"box map: .* need \(N, T, 4\)"),
    ],
)
def test_weights_that_are_not_of_the_kind(kind: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_field(grey_frames(), GateMap(kind, torch.zeros(shape)), title="A")  # type: ignore[arg-type]


def test_what_the_map_does_not_hold() -> None:
    field_map = GateMap("temporal", torch.full((2, 4), 0.5))
    assert field_of(field_map, 1).tolist() == [0.5] * 4
    with pytest.raises(ValueError, match="sample 2 is not in the attention map; it holds 2"):
        draw_field(grey_frames(), field_map, title="A", sample=2)
    with pytest.raises(ValueError, match="weights that are not finite; allowed are finite numbers"):
        draw_field(grey_frames(), GateMap("temporal", torch.tensor([[torch.nan]])), title="A")
    with pytest.raises(
        ValueError, match="8 temporal cells over 4 frames; at most one cell a frame"
    ):
        draw_field(grey_frames(), GateMap("temporal", torch.ones(1, 8)), title="A")
    with pytest.raises(ValueError, match="3 numbers for 4 frames; give one for each frame"):
        draw_field(grey_frames(), field_map, title="A", frame_numbers=[1, 2, 3])
