"""A contact sheet: all frames of a clip, and where one of its pixels looks in each of them.

The figure of Wang et al., "Non-local Neural Networks" (CVPR 2018), figure 3: the strongest key
positions joined to the query by arrows that run across the frames; here over the whole map.
"""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from videoattn.attention.record import PairwiseMap
from videoattn.explain.geometry import (
    Key,
    Position,
    frame_shares,
    query_position,
    strongest_keys,
    weights_of,
    window_of,
)
from videoattn.explain.layout import Layout, make_layout
from videoattn.explain.marks import (
    canvas_axes,
    draw_arrow,
    draw_frame,
    draw_outline,
    draw_ring,
    to_picture,
)
from videoattn.explain.page import (
    Labels,
    bar_corner,
    blank,
    draw_bars,
    label_colour_bar,
    label_frames,
    paint_colour_bar,
    paste_panels,
    write_foot,
    write_head,
    write_labels,
)
from videoattn.explain.render import Scale, blend, make_scale, resize, strength
from videoattn.types import Frames


def draw_sheet(
    frames: Frames,
    attention_map: PairwiseMap,
    *,
    title: str,
    sample: int = 0,
    query: int = 0,
    pixel: tuple[int, int, int] | None = None,
    frame_numbers: Sequence[int] | None = None,
    frames_per_second: float | int | None = None,
    origin: tuple[int, int] = (0, 0),
    num_arrows: int = 20,
) -> Image.Image:
    """The sheet of one query of one sample, as an RGB image.

    frames: the clip as the network saw it: the same frames and crop, at any resolution.
    title: its first line is the heading; a second one stands smaller below.
    pixel: the (frame, y, x) of `frames` that was asked for; else the query cell's centre is marked.
    frame_numbers: the frames' places in their video, frames_per_second: of that video, for labels.
    origin: the (y, x) of the frames' corner in that video, where they are a crop of it: added to
        the query's pixel where the sheet names it.

    Raises:
        ValueError: sample, query, pixel or the frames do not belong to the map.
    """
    weights = weights_of(attention_map, sample, query)
    clip = (frames.shape[0], frames.shape[2], frames.shape[3])
    position = query_position(attention_map, query, clip, pixel)
    labels = label_frames(clip[0], frame_numbers, frames_per_second)
    layout = make_layout(*clip)
    scale, local = query_scale(attention_map, weights), attention_map.kind == "local"

    picture = blank(layout.width, layout.height)
    paste_panels(picture, layout, blend(resize(frames, layout.panel), weights, scale))
    corner = bar_corner(layout.width)
    paint_colour_bar(picture, scale, corner)

    axes = canvas_axes(picture)
    details = _query_line(position, labels, origin, scale)
    write_head(axes, layout.width, title, details, _says(scale, local))
    uniform = "attention, times the uniform weight" + (" of its window" if local else "")
    label = "response" if scale.diverging else uniform
    label_colour_bar(axes, scale, corner, label, times=not scale.diverging)
    write_labels(axes, layout, labels, marked=position.frame)
    shares = frame_shares(weights, clip[0])
    draw_bars(axes, layout, shares, [f"{100 * share:.0f} %" for share in shares])
    draw_frame(axes, layout.corners[position.frame], layout.panel)
    if local:
        _outline_window(axes, layout, weights)
    keys = strongest_keys(weights, num_arrows, clip)
    _draw_marks(axes, layout, scale, position, keys)
    parts = _legend(scale, len(keys), clip[0] / weights.shape[0], local)
    write_foot(axes, layout.width, layout.height, parts)
    return Image.fromarray(to_picture(axes))


def query_scale(attention_map: PairwiseMap, weights: Tensor) -> Scale:
    """The scale of one query's weights. In a local map uniform means uniform in its window."""
    visible = int((weights != 0).sum()) if attention_map.kind == "local" else None
    return make_scale(weights, normalized=attention_map.normalized, visible=visible)


def _query_line(position: Position, labels: Labels, origin: tuple[int, int], scale: Scale) -> str:
    number, time = labels[position.frame]
    time = f" ({time})" if time else ""
    y, x = origin[0] + int(position.y), origin[1] + int(position.x)
    line = f"query: frame {number}{time}, x {x}, y {y}"
    return f"{line}  ·  response, not a probability" if scale.diverging else line


def _says(scale: Scale, local: bool) -> str:
    what = "how it responds to" if scale.diverging else "how much it attends to"
    where = "each position of the window around it" if local else "each position of every frame"
    return f"Where the ringed pixel looks: {what} {where}"


def _legend(scale: Scale, num_arrows: int, frames_per_cell: float, local: bool) -> list[str]:
    parts = ["ring: the query"]
    if local:
        parts.append("dashed: its window")
    if num_arrows > 1:
        parts.append(f"arrows: its {num_arrows} strongest key positions, wider where stronger")
    elif num_arrows:
        parts.append("arrow: its strongest key position")
    share = "summed |response|" if scale.diverging else "attention"
    parts.append(f"bars: each frame's share of the {share}")
    if frames_per_cell > 1:
        parts.append(f"one key position covers {frames_per_cell:.3g} frames")
    return parts


def _outline_window(axes: Axes, layout: Layout, weights: Tensor) -> None:
    window = window_of(weights, layout.clip)
    for frame in window.frames:
        corners = [
            layout.point(Position(frame, *at))
            for at in ((window.top, window.left), (window.bottom, window.right))
        ]
        draw_outline(axes, *corners)


def _draw_marks(
    axes: Axes, layout: Layout, scale: Scale, position: Position, keys: list[Key]
) -> None:
    start = layout.point(position)
    strengths = strength(torch.tensor([key.weight for key in keys]) / scale.unit, scale).tolist()
    for key, worth in zip(reversed(keys), reversed(strengths), strict=True):  # the strongest on top
        draw_arrow(axes, start, layout.point(key.position), strength=worth)
    draw_ring(axes, start)
