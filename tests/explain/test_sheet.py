"""Contact sheets: their layout, marks and text, and the sheets of pairwise maps."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from numpy.testing import assert_allclose
from PIL import Image

from tests.explain.maps import CLIP, gray_frames, one_hot_map
from videoattn.explain import draw_sheet
from videoattn.explain.pairwise import draw_arrow, draw_ring
from videoattn.explain.render import SEQUENTIAL, STRONGEST_ALPHA, Position, Scale, make_scale
from videoattn.explain.sheet import (
    COLOR_BAR,
    Grid,
    Sheet,
    choose_columns,
    label_frames,
    stack_grids,
)
from videoattn.explain.text import canvas_axes, draw_over, draw_text, wrapped


def grid_of(clip: tuple[int, int, int] = CLIP) -> Grid:
    return stack_grids([clip[0]], clip[1:])[0]


def test_sentences_that_are_too_wide_fill_two_lines() -> None:
    text = "It looks at frame 3 (0.25 s). The weight is 79.5 times the mean. It is a sink."
    assert wrapped(text, 2000) == [text]
    expected = ["It looks at frame 3 (0.25 s).", "The weight is 79.5 times the mean. It is a sink."]
    assert wrapped(text, 400) == expected
    for whole in ("One sentence that is too wide", "No end, e.g. this one", "One sentence. "):
        assert wrapped(whole, 20) == [whole]
    sheet = Sheet([grid_of()])
    sheet.write_head("title", "", f"{text} {text} {text} {text}")
    assert [one.get_text() for one in sheet.axes.texts[1:]] == [f"{text} {text}"] * 2


def drawn(size: tuple[int, int], color: str, mark: Callable[[Axes], object]) -> np.ndarray:
    """Returns the pixels (H, W, 3) of marks on a plain picture of (width, height)."""
    axes = canvas_axes(size)
    mark(axes)
    return np.asarray(draw_over(Image.new("RGB", size, color), axes)).astype(int)


@pytest.mark.parametrize(
    ("num_frames", "aspect", "columns"),
    [(1, 1.0, 1), (4, 1.3, 4), (8, 1.0, 4), (8, 4 / 3, 4), (16, 1.0, 4), (32, 1.0, 8)],
)
def test_columns(num_frames: int, aspect: float, columns: int) -> None:
    assert choose_columns(num_frames, aspect) == columns


@pytest.mark.parametrize(
    "clip", [(1, 24, 32), (8, 72, 72), (16, 112, 112), (32, 90, 160), (7, 64, 40)]
)
@pytest.mark.parametrize("groups", [1, 3])
def test_panels_are_on_the_sheet_and_do_not_overlap(
    clip: tuple[int, int, int], groups: int
) -> None:
    grids = stack_grids([clip[0]] * groups, clip[1:], heading=68)
    sheet = Sheet(grids)
    taken = np.zeros((sheet.height, sheet.width), int)
    for grid in grids:
        height, width = grid.panel
        for y, x in grid.corners:
            taken[y : y + height, x : x + width] += 1
        assert_allclose(width / height, clip[2] / clip[1], rtol=0.01)
    assert taken.max() == 1
    assert taken.sum() == groups * clip[0] * height * width


def test_a_position_of_the_clip_on_the_sheet() -> None:
    grid = grid_of()
    y, x = grid.corners[2]
    expected = (x + grid.panel[1] / 4, y + grid.panel[0] / 2)
    assert_allclose(grid.point(Position(2, 12.0, 8.0)), expected)


def test_an_arrow_ends_at_the_key_and_starts_at_the_ring() -> None:
    def arrow(axes: Axes) -> None:
        draw_arrow(axes, (60.0, 50.0), (240.0, 160.0), strength=1.0)
        draw_arrow(axes, (60.0, 50.0), (66.0, 50.0), strength=1.0)  # inside the ring: omitted
        assert len(axes.patches) == 1

    picture = drawn((300, 200), "gray", arrow)
    y, x = np.argwhere(picture.min(axis=2) > 200).T + 0.5
    to_end, from_start = np.hypot(x - 240, y - 160), np.hypot(x - 60, y - 50)
    assert to_end.min() < 2.5  # the tip is finer than a pixel
    assert_allclose(from_start.min(), 15.0, atol=2)
    assert x.max() < 241.5
    assert y.max() < 161.5


def test_a_ring_is_drawn_around_its_center() -> None:
    def ring(axes: Axes) -> None:
        draw_ring(axes, (40.0, 30.0))
        circles = [patch for patch in axes.patches if isinstance(patch, Circle)]
        assert {circle.get_center() for circle in circles} == {(40, 30)}

    white = np.argwhere(drawn((100, 80), "black", ring).min(axis=2) > 200) + 0.5
    assert_allclose(white.mean(axis=0), (30.0, 40.0), atol=0.3)


def test_text_may_hold_dollar_signs_and_braces() -> None:
    picture = drawn((200, 40), "white", lambda axes: draw_text(axes, (10, 30), "Cost_$5$ {up}"))
    assert picture.min() < 100


@pytest.mark.parametrize("align", ["left", "center", "right"])
@pytest.mark.parametrize("length", [20, 30, 150])
def test_text_stays_in_its_room(align: str, length: int) -> None:
    left = 10
    at = {"left": left, "center": left + 150, "right": left + 300}[align]
    text = "train/" + "x" * (length - 6)

    def write(axes: Axes) -> None:
        draw_text(axes, (at, 30), text, size=14, align=align, room=300)  # type: ignore[arg-type]

    dark = np.argwhere(drawn((600, 40), "white", write).min(axis=2) < 200)[:, 1]
    assert left - 1 <= dark.min()
    assert dark.max() <= left + 301
    assert dark.max() - dark.min() > (140 if length < 30 else 230)


def ticks(scale: Scale) -> dict[str, float]:
    """Returns the numbers below a color bar, and where they are, from 0 (left) to 1 (right)."""
    sheet = Sheet([grid_of()])
    sheet.draw_color_bar(scale, "label")
    left = sheet.width - 56 - COLOR_BAR[0]
    texts = [text.get_text() for text in sheet.axes.texts[1:]]
    lines = [float(np.asarray(line.get_xdata())[0]) for line in sheet.axes.lines]
    positions = [round((x - left) / COLOR_BAR[0], 3) for x in lines]
    return dict(zip(texts, positions, strict=True))


def test_the_numbers_of_the_color_bar() -> None:
    scale = make_scale(one_hot_map().weights[0, 0], normalized=True)
    assert ticks(scale) == {"0": 0, "12\u00d7": 0.5, "24\u00d7": 1}
    scale = make_scale(one_hot_map(weight=-0.4).weights[0, 0], normalized=False)
    assert ticks(scale) == {"\u22120.4": 0, "0": 0.5, "0.4": 1}


@pytest.mark.parametrize("clip", [CLIP, (4, 40, 24), (8, 24, 60)])
def test_the_hot_cell_is_at_its_position_in_its_frames(
    clip: tuple[int, int, int],
) -> None:
    attention_map = one_hot_map()
    sheet = draw_sheet(gray_frames(clip), attention_map, title="Juggling\nlayer2", num_arrows=0)
    picture, grid = np.asarray(sheet), grid_of(clip)
    hot = 255 * STRONGEST_ALPHA * np.array(colormaps[SEQUENTIAL](1.0)[:3])
    expected = hot + (1 - STRONGEST_ALPHA) * 128
    covered = range(clip[0] // 2, clip[0])
    for frame in range(clip[0]):
        x, y = grid.point(Position(frame, 2.5 * clip[1] / 3, 3.5 * clip[2] / 4))
        color = expected if frame in covered else np.full(3, 128)
        assert_allclose(picture[int(y), int(x)], color, atol=3)


def test_arrow_and_ring_are_on_the_sheet() -> None:
    bare, full = (
        np.asarray(draw_sheet(gray_frames(), one_hot_map(), title="A", num_arrows=n)).astype(int)
        for n in (0, 1)
    )
    grid = grid_of()
    changed = np.argwhere(np.abs(full - bare)[: grid.corners[0][0] + grid.panel[0]].max(2) > 20)
    end, start = grid.point(Position(2, 20.0, 28.0)), grid.point(Position(0, 6.0, 6.0))
    assert_allclose(changed[:, 1].max(), end[0], atol=4)  # the tip is the rightmost point
    assert_allclose(changed[:, 1].min(), start[0] + 14, atol=6)  # it starts at the ring
    x, y = (round(value) for value in start)
    assert full[y, x].min() > 230  # the dot in the ring


def test_the_ring_is_at_the_pixel_of_the_query() -> None:
    pixel = (0, 7, 6)
    sheet = draw_sheet(gray_frames(), one_hot_map(), title="A", pixel=pixel, num_arrows=0)
    x, y = grid_of().point(Position(0, 7.5, 6.5))
    around = np.asarray(sheet)[round(y) - 20 : round(y) + 20, round(x) - 20 : round(x) + 20]
    assert_allclose(np.argwhere(around.min(axis=2) > 230).mean(axis=0), 20, atol=1)


def test_the_window_of_a_local_map_is_outlined_and_sets_the_unit() -> None:
    attention_map = one_hot_map(weight=0.5)
    attention_map.rows[0, 0, 0, 1, 1, 3] = 0.5  # uniform over a window of two cells
    local = dataclasses.replace(attention_map, kind="local")
    picture = np.asarray(draw_sheet(gray_frames(), local, title="A", num_arrows=0)).astype(int)
    grid = grid_of()
    for frame, (y, x) in enumerate(grid.corners):
        cut = (slice(y, y + grid.panel[0]), slice(x, x + grid.panel[1]))
        inner = np.abs(picture[cut] - 128).max(axis=2)
        if frame < 2:
            assert inner[-30:-5, -30:-5].max() < 2  # outside of the window
            continue
        rows, columns = np.nonzero(inner > 60)
        size = np.array(grid.panel)
        assert_allclose((rows.min(), columns.min()), size * (1 / 3, 3 / 4), atol=3)
        assert_allclose((rows.max(), columns.max()), size, atol=3)
        assert inner[size[0] // 2, 7 * size[1] // 8] < 2  # uniform: no heat


@pytest.mark.parametrize("weight", [-0.4, 0.0])
def test_a_response_that_is_negative_or_zero(weight: float) -> None:
    attention_map = one_hot_map(weight=weight, normalized=False)
    assert draw_sheet(gray_frames(), attention_map, title="A").mode == "RGB"


def test_labels_of_frames() -> None:
    assert label_frames([12, 20], 25.0) == [("12", "0.48 s"), ("20", "0.80 s")]
    assert label_frames(range(2)) == [("0", ""), ("1", "")]


def test_a_map_of_another_clip() -> None:
    with pytest.raises(ValueError, match="4 temporal cells over 1 frames; need at most one cell"):
        draw_sheet(gray_frames((1, 24, 32)), one_hot_map(), title="A")
