"""Draws contact sheets of pairwise attention, the weights of one query in all frames of a clip, and
describes them in sentences. `explorer/words.js` writes the same sentences; tests compare them.

The sheets extend figure 3 of Wang et al., "Non-local Neural Networks" (CVPR 2018): arrows join a
query to its strongest key positions across the frames, over heat that shows the whole map.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from videoattn.attention.maps import PairwiseMap, cells
from videoattn.explain import render
from videoattn.explain.marks import draw_arrow, draw_outline, draw_ring
from videoattn.explain.render import Position, Scale, number_text, percent
from videoattn.explain.sheet import Grid as PanelGrid
from videoattn.explain.sheet import Labels, Sheet, label_frames, stack_grids
from videoattn.types import Frames, Grid

SINK = 0.1
"""A place is called a sink if at least this fraction of all queries look at it most."""


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
        pixel: The query (frame, y, x) in `frames`. Default: the center of its cell.
        origin: The (y, x) of the crop in the video, added to the query's pixel in the text.
        words: The result of `describe_row`. Default: a description of the kind of picture.

    Raises:
        ValueError: If the pixel or the frames do not fit the map.
    """
    weights = weights_of(attention_map, sample, query)
    clip = (frames.shape[0], frames.shape[2], frames.shape[3])
    position = query_position(attention_map, query, clip, pixel)
    labels = labels or label_frames(range(clip[0]))
    scale, local = query_scale(attention_map, weights), attention_map.kind == "local"
    (grid,) = stack_grids([clip[0]], clip[1:])
    sheet = Sheet([grid])
    panels = render.resize(frames, grid.panel)
    sheet.draw_panels(grid, render.blend(panels, weights, scale), labels, marked=position.frame)
    sheet.draw_bars(grid, *render.shares_of_frames(weights, clip[0]), None)
    keys = strongest_keys(weights, num_arrows, clip)
    _draw_marks(sheet, grid, position, keys, scale)
    if local:
        frames_seen, top, left, bottom, right = window_of(weights, clip)
        for frame in frames_seen:
            start, end = Position(frame, top, left), Position(frame, bottom, right)
            draw_outline(sheet.axes, grid.point(start), grid.point(end))
    number, time = labels[position.frame]
    y, x = origin[0] + int(position.y), origin[1] + int(position.x)
    details = f"query: frame {number}{time and f' ({time})'}, x {x}, y {y}"
    _write(sheet, title, details, scale, local, words)
    parts = _legend(scale, len(keys), clip[0] / weights.shape[0], local)
    sheet.write_foot(parts, render.grid_note(attention_map.grid_k, clip, attention_map.grid_q))
    return sheet.image()


def _draw_marks(
    sheet: Sheet,
    grid: PanelGrid,
    position: Position,
    keys: list[tuple[Position, float]],
    scale: Scale,
) -> None:
    start = grid.point(position)
    for key, weight in reversed(keys):  # strongest on top
        worth = float(render.strength(torch.tensor(weight / scale.unit), scale))
        draw_arrow(sheet.axes, start, grid.point(key), strength=worth)
    draw_ring(sheet.axes, start)


def _write(sheet: Sheet, title: str, details: str, scale: Scale, local: bool, words: str) -> None:
    where = "each position of the window around it" if local else "each position of every frame"
    if scale.diverging:
        label, description = "response", f"The response of the ringed pixel to {where}"
        details += "  ·  not a probability"
    else:
        label = "attention, times the uniform weight" + (" of its window" if local else "")
        description = f"The attention of the ringed pixel to {where}"
    sheet.write_head(title, details, words or description)
    sheet.draw_color_bar(scale, label)


def query_scale(attention_map: PairwiseMap, weights: Tensor) -> Scale:
    """Returns the scale of a query's weights; for a local map, uniform over its window."""
    visible = int((weights != 0).sum()) if attention_map.kind == "local" else None
    return render.make_scale(weights, normalized=attention_map.normalized, visible=visible)


