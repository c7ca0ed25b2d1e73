"""Draws contact sheets of pairwise attention: the weights of one query in all frames of a clip.

The sheets extend figure 3 of Wang et al., "Non-local Neural Networks" (CVPR 2018): arrows join a
query to its strongest key positions across the frames, over a heat map of all its weights.
"""

from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from videoattn.attention.maps import PairwiseMap, cells
from videoattn.explain import render
from videoattn.explain.render import Position, Scale
from videoattn.explain.sheet import Grid as PanelGrid
from videoattn.explain.sheet import Labels, Sheet, label_frames, stack_grids
from videoattn.explain.text import Point
from videoattn.explain.words import describe_sheet, grid_note, percent
from videoattn.types import Frames, Grid

RING_RADIUS = 13.0


class Window(NamedTuple):
    """The region of a clip that a query attends to: frames, and pixels with exclusive ends."""

    frames: list[int]
    top: float
    left: float
    bottom: float
    right: float


def draw_sheet(
    frames: Frames,
    attention_map: PairwiseMap,
    *,
    title: str,
    labels: Labels | None = None,
    sample: int = 0,
    query: int = 0,
    pixel: tuple[int, int, int] | None = None,
    origin: tuple[int, int] = (0, 0),
    num_arrows: int = 20,
    words: str = "",
) -> Image.Image:
    """Draws the attention of one query of one sample.

    Args:
        frames: The network's clip: the same frames and crop, at any resolution.
        title: The heading; a second line is drawn smaller below it.
        labels: The number and time of each frame. Default: numbers from 0.
        sample, query: The clip in the batch, and the row of the map (an index of `queries`).
        pixel: The query (frame, y, x) in `frames`. Default: the center of its cell.
        origin: The upper left (y, x) of the crop in the video, added to the query in the text.
        words: The text below the title, such as from `describe_row`. Default: what the sheet shows.

    Raises:
        ValueError: If the pixel or the frames do not fit the map, or a weight is not finite.
    """
    weights = weights_of(attention_map, sample, query)
    clip = (frames.shape[0], frames.shape[2], frames.shape[3])
    position = query_position(attention_map, query, clip, pixel)
    labels = labels or label_frames(range(clip[0]))
    scale = query_scale(attention_map, weights)
    (grid,) = stack_grids([clip[0]], clip[1:])
    sheet = Sheet([grid])
    panels = render.blend(render.resize(frames, grid.panel), weights, scale)
    sheet.draw_panels(grid, panels, labels, marked=position.frame)
    shares = render.frame_shares(weights, clip[0])
    sheet.draw_bars(grid, shares, [percent(share) for share in shares])
    keys = strongest_keys(weights, num_arrows, clip)
    window = window_of(weights, clip) if attention_map.kind == "local" else None
    _draw_marks(sheet.axes, grid, position, keys, scale, window)
    description, colors, legend = describe_sheet(attention_map, len(keys), clip[0])
    note = "" if attention_map.normalized else "  ·  not a probability"
    y, x = origin[0] + int(position.y), origin[1] + int(position.x)
    number, time = labels[position.frame]
    details = f"query: frame {number}{time and f' ({time})'}, x {x}, y {y}{note}"
    sheet.write_head(title, details, words or description)
    sheet.draw_color_bar(scale, colors)
    sheet.write_foot(legend, grid_note(attention_map.grid_k, clip, attention_map.grid_q))
    return sheet.image()


def _draw_marks(
    axes: Axes,
    grid: PanelGrid,
    position: Position,
    keys: list[tuple[Position, float]],
    scale: Scale,
    window: Window | None,
) -> None:
    for key, weight in reversed(keys):  # strongest on top
        worth = float(render.strength(torch.tensor(weight / scale.unit), scale))
        draw_arrow(axes, grid.point(position), grid.point(key), strength=worth)
    draw_ring(axes, grid.point(position))
    if window is not None:
        for frame in window.frames:
            draw_outline(axes, grid, window, frame)


def query_scale(attention_map: PairwiseMap, weights: Tensor) -> Scale:
    """Returns a query's color scale; the uniform weight of a local map is that of its window."""
    visible = int((weights != 0).sum()) if attention_map.kind == "local" else None
    return render.make_scale(weights, normalized=attention_map.normalized, visible=visible)


