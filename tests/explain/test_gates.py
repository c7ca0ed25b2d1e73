"""Contact sheets of maps without a query: gates, masks, poolings, channels and boxes."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from numpy.testing import assert_allclose
from PIL import Image

from tests.explain.maps import CLIP, gray_frames, hot_spot, one_box
from videoattn.attention.blocks.cgnl import CompactNonLocal
from videoattn.attention.maps import GateMap
from videoattn.explain import boxes, draw_gate
from videoattn.explain.boxes import GAP, LINE_COLOR
from videoattn.explain.gates import (
    HEADING,
    different_channels,
    frame_amounts,
    gate_weights,
    make_gate_scale,
    spatial_weights,
)
from videoattn.explain.render import (
    SEQUENTIAL,
    STRONGEST_ALPHA,
    Position,
    make_scale,
    number_text,
)
from videoattn.explain.sheet import Grid, label_frames, stack_grids
from videoattn.explain.text import SOFT

GRID = (2, 3, 4)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def grid_of(clip: tuple[int, int, int] = CLIP) -> Grid:
    return stack_grids([clip[0]], clip[1:])[0]


def at_position(picture: np.ndarray, position: Position, grid: Grid | None = None) -> np.ndarray:
    x, y = (grid or grid_of()).point(position)
    return picture[int(y), int(x)]


def hottest() -> np.ndarray:
    """Returns the color of the strongest heat over a gray frame."""
    heat = 255 * np.array(colormaps[SEQUENTIAL](1.0)[:3])
    return STRONGEST_ALPHA * heat + (1 - STRONGEST_ALPHA) * 128


@pytest.mark.parametrize(
    "gate_map",
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
def test_the_heat_is_on_the_cell_and_in_its_frames(gate_map: GateMap) -> None:
    picture = pixels(draw_gate(gray_frames(), gate_map, title="Juggling, 64 %\nlayer2 of small"))
    for frame in (2, 3):  # temporal cell 1 of 2 covers them
        assert_allclose(at_position(picture, Position(frame, 20.0, 28.0)), hottest(), atol=3)
    for cold in (Position(1, 20.0, 28.0), Position(2, 4.0, 4.0)):
        assert_allclose(at_position(picture, cold), 128, atol=1)


def test_a_gate_on_both_sides_of_the_identity_has_two_colors() -> None:
    weights = hot_spot(1, *GRID, at=(0, 1, 2, 3), low=1.0, high=1.6)
    weights[0, 1, 0, 0] = 0.4
    gate_map = GateMap("spatial", weights, identity_value=1.0)
    picture = pixels(draw_gate(gray_frames(), gate_map, title="A"))
    red, blue = (at_position(picture, Position(2, *at)) for at in ((20.0, 28.0), (4.0, 4.0)))
    assert red[0] > red[2] + 80
    assert blue[2] > blue[0] + 80
    assert_allclose(at_position(picture, Position(0, 4.0, 4.0)), 128, atol=1)


@pytest.mark.parametrize(
    ("low", "high", "identity_value", "expected"),
    [
        (0.2, 0.8, 1.0, (0.2, 0.8, 0.2, False)),  # one side: the range of the weights
        (0.4, 1.5, 1.0, (0.4, 1.6, 1.0, True)),  # both sides: symmetric around the identity
        (-0.5, 0.2, None, (-0.5, 0.5, 0.0, True)),
        (0.5, 0.5, 1.0, (0.5, 0.55, 0.5, False)),  # flat: a twentieth of 1
        (1.0, 1.0, 1.0, (0.95, 1.05, 1.0, True)),
        (0.0, 0.0, 0.0, (-1.0, 1.0, 0.0, True)),
    ],
)
def test_scales_of_gates(
    low: float,
    high: float,
    identity_value: float | None,
    expected: tuple[float, float, float, bool],
) -> None:
    weights = torch.tensor([low, high])
    scale = make_gate_scale(GateMap("spatial", weights, identity_value=identity_value), weights)
    assert_allclose(scale[1:4], expected[:3], atol=1e-6)
    assert scale.diverging == expected[3]


def texts_of(gate_map: GateMap, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns all texts of a sheet, before they are cut to their room."""
    texts = []

    def keep(axes: object, at: tuple[float, float], text: str, **options: object) -> float:
        texts.append(text)
        return float(at[0])

    for module in ("sheet", "gates"):
        monkeypatch.setattr(f"videoattn.explain.{module}.draw_text", keep)
    draw_gate(gray_frames(), gate_map, title="A\nlayer2", labels=label_frames(range(4), 25.0))
    return texts


