"""A contact sheet: all frames of a clip, and where one of its pixels looks in each of them.

The figure of Wang et al., "Non-local Neural Networks" (CVPR 2018), figure 3: the strongest key
positions joined to the query by arrows that run across the frames; here over the whole map.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image

from videoattn.attention.record import AttentionMap
from videoattn.explain.geometry import (
    Key,
    Position,
    frame_shares,
    query_position,
    strongest_keys,
    weights_of,
)
from videoattn.explain.layout import MARGIN, Layout, make_layout
from videoattn.explain.marks import (
    SOFT,
    Picture,
    canvas_axes,
    draw_arrow,
    draw_frame,
    draw_ring,
    draw_text,
    to_picture,
)
from videoattn.explain.render import Scale, blend, colours, make_scale, resize, strength
from videoattn.types import Frames

BAR_WIDTH, BAR_HEIGHT, BAR_TOP = 300, 14, 58


def draw_sheet(
    frames: Frames,
    attention_map: AttentionMap,
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
    scale = make_scale(weights, normalised=attention_map.normalised)

    picture = np.full((layout.height, layout.width, 3), 255, np.uint8)
    panels = blend(resize(frames, layout.panel), weights, scale).permute(0, 2, 3, 1).numpy()
    for panel, (y, x) in zip(panels, layout.corners, strict=True):
        picture[y : y + layout.panel[0], x : x + layout.panel[1]] = panel
    _paint_colour_bar(picture, scale)

    axes = canvas_axes(picture)
    _write_head(axes, layout, title, _query_line(position, labels, origin, scale))
    _label_colour_bar(axes, layout, scale)
    _write_panels(axes, layout, labels, frame_shares(weights, clip[0]), position.frame)
    keys = strongest_keys(weights, num_arrows, clip)
    _draw_marks(axes, layout, scale, position, keys)
    _write_foot(axes, layout, scale, len(keys), clip[0] / weights.shape[0])
    return Image.fromarray(to_picture(axes))


def label_frames(
    num_frames: int, frame_numbers: Sequence[int] | None, frames_per_second: float | int | None
) -> list[tuple[str, str]]:
    """For each frame its number and, where the rate is known, its time in seconds."""
    numbers = range(num_frames) if frame_numbers is None else frame_numbers
    if len(numbers) != num_frames:
        raise ValueError(
            f"frame_numbers: {len(numbers)} numbers for {num_frames} frames; give one for each "
            "frame, or none"
        )
    times = [f"{n / frames_per_second:.2f} s" if frames_per_second else "" for n in numbers]
    return [(str(number), time) for number, time in zip(numbers, times, strict=True)]


def _query_line(
    position: Position, labels: list[tuple[str, str]], origin: tuple[int, int], scale: Scale
) -> str:
    number, time = labels[position.frame]
    time = f" ({time})" if time else ""
    y, x = origin[0] + int(position.y), origin[1] + int(position.x)
    line = f"query: frame {number}{time}, x {x}, y {y}"
    return f"{line}  ·  response, not a probability" if scale.diverging else line


def _write_head(axes: Axes, layout: Layout, title: str, query_line: str) -> None:
    heading, _, rest = title.partition("\n")
    room = layout.width - 2 * MARGIN - BAR_WIDTH - 40
    draw_text(axes, (MARGIN - 1, 60), heading, size=27, bold=True, room=room)
    line = "  ·  ".join(filter(None, [rest, query_line]))
    draw_text(axes, (MARGIN, 90), line, colour=SOFT, room=room)


def _paint_colour_bar(picture: Picture, scale: Scale) -> None:
    """As the colours look over a mid-grey frame, so that the bar reads as the panels do."""
    values = torch.linspace(scale.bottom, scale.top, BAR_WIDTH)
    colour, alpha = colours(values, scale)
    row = colour * alpha[:, None] + 0.5 * (1 - alpha[:, None])
    left = picture.shape[1] - MARGIN - BAR_WIDTH
    picture[BAR_TOP : BAR_TOP + BAR_HEIGHT, left : left + BAR_WIDTH] = (row * 255).byte().numpy()


def _label_colour_bar(axes: Axes, layout: Layout, scale: Scale) -> None:
    left, below = layout.width - MARGIN - BAR_WIDTH, BAR_TOP + BAR_HEIGHT + 18
    label = "response" if scale.diverging else "attention, times the uniform weight"
    draw_text(axes, (left, BAR_TOP - 9), label, size=13, colour=SOFT)
    ticks = np.asarray(MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(scale.bottom, scale.top))
    for value in ticks[(ticks >= scale.bottom) & (ticks <= scale.top)].tolist():
        x = left + BAR_WIDTH * (value - scale.bottom) / (scale.top - scale.bottom)
        axes.plot([x, x], [BAR_TOP + BAR_HEIGHT, BAR_TOP + BAR_HEIGHT + 4], color=SOFT, lw=1)
        text = f"{value:.3g}".replace("-", "\u2212")
        text += "" if scale.diverging or value == 0 else "\u00d7"
        draw_text(axes, (x, below), text, size=13, colour=SOFT, align="center")


def _write_foot(
    axes: Axes, layout: Layout, scale: Scale, num_arrows: int, frames_per_cell: float
) -> None:
    parts = ["ring: the query"]
    if num_arrows > 1:
        parts.append(f"arrows: its {num_arrows} strongest key positions, wider where stronger")
    elif num_arrows:
        parts.append("arrow: its strongest key position")
    share = "summed |response|" if scale.diverging else "attention"
    parts.append(f"bars: each frame's share of the {share}")
    if frames_per_cell > 1:
        parts.append(f"one key position covers {frames_per_cell:.3g} frames")
    text = "  ·  ".join(parts)
    draw_text(axes, (MARGIN, layout.height - 30), text, size=13, colour=SOFT)


def _write_panels(
    axes: Axes,
    layout: Layout,
    labels: list[tuple[str, str]],
    shares: list[float],
    query_frame: int,
) -> None:
    height, width = layout.panel
    for frame, (y, x) in enumerate(layout.corners):
        number, time = labels[frame]
        marked = frame == query_frame
        draw_text(axes, (x, y - 9), number, size=14, bold=marked)
        draw_text(axes, (x + width, y - 9), time, size=14, colour=SOFT, align="right")
        length = (width - 60) * shares[frame] / max(shares)
        axes.fill_between([x, x + length], y + height + 10, y + height + 18, color=SOFT, lw=0)
        draw_text(axes, (x + length + 8, y + height + 19), f"{100 * shares[frame]:.0f} %", size=14)
    draw_frame(axes, layout.corners[query_frame], layout.panel)


def _draw_marks(
    axes: Axes, layout: Layout, scale: Scale, position: Position, keys: list[Key]
) -> None:
    start = layout.point(position)
    strengths = strength(torch.tensor([key.weight for key in keys]) / scale.unit, scale).tolist()
    for key, worth in zip(reversed(keys), reversed(strengths), strict=True):  # the strongest on top
        draw_arrow(axes, start, layout.point(key.position), strength=worth)
    draw_ring(axes, start)