def _legend(scale: Scale, num_arrows: int, frames_per_cell: float, local: bool) -> list[str]:
    parts = ["ring: the query"]
    if local:
        parts.append("dashed: its window")
    if num_arrows:
        parts.append(f"arrows: its {num_arrows} strongest key positions; wider is stronger")
    share = "summed absolute response" if scale.diverging else "attention"
    parts.append(f"bars: each frame's share of the {share}")
    if frames_per_cell > 1:
        parts.append(f"one key position covers {frames_per_cell:.3g} frames")
    return parts


def query_position(
    attention_map: PairwiseMap, query: int, clip: Grid, pixel: Grid | None = None
) -> Position:
    """Returns the position of a query in a clip: `pixel` (frame, y, x) or, without it, the center
    of its cell.

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
    """Returns the cells of a map (T', H', W') with the largest absolute weights, largest first.
    There are at most `count`, and none is below the mean: a map with one peak has few."""
    grid = (weights.shape[0], weights.shape[1], weights.shape[2])
    flat = weights.flatten()
    order = torch.argsort(flat.abs(), descending=True, stable=True)[:count]
    least = flat.abs().double().mean() * (1 - 1e-5)  # rounding: a flat map equals its mean
    strongest = order[flat.abs()[order] >= least]
    positions = [render.cell_center(cell, grid, clip) for cell in cells(strongest, grid).tolist()]
    return list(zip(positions, flat[strongest].tolist(), strict=True))


def describe_row(
    found: PairwiseMap,
    row: int,
    *,
    name: str,
    frame: int,
    numbers: Sequence[str],
    strongest: Tensor | None = None,
) -> str:
    """Returns sentences about where a query of one clip looks.

    Args:
        row: The row of the query.
        name: The map's name.
        frame: The frame of the query in the clip.
        numbers: The number of each frame, as labels show it.
        strongest: For each key, the fraction of queries whose strongest key it is (`summarize`).
    """
    weights = found.weights[0, row]
    t, y, x = found.queries[row].tolist()
    moments = len(weights)
    covers = render.cells_of_frames(len(numbers), moments)
    mass = weights.abs().double().flatten(1).sum(1)
    total = float(mass.sum())
    shares = mass / total if total else torch.full_like(mass, 1 / moments)
    most = int(shares.argmax())
    flat = weights.flatten()
    peak = int(flat.abs().argmax())
    visible = int((flat != 0).sum()) if found.kind == "local" else flat.numel()
    ((peak_t, peak_y, peak_x),) = cells(torch.tensor([peak]), found.grid_k).tolist()
    where = f"row {peak_y + 1}, column {peak_x + 1} of {_moment(peak_t, covers, numbers)}"
    value = float(flat[peak])
    if found.normalized:
        verb, amount = "looks mostly at", f"{number_text(value * visible)} times the uniform weight"
    else:
        verb, amount = "responds mostly to", f"a response of {number_text(value)}"
    text = (
        f"Frame {numbers[frame]}, row {y + 1}, column {x + 1} of {name} {verb} "
        f"{_moment(most, covers, numbers)} ({percent(float(shares[most]))}). Its strongest place, "
        f"{where}, has {amount}."
    )
    # The key whose cell holds the center of the query's cell.
    sizes = zip((t, y, x), found.grid_k, found.grid_q, strict=True)
    if [peak_t, peak_y, peak_x] == [(2 * at + 1) * k // (2 * q) for at, k, q in sizes]:
        text += " That is the query's own place."
    if strongest is not None and float(strongest[peak]) >= SINK:
        text += f" It is a sink: {percent(float(strongest[peak]))} of all queries look here."
    return text


def _moment(moment: int, covers: Sequence[int], numbers: Sequence[str]) -> str:
    covered = [number for number, cell in zip(numbers, covers, strict=True) if cell == moment]
    first, last = covered[0], covered[-1]
    return f"frame {first}" if first == last else f"frames {first} to {last}"