def test_the_text_of_a_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = hot_spot(1, *GRID, at=(0, 1, 2, 3), low=0.25, high=0.75)
    texts = texts_of(GateMap("spatial", weights, identity_value=1.0), monkeypatch)
    assert "layer2  ·  min 0.25, mean 0.271, max 0.75  ·  identity: 1" in texts
    assert "A spatial gate: the factor applied to the features of each position of each frame" in (
        texts
    )
    assert "gate  (1 is outside this range)" in texts
    assert {"0.25", "0.5", "0.75"} <= set(texts)  # of the color bar
    assert (
        "bars: each frame's mean gate  ·  line: the identity, 1  ·  map: 2 x 3 x 4 (T x H x W)"
        in (texts)
    )
    assert {"0", "0.00 s", "3", "0.12 s"} <= set(texts)
    pooling = torch.tensor([0.6] + 23 * [0.4 / 23]).view(1, 1, *GRID)
    texts = texts_of(GateMap("pooling", pooling, normalized=True), monkeypatch)
    assert "layer2  ·  min 0.417\u00d7, mean 1\u00d7, max 14.4\u00d7" in texts
    assert "weight, times the uniform weight" in texts
    weights = torch.tensor([[-1e-9, -0.5]])
    texts = texts_of(GateMap("temporal", weights), monkeypatch)
    assert "layer2  ·  min \u22120.5, mean \u22120.25, max 0" in texts
    described = GateMap("spatial", torch.rand(1, *GRID), description="How loud each position is")
    assert "How loud each position is" in texts_of(described, monkeypatch)
    cgnl = CompactNonLocal(64).requires_grad_(False).maps(torch.rand(1, 64, *GRID))[""]
    texts = texts_of(cgnl, monkeypatch)
    assert "How strongly each position of each frame responds to the whole clip" in texts


def test_numbers_as_text() -> None:
    texts = [number_text(value) for value in (23_123.0, 999.4, 0.012345, -0.0000123)]
    assert texts == ["2.3e4", "999", "0.0123", "\u22121.2e\u22125"]
    assert make_scale(torch.full(GRID, 1 / 24), normalized=True).text(2.0) == "2\u00d7"


def test_masks_and_poolings_are_averaged_and_each_frame_has_an_amount() -> None:
    weights = torch.rand(2, 5, *GRID, generator=torch.Generator().manual_seed(0))
    mask = GateMap("mask", weights)
    mean = spatial_weights(mask, gate_weights(mask, 1))
    torch.testing.assert_close(mean, weights[1].mean(0))
    means, texts = frame_amounts(mask, mean, 4)
    cells = weights[1].mean(dim=(0, 2, 3)).tolist()
    assert_allclose(means, [cells[0], cells[0], cells[1], cells[1]], rtol=1e-5)
    assert texts[0] == f"{cells[0]:.3g}"
    one = GateMap("pooling", hot_spot(1, 1, *GRID, at=(0, 0, 1, 2, 3), low=0.0, high=1.0), True)
    assert frame_amounts(one, one.weights[0, 0], 4)[1] == ["0 %", "0 %", "50 %", "50 %"]


def test_each_of_a_few_weightings_is_drawn() -> None:
    weights = torch.zeros(1, 3, *GRID)
    for index in range(3):
        weights[0, index, 1, index, index] = 1
    gate_map = GateMap("pooling", weights, normalized=True)
    picture = pixels(draw_gate(gray_frames(), gate_map, title="A"))
    grids = stack_grids([4, 4, 4], CLIP[1:], heading=HEADING)
    for index in range(3):
        position = Position(2, 8.0 * index + 4, 8.0 * index + 4)
        for number, grid in enumerate(grids):
            spot = at_position(picture, position, grid)
            assert_allclose(spot, hottest() if number == index else 128, atol=4)


