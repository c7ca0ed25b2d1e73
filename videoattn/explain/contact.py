"""Contact sheets of several clips, such as the inputs of a network, each under its heading."""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

from PIL import Image

from videoattn.explain.marks import LINE, SOFT, draw_text
from videoattn.explain.render import resize
from videoattn.explain.sheet import HEAD, MARGIN, Grid, Labels, Sheet, make_grid
from videoattn.types import Frames

MOST_COLUMNS, TALLEST, HEADING, BETWEEN = 16, 200, 40, 18


class Clip(NamedTuple):
    """A clip, its heading (left, bold) and details (right), and a label for each frame."""

    frames: Frames
    heading: str
    details: str
    labels: Labels


def draw_clips(
    clips: Sequence[Clip], *, title: str, details: str, description: str, legend: Sequence[str]
) -> Image.Image:
    """Draws clips, which may differ in size, one below the other.

    Args:
        title: The heading of the sheet; a second line is drawn smaller, before the details.
        description: What the sheet shows.
        legend: What the marks mean.
    """
    grids: list[Grid] = []
    for clip in clips:
        num_frames, _, height, width = clip.frames.shape
        grid = make_grid(
            num_frames,
            (height, width),
            ceil(num_frames / ceil(num_frames / MOST_COLUMNS)),  # full rows
            tallest=TALLEST,
            top=grids[-1].bottom + BETWEEN if grids else HEAD,
            heading=HEADING,
            gap=10,
            below=8,
        )
        grids.append(grid)
    sheet = Sheet.around(grids)
    sheet.write_head(title, details, description)
    left, right = MARGIN, sheet.width - MARGIN
    room = 0.48 * (right - left)
    for clip, grid in zip(clips, grids, strict=True):
        y = grid.top + 30
        sheet.axes.plot([left, right], [y - 26, y - 26], color=LINE, lw=1)
        draw_text(sheet.axes, (left, y), clip.heading, size=17, bold=True, room=room)
        at = (right, y)
        draw_text(sheet.axes, at, clip.details, size=14, color=SOFT, align="right", room=room)
        sheet.draw_panels(grid, resize(clip.frames, grid.panel), clip.labels)
    sheet.write_foot(legend)
    return sheet.image()
