"""Clips one below the other, each a row of frames under its heading: what a network is shown."""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

from matplotlib.axes import Axes
from PIL import Image

from videoattn.explain.layout import (
    CONTENT_WIDTH,
    FOOT,
    GAP_Y,
    HEAD,
    LABEL,
    LEAST_CONTENT,
    MARGIN,
    Layout,
)
from videoattn.explain.marks import SOFT, canvas_axes, draw_text, to_picture
from videoattn.explain.page import (
    Labels,
    blank,
    paste_panels,
    write_foot,
    write_head,
)
from videoattn.explain.render import resize
from videoattn.types import Frames

MOST_COLUMNS = 16
TALLEST = 200  # pixels of a frame
GAP_X = 10
HEADING = 40
BETWEEN = 18  # clips


class Clip(NamedTuple):
    """A row: its frames, what stands over it at the left (bold) and at the right, and over each
    frame."""

    frames: Frames
    heading: str
    details: str
    labels: Labels


def draw_clips(
    clips: Sequence[Clip], *, title: str, details: str, description: str, legend: Sequence[str]
) -> Image.Image:
    """A sheet of clips, which may differ in size, as an RGB image.

    title: the heading, above details and what the sheet shows. legend: what the marks mean.
    """
    layouts, top = [], HEAD
    for clip in clips:
        layouts.append(_layout(clip, top))
        top = layouts[-1].height
    width = max(layout.width for layout in layouts)
    height = top - BETWEEN + FOOT
    picture = blank(width, height)
    for clip, layout in zip(clips, layouts, strict=True):
        paste_panels(picture, layout, resize(clip.frames, layout.panel))
    axes = canvas_axes(picture)
    write_head(axes, width, title, details, description)
    for clip, layout in zip(clips, layouts, strict=True):
        _write_heading(axes, clip, layout, width)
        _write_labels(axes, layout, clip.labels)
    write_foot(axes, width, height, legend)
    return Image.fromarray(to_picture(axes))


def _layout(clip: Clip, top: int) -> Layout:
    """Of one clip, from `top` to its own height."""
    num_frames, _, height, width = clip.frames.shape
    columns = ceil(num_frames / ceil(num_frames / MOST_COLUMNS))  # full lines
    panel_width = (CONTENT_WIDTH - (columns - 1) * GAP_X) // columns
    panel_width = max(1, min(panel_width, TALLEST * width // height))
    panel_height = max(1, round(panel_width * height / width))
    line = LABEL + panel_height + GAP_Y // 2
    content = max(columns * (panel_width + GAP_X) - GAP_X, LEAST_CONTENT)
    return Layout(
        width=content + 2 * MARGIN,
        height=top + HEADING + ceil(num_frames / columns) * line + BETWEEN,
        panel=(panel_height, panel_width),
        clip=(num_frames, height, width),
        corners=tuple(
            (
                top + HEADING + (i // columns) * line + LABEL,
                MARGIN + (i % columns) * (panel_width + GAP_X),
            )
            for i in range(num_frames)
        ),
        headings=(top,),
    )


def _write_heading(axes: Axes, clip: Clip, layout: Layout, width: int) -> None:
    right, y = width - MARGIN, layout.headings[0] + 30
    axes.plot([MARGIN, right], [y - 26, y - 26], color="#d2d2d7", lw=1)
    room = 0.48 * (right - MARGIN)
    draw_text(axes, (MARGIN, y), clip.heading, size=17, bold=True, room=room)
    draw_text(axes, (right, y), clip.details, size=14, colour=SOFT, align="right", room=room)


def _write_labels(axes: Axes, layout: Layout, labels: Labels) -> None:
    """The time right behind the number: at the panel's end it would belong to the next one."""
    width = layout.panel[1]
    behind = 9 * max(len(number) for number, _ in labels) + 7
    for (number, time), (y, x) in zip(labels, layout.corners, strict=True):
        draw_text(axes, (x, y - 8), number, size=13, room=behind - 4)
        draw_text(axes, (x + behind, y - 8), time, size=13, colour=SOFT, room=width - behind)
