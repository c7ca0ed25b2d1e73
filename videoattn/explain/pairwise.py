"""Draws contact sheets of pairwise attention: the weights of one query in all frames of a clip.

They extend figure 3 of Wang et al., "Non-local Neural Networks" (CVPR 2018): arrows join a query
to its strongest key positions across the frames, over heat that shows the whole map.
"""

import torch
from PIL import Image
from torch import Tensor

from videoattn.attention.maps import PairwiseMap
from videoattn.explain import geometry
from videoattn.explain.geometry import Position
from videoattn.explain.marks import draw_arrow, draw_outline, draw_ring
from videoattn.explain.render import Scale, blend, make_scale, resize, strength
from videoattn.explain.sheet import Grid, Labels, Sheet, label_frames, stack_grids
from videoattn.explain.words import grid_note, shares_of_frames
from videoattn.types import Frames


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
    weights = geometry.weights_of(attention_map, sample, query)
    clip = (frames.shape[0], frames.shape[2], frames.shape[3])
    position = geometry.query_position(attention_map, query, clip, pixel)
    labels = labels or label_frames(range(clip[0]))
    scale, local = query_scale(attention_map, weights), attention_map.kind == "local"
    (grid,) = stack_grids([clip[0]], clip[1:])
    sheet = Sheet([grid])
    panels = resize(frames, grid.panel)
    sheet.draw_panels(grid, blend(panels, weights, scale), labels, marked=position.frame)
    sheet.draw_bars(grid, *shares_of_frames(weights, clip[0]), None)
    keys = geometry.strongest_keys(weights, num_arrows, clip)
    _draw_marks(sheet, grid, position, keys, scale)
    if local:
        frames_seen, top, left, bottom, right = geometry.window_of(weights, clip)
        for frame in frames_seen:
            start, end = Position(frame, top, left), Position(frame, bottom, right)
            draw_outline(sheet.axes, grid.point(start), grid.point(end))
    number, time = labels[position.frame]
    y, x = origin[0] + int(position.y), origin[1] + int(position.x)
    details = f"query: frame {number}{time and f' ({time})'}, x {x}, y {y}"
    _write(sheet, title, details, scale, local, words)
    parts = _legend(scale, len(keys), clip[0] / weights.shape[0], local)
    sheet.write_foot(parts, grid_note(attention_map.grid_k, clip))
    return sheet.image()


def _draw_marks(
    sheet: Sheet, grid: Grid, position: Position, keys: list[tuple[Position, float]], scale: Scale
) -> None:
    start = grid.point(position)
    for key, weight in reversed(keys):  # strongest on top
        worth = float(strength(torch.tensor(weight / scale.unit), scale))
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
    return make_scale(weights, normalized=attention_map.normalized, visible=visible)


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