def test_of_many_weightings_the_most_peaked_are_drawn() -> None:
    weights = torch.full((1, 6, *GRID), 1 / 24)
    for index, cell in ((1, (1, 0, 0)), (4, (1, 2, 3))):
        weights[0, index] = 0
        weights[0, index, *cell] = 1.0
    gate_map = GateMap("pooling", weights, normalized=True)
    picture = pixels(draw_gate(gray_frames(), gate_map, title="A"))
    grids = stack_grids([4] * 4, CLIP[1:], heading=HEADING)
    hot = Position(2, 20.0, 28.0)
    spots = [at_position(picture, hot, grid) for grid in grids]
    assert_allclose(spots[3], hottest(), atol=4)  # weightings 0 and 2 are flat and come between
    assert_allclose(spots[:3], 128, atol=1)
    spots = [at_position(picture, Position(2, 4.0, 4.0), grid) for grid in grids]
    assert_allclose(spots[1], hottest(), atol=4)
    assert_allclose(spots[2:], 128, atol=1)


def test_temporal_bars_have_the_lengths_of_the_gates() -> None:
    gates = torch.tensor([[0.2, 0.8, 1.6, 0.4]])
    gate_map = GateMap("temporal", gates, identity_value=1.0)
    picture = pixels(draw_gate(gray_frames(), gate_map, title="A"))
    grid = grid_of()
    per_unit = (grid.panel[1] - 60) / 1.6
    for gate, (y, x) in zip(gates[0].tolist(), grid.corners, strict=True):
        row = picture[y + grid.panel[0] + 16, x : x + grid.panel[1] - 58]
        length = (np.abs(row - (110, 110, 115)).max(axis=1) < 12).sum()
        assert_allclose(length, gate * per_unit, atol=4)  # the line hides a little of the third
        above = picture[
            y + grid.panel[0] + 5, x : x + grid.panel[1] - 60
        ]  # above the bar: the line
        assert abs(int(above.min(axis=1).argmin()) - per_unit) < 2


def test_a_bar_of_a_negative_gate_ends_at_zero() -> None:
    gates = torch.tensor([[-0.5, 0.5]])
    picture = pixels(draw_gate(gray_frames(), GateMap("temporal", gates), title="A"))
    grid = grid_of()
    half = (grid.panel[1] - 60) / 2
    for frame, dark, light in ((0, 0.5, 1.5), (2, 1.5, 0.5)):  # cell 1 of 2 covers frames 2 and 3
        y, x = grid.corners[frame]
        row = picture[y + grid.panel[0] + 14]
        assert row[x + int(dark * half), 0] < 120
        assert row[x + int(light * half), 0] > 230


def channel_sheet(weights: torch.Tensor, identity_value: float | None = None) -> np.ndarray:
    gate_map = GateMap("channel", weights[None], identity_value=identity_value)
    return pixels(draw_gate(gray_frames(), gate_map, title="A"))


