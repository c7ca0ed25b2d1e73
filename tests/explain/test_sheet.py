import dataclasses

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.patches import Circle
from numpy.testing import assert_allclose

from tests.explain.maps import CLIP, grey_frames, one_hot_map
from videoattn.explain import draw_sheet
from videoattn.explain.geometry import Position
from videoattn.explain.layout import choose_columns, make_layout
from videoattn.explain.marks import canvas_axes, draw_arrow, draw_ring, draw_text, to_picture
from videoattn.explain.render import SEQUENTIAL, STRONGEST_ALPHA
from videoattn.explain.sheet import label_frames


@pytest.mark.parametrize(
    ("num_frames", "aspect", "columns"),
    [(1, 1.0, 1), (4, 1.3, 4), (8, 1.0, 4), (8, 4 / 3, 4), (16, 1.0, 4), (32, 1.0, 8)],
)
def test_columns(num_frames: int, aspect: float, columns: int) -> None:
    assert choose_columns(num_frames, aspect) == columns


@pytest.mark.parametrize(
    "clip", [(1, 24, 32), (8, 72, 72), (16, 112, 112), (32, 90, 160), (7, 64, 40)]
)
def test_panels_lie_on_the_sheet_and_apart(clip: tuple[int, int, int]) -> None:
    layout = make_layout(*clip)
    taken = np.zeros((layout.height, layout.width), int)
    for y, x in layout.corners:
        taken[y : y + layout.panel[0], x : x + layout.panel[1]] += 1
    assert taken.max() == 1
    assert taken.sum() == clip[0] * layout.panel[0] * layout.panel[1]
    assert_allclose(layout.panel[1] / layout.panel[0], clip[2] / clip[1], rtol=0.01)


def test_a_point_of_the_clip_on_the_sheet() -> None:
    layout = make_layout(*CLIP)
    y, x = layout.corners[2]
    expected = (x + layout.panel[1] / 4, y + layout.panel[0] / 2)
    assert_allclose(layout.point(Position(2, 12.0, 8.0)), expected)


def test_an_arrow_ends_at_the_key_and_starts_at_the_ring() -> None:
    axes = canvas_axes(np.full((200, 300, 3), 128, np.uint8))
    draw_arrow(axes, (60.0, 50.0), (240.0, 160.0), strength=1.0)
    y, x = np.argwhere(to_picture(axes).min(axis=2) > 200).T + 0.5
    to_end, from_start = np.hypot(x - 240, y - 160), np.hypot(x - 60, y - 50)
    assert to_end.min() < 2.5  # the tip is finer than a pixel
    assert_allclose(from_start.min(), 15.0, atol=2)
    assert x.max() < 241.5
    assert y.max() < 161.5
    draw_arrow(axes, (60.0, 50.0), (66.0, 50.0), strength=1.0)  # inside the ring: left out
    assert len(axes.patches) == 1


def test_a_ring_stands_around_its_centre() -> None:
    axes = canvas_axes(np.zeros((80, 100, 3), np.uint8))
    draw_ring(axes, (40.0, 30.0))
    assert {patch.get_center() for patch in axes.patches if isinstance(patch, Circle)} == {(40, 30)}
    white = np.argwhere(to_picture(axes).min(axis=2) > 200) + 0.5
    assert_allclose(white.mean(axis=0), (30.0, 40.0), atol=0.3)


def test_text_may_hold_what_would_be_mathematics() -> None:
    axes = canvas_axes(np.full((40, 200, 3), 255, np.uint8))
    draw_text(axes, (10, 30), "Cost_$5$ {up}")
    assert to_picture(axes).min() < 100


def test_text_keeps_to_its_room() -> None:
    for text in ("a title that is rather long", "one that is very, very long " * 4):
        axes = canvas_axes(np.full((40, 400, 3), 255, np.uint8))
        draw_text(axes, (10, 30), text, size=20, room=200)
        dark = np.argwhere(to_picture(axes).min(axis=2) < 200)[:, 1]
        assert 150 < dark.max() <= 216