def query_position(
    attention_map: PairwiseMap, query: int, clip: Grid, pixel: Grid | None = None
) -> Position:
    """Returns the position of a query in a clip: `pixel` (frame, y, x), or else its cell's center.

    Raises:
        ValueError: If the pixel is outside the clip, or neither in the query's cell nor next to it.
            Neighbors are allowed, because pixels are rounded if a clip is drawn larger than the
            network's input.
    """
    t, i, j = attention_map.queries[query].tolist()
    if pixel is None:
        return render.cell_center((t, i, j), attention_map.grid_q, clip)
    sizes = zip(pixel, attention_map.grid_q, clip, strict=True)
    frame, y, x = (at * count // size for at, count, size in sizes)
    inside = all(0 <= at < size for at, size in zip(pixel, clip, strict=True))
    if not inside or frame != t or abs(y - i) > 1 or abs(x - j) > 1:
        raise ValueError(
            f"pixel (frame, y, x) = {pixel} of a clip of {clip[0]} x {clip[1]} x {clip[2]} is not "
            f"in the cell of query {query}, {(t, i, j)} of {attention_map.grid_q}; record this "
            "pixel, or omit it to mark the center of the cell"
        )
    return Position(pixel[0], pixel[1] + 0.5, pixel[2] + 0.5)


def weights_of(attention_map: PairwiseMap, sample: int, query: int) -> Tensor:
    """Returns the weights (T', H', W') of one query; raises a ValueError if one is not finite."""
    return render.finite(attention_map.weights[sample, query])


def window_of(weights: Tensor, clip: Grid) -> Window:
    """Returns the smallest window with all nonzero weights of a map (T', H', W')."""
    used = weights.nonzero() if bool(weights.any()) else torch.ones_like(weights).nonzero()
    (t0, i0, j0), (t1, i1, j1) = used.amin(0).tolist(), (used.amax(0) + 1).tolist()
    y, x = clip[1] / weights.shape[1], clip[2] / weights.shape[2]
    covers = render.cells_of_frames(clip[0], weights.shape[0])
    frames = [frame for frame, cell in enumerate(covers) if t0 <= cell < t1]
    return Window(frames, i0 * y, j0 * x, i1 * y, j1 * x)


def strongest_keys(weights: Tensor, count: int, clip: Grid) -> list[tuple[Position, float]]:
    """Returns the centers and weights of up to `count` cells of a map (T', H', W') with the
    largest absolute weights, largest first. None is below the mean: a map with one peak has few."""
    grid = (weights.shape[0], weights.shape[1], weights.shape[2])
    flat = weights.flatten()
    order = torch.argsort(flat.abs(), descending=True, stable=True)[:count]
    least = flat.abs().double().mean() * (1 - 1e-5)  # rounding: a flat map equals its mean
    strongest = order[flat.abs()[order] >= least]
    positions = [render.cell_center(cell, grid, clip) for cell in cells(strongest, grid).tolist()]
    return list(zip(positions, flat[strongest].tolist(), strict=True))


def draw_ring(axes: Axes, at: Point, *, alpha: float = 1.0) -> None:
    """Marks a query with a white ring on a dark outline, open at its center except for a dot."""
    for line_width, color, strength in ((7.0, "black", 0.7 * alpha), (3.6, "white", alpha)):
        ring = Circle(at, RING_RADIUS, fill=False, ec=color, lw=line_width, alpha=strength)
        axes.add_patch(ring).set_zorder(5)
    axes.add_patch(Circle(at, 2.2, fc="white", ec="black", lw=1.0, alpha=alpha)).set_zorder(5)


def draw_outline(axes: Axes, grid: PanelGrid, window: Window, frame: int) -> None:
    """Draws a thin dashed rectangle just inside a window, visible on any background."""
    x0, y0 = grid.point(Position(frame, window.top, window.left))
    x1, y1 = grid.point(Position(frame, window.bottom, window.right))
    for line_width, color, style, alpha in (
        (3.0, "black", "-", 0.55),
        (1.6, "white", (0, (4, 3)), 1.0),
    ):
        inset = Rectangle((x0 + 1.5, y0 + 1.5), x1 - x0 - 3, y1 - y0 - 3, fill=False, ls=style)
        inset.set(edgecolor=color, linewidth=line_width, alpha=alpha)
        axes.add_patch(inset).set_zorder(2)


def draw_arrow(axes: Axes, start: Point, end: Point, *, strength: float) -> None:
    """Draws a curved arrow from the ring around `start` to `end`. A higher strength (0 to 1) makes
    it wider and more opaque. An arrow that would end inside the ring is omitted."""
    distance = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    if distance <= RING_RADIUS + 6:
        return
    line_width = 1.0 + 2.0 * strength
    arrow = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>,head_length=0.5,head_width=0.24",
        connectionstyle=f"arc3,rad={0.13 if end[0] < start[0] else -0.13}",
        mutation_scale=10 + 6 * strength,
        shrinkA=RING_RADIUS + 2,
        shrinkB=0,
    )
    arrow.set(color="white", linewidth=line_width, alpha=0.45 + 0.55 * strength)
    arrow.set(capstyle="round", joinstyle="miter", zorder=3 + strength)
    arrow.set_path_effects([withStroke(linewidth=line_width + 2.4, foreground="#000000")])
    axes.add_patch(arrow)