def chart_of(weights: torch.Tensor, identity_value: float | None = None) -> np.ndarray:
    """Returns the pixels of the chart on the sheet of a channel map."""
    background = (channel_sheet(torch.tensor([1.0, 0, 0, 0])) == 246).all(axis=2)
    rows, columns = np.nonzero(background.sum(1) > 600)[0], np.nonzero(background.sum(0) > 300)[0]
    area = channel_sheet(weights, identity_value)
    return area[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


@pytest.mark.parametrize("count", [4, 300, 2048])
def test_channel_bars_are_sorted_and_have_the_heights_of_the_gates(count: int) -> None:
    gates = torch.linspace(0.1, 0.9, count)
    chart = chart_of(gates, 1.0)
    table = 255 * np.array([colormaps[SEQUENTIAL](i)[:3] for i in range(256)])
    for share in (0.01, 0.3, 0.6, 0.95):
        index = int(share * count)
        column = chart[:, int((index + 0.5) / count * chart.shape[1])]
        distance = np.abs(column[:, None] - table[None]).max(axis=2).min(axis=1)
        expected = len(column) * float(gates[count - 1 - index]) / 1.06
        assert abs((distance < 3).sum() - expected) <= 4
    assert_allclose(chart[-12, 35], table[-1], atol=15)  # the strongest is at the left


def test_bars_of_both_signs_meet_at_zero() -> None:
    chart = chart_of(torch.tensor([-1.0, 1.0]))
    zero, quarter = int(len(chart) * 1.12 / 2.12), chart.shape[1] // 4
    left, right = chart[:, quarter], chart[:, 3 * quarter]
    assert left[zero - 10, 0] > left[zero - 10, 2] + 80
    assert right[zero + 10, 2] > right[zero + 10, 0] + 80
    assert (left[zero + 10] == 246).all()
    assert (right[zero - 10] == 246).all()


def test_channel_gates_of_each_frame_are_a_heat_map() -> None:
    gates = torch.zeros(3, 4)
    gates[1, 2], gates[2] = 1.0, 0.1
    hottest = 255 * np.array(colormaps[SEQUENTIAL](1.0)[:3])
    chart = chart_of(gates)
    rows, columns = np.nonzero(np.abs(chart - hottest).max(axis=2) < 3)
    assert_allclose((rows.min(), rows.max() + 1), np.array([0, 1]) * 440 / 3, atol=2)
    assert_allclose((columns.min(), columns.max() + 1), np.array([2, 3]) * 410, atol=2)
    many = torch.zeros(2000, 4)
    many[:1000] = 1.0
    chart = chart_of(many)
    assert chart[210, 5, 0] > 230  # the upper half: more channels than pixels, still in order
    assert chart[230, 5, 0] < 30


@pytest.mark.parametrize("shape", [(1, 16), (1, 300), (1, 24, 2), (1, 64, 4), (1, 1)])
@pytest.mark.parametrize("identity_value", [1.0, None])
def test_channel_sheets(shape: tuple[int, ...], identity_value: float | None) -> None:
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    gate_map = GateMap("channel", weights, identity_value=identity_value)
    picture = pixels(draw_gate(gray_frames(), gate_map, title="Juggling, 64 %\nlayer2"))
    assert (picture[:, :5] == 255).all()  # the tick labels fit into the margin
    assert (picture[:, -30:] == 255).all()
    assert np.ptp(picture[753, 70]) > 60 or shape == (1, 1)  # the color of the strongest channel


def test_the_box_and_its_contents() -> None:
    frames = gray_frames(level=100)
    frames[:, :, 6:18, 8:24] = 200  # the contents of the box
    picture = pixels(draw_gate(frames, one_box(left_out=3), title="A"))
    grid = grid_of((CLIP[0], 100 * CLIP[1], round((200 + 100 * GAP) * CLIP[2])))
    yellow = np.abs(picture - LINE_COLOR).max(axis=2) < 12
    height, side = grid.panel[0], grid.panel[1] / (2 + GAP)
    for index, (y, x) in enumerate(grid.corners):
        panel = yellow[y : y + height, x : x + grid.panel[1]]
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
        crop = picture[y + 4 : y + height - 4, x + int(1.1 * side) : x + grid.panel[1] - 4]
        assert_allclose(crop, 200, atol=1)  # the contents of the box only
    row = grid.corners[0][0] + height + 14
    soft = tuple(int(SOFT[i : i + 2], 16) for i in (1, 3, 5))
    x = grid.corners[0][1]
    assert_allclose(picture[row, x + 5], soft, atol=2)


def test_boxes_are_in_pixels_of_the_network_input() -> None:
    frames = gray_frames()

    def in_frames(
        gate_map: GateMap, input_size: tuple[int, int] | None
    ) -> list[tuple[int, int, int, int] | None]:
        return boxes.boxes_in_frames(frames, gate_map.weights[0], input_size)

    found = in_frames(one_box((3.0, 4.0, 9.0, 12.0)), (12, 16))
    assert found == [(6, 8, 18, 24)] * 4
    half = GateMap("box", torch.tensor([[[0.0, 0, 24, 32], [6, 8, 18, 24]]]))
    assert in_frames(half, None) == [(0, 0, 24, 32)] * 2 + found[:2]
    assert boxes.area_shares(frames, [*found[:1], None]) == [0.25, 0.0]
    thin = in_frames(one_box((0.0, 0.0, 0.1, 32.0)), None)
    assert thin == [(0, 0, 1, 32)] * 4


@pytest.mark.parametrize(
    "box", [(6.0, 8.0, 6.0, 24.0), (6.0, 8.0, 18.0, 33.0), (-1.0, 0, 4.0, 4.0)]
)
def test_a_box_outside_the_input(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"box \(y0, x0, y1, x1\) = .* input of 24 x 32 pixels"):
        draw_gate(gray_frames(), one_box(box), title="A")


def test_a_clip_without_boxes() -> None:
    gate_map = GateMap("box", torch.zeros(1, 4, 4))
    assert draw_gate(gray_frames(), gate_map, title="A").mode == "RGB"


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (
            "channel",
            (1, 2, 3, 4),
            r"channel map: weights have shape \(1, 2, 3, 4\); need \(N, C\) or",
        ),
        (
            "spatial",
            (1, 3, 4),
            r"spatial map: .* need \(N, T, H, W\), without a size of 0; see GateMap",
        ),
        ("temporal", (1, 2, 4), r"temporal map: .* need \(N, T\)"),
        ("mask", (1, 2, 3, 4), r"mask map: .* need \(N, C, T, H, W\)"),
        (
            "pooling",
            (1, 0, 2, 3, 4),
            r"pooling map: .* need \(N, D, T, H, W\), without a size of 0",
        ),
        ("box", (1, 4, 6), r"box map: .* need \(N, T, 4\)"),
    ],
)
def test_weights_whose_shape_does_not_fit_the_kind(
    kind: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_gate(gray_frames(), GateMap(kind, torch.zeros(shape)), title="A")  # type: ignore[arg-type]


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="some weights are not finite; find the layer"):
        draw_gate(gray_frames(), GateMap("temporal", torch.tensor([[torch.nan]])), title="A")
    with pytest.raises(ValueError, match="8 temporal cells over 4 frames; need at most one cell"):
        draw_gate(gray_frames(), GateMap("temporal", torch.ones(1, 8)), title="A")