def test_the_sheet_shows_the_hot_cell_where_it_lies() -> None:
    sheet = draw_sheet(
        grey_frames(), one_hot_map(), title="Juggling, 64 %\nsmall · layer2.1", num_arrows=0
    )
    picture, layout = np.asarray(sheet), make_layout(*CLIP)
    assert picture.shape == (layout.height, layout.width, 3)
    hot = 255 * STRONGEST_ALPHA * np.array(colormaps[SEQUENTIAL](1.0)[:3])
    expected = hot + (1 - STRONGEST_ALPHA) * 128
    for frame in (2, 3):
        x, y = layout.point(Position(frame, 20.0, 28.0))
        assert_allclose(picture[int(y), int(x)], expected, atol=3)
    x, y = layout.point(Position(1, 20.0, 28.0))
    assert_allclose(picture[int(y), int(x)], 128, atol=1)


def test_arrow_and_ring_are_on_the_sheet() -> None:
    attention_map = one_hot_map()
    bare = np.asarray(draw_sheet(grey_frames(), attention_map, title="A", num_arrows=0)).astype(int)
    full = np.asarray(draw_sheet(grey_frames(), attention_map, title="A", num_arrows=1)).astype(int)
    layout = make_layout(*CLIP)
    changed = np.argwhere(np.abs(full - bare)[: layout.corners[0][0] + layout.panel[0]].max(2) > 20)
    end = layout.point(Position(2, 20.0, 28.0))
    start = layout.point(Position(0, 6.0, 6.0))
    assert_allclose(changed[:, 1].max(), end[0], atol=4)  # the tip is the rightmost point
    assert_allclose(changed[:, 1].min(), start[0] + 14, atol=6)  # it leaves the ring
    x, y = (round(value) for value in start)
    assert full[y, x].min() > 230  # the ring's own dot


def test_the_window_of_a_local_map_is_outlined_and_its_own_unit() -> None:
    attention_map = one_hot_map(weight=0.5)
    attention_map.weights[0, 0, 1, 1, 3] = 0.5  # two cells are seen: uniform
    local = dataclasses.replace(attention_map, kind="local")
    seen = np.asarray(draw_sheet(grey_frames(), local, title="A", num_arrows=0)).astype(int)
    layout = make_layout(*CLIP)
    for frame, (y, x) in enumerate(layout.corners):
        cut = (slice(y, y + layout.panel[0]), slice(x, x + layout.panel[1]))
        inner = np.abs(seen[cut] - 128).max(axis=2)
        if frame < 2:
            assert inner[-30:-5, -30:-5].max() < 2  # the window does not reach it
            continue
        rows, columns = np.nonzero(inner > 60)
        size = np.array(layout.panel)
        assert_allclose((rows.min(), columns.min()), size * (1 / 3, 3 / 4), atol=3)
        assert_allclose((rows.max(), columns.max()), size, atol=3)
        assert inner[size[0] // 2, 7 * size[1] // 8] < 2  # uniform in the window: no heat


def test_a_response_is_named_one() -> None:
    for weight in (-0.4, 0.0):
        attention_map = one_hot_map(weight=weight, normalized=False)
        assert draw_sheet(grey_frames(), attention_map, title="A").mode == "RGB"


def test_labels_of_frames() -> None:
    assert label_frames(2, [12, 20], 25.0) == [("12", "0.48 s"), ("20", "0.80 s")]
    assert label_frames(2, None, None) == [("0", ""), ("1", "")]
    with pytest.raises(
        ValueError, match="3 numbers for 2 frames; give one for each frame, or none"
    ):
        label_frames(2, [1, 2, 3], None)


def test_a_pixel_outside_the_clip() -> None:
    with pytest.raises(ValueError, match="y 24 is outside the clip; allowed is 0 to 23"):
        draw_sheet(grey_frames(), one_hot_map(), title="A", pixel=(0, 24, 0))