def waves() -> torch.Tensor:
    """A sky and a balloon mask among 40 channels that are nearly the same."""
    generator = torch.Generator().manual_seed(0)
    weights = 0.5 + 0.01 * torch.rand(40, *GRID, generator=generator)
    weights[7, :, 0] += 0.4  # the top row
    weights[31, :, 2, 1:3] += 0.3  # the bottom
    return weights


def test_the_most_different_channels_of_a_mask() -> None:
    weights = waves()
    assert different_channels(weights, 2) == [7, 31]
    assert different_channels(weights + torch.rand(40, 1, 1, 1), 2) == [
        7,
        31,
    ]  # where, not how much
    # Naively, for the third: the largest of the smallest distances.
    third = different_channels(weights, 3)[2]
    flat = (weights - weights.mean((1, 2, 3), keepdim=True)).double().flatten(1).numpy()
    known = [flat.mean(0), flat[7], flat[31]]
    distances = [min(np.linalg.norm(row - other) for other in known) for row in flat]
    assert third == int(np.argmax(distances))
    assert different_channels(waves()[:1], 3) == []
    assert different_channels(torch.ones(5, *GRID), 3) == []


def test_single_channels_of_a_mask_are_drawn_below_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate_map = GateMap("mask", waves()[None], identity_value=0.0)
    texts = texts_of(gate_map, monkeypatch)
    headings = [text for text in texts if text.startswith(("mean over", "channel "))]
    assert headings[:3] == ["mean over 40 channels", "channel 7", "channel 31"]
    assert any("channels that differ most from the mean and from each other" in t for t in texts)
    picture = pixels(draw_gate(gray_frames(), gate_map, title="A"))
    grids = stack_grids([CLIP[0]] * 4, CLIP[1:], heading=HEADING)
    # The top row is hottest in the panels of channel 7, and the bottom in those of channel 31.
    assert_allclose(at_position(picture, Position(0, 4.0, 20.0), grids[1]), hottest(), atol=12)
    top, bottom = (
        at_position(picture, Position(0, *at), grids[2]) for at in ((4.0, 20.0), (20.0, 16.0))
    )
    assert np.abs(bottom - 128).sum() > np.abs(top - 128).sum() + 50
