"""Draws contact sheets: the frames of a clip in a grid, with header, color bar and labels."""

from collections.abc import Sequence
from math import ceil, log
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from videoattn.explain.render import Position, Scale, colors_of, resize
from videoattn.explain.text import (
    ACCENT,
    INK,
    LINE,
    SOFT,
    canvas_axes,
    draw_over,
    draw_text,
    wrapped,
)
from videoattn.types import Frames

MARGIN, GAP = 56, 20
HEAD, FOOT = 146, 84
LABEL, BAR = 30, 50  # pixels above and below a panel
CONTENT_WIDTH, LEAST_CONTENT = 1640, 880  # the header needs some room
TALLEST_PANEL, TALLEST_CONTENT = 460, 1500
PLEASANT_ASPECT = 1.8  # width / height of all panels together
MOST_COLUMNS, TALLEST, HEADING, BETWEEN = 16, 200, 40, 18  # for `draw_clips`
COLOR_BAR = (300, 14)  # width, height

Panels = UInt8[Tensor, "P 3 H2 W2"]
Labels = list[tuple[str, str]]
"""For each frame, the texts of its number and of its time, or ""."""


class Grid(NamedTuple):
    """A grid of panels, in pixels. `corners` are the upper left (y, x) of panels; `panel`, `frame`:
    (height, width) of a panel and a video frame; `top`, `bottom`: edges with heading and bars."""

    corners: list[tuple[int, int]]
    panel: tuple[int, int]
    frame: tuple[int, int]
    top: int
    bottom: int
    right: int

    def point(self, position: Position) -> tuple[float, float]:
        """Returns the (x, y) on the sheet of a position in the clip."""
        y, x = self.corners[position.frame]
        return (
            x + position.x * self.panel[1] / self.frame[1],
            y + position.y * self.panel[0] / self.frame[0],
        )


def make_grid(
    count: int,
    frame: tuple[int, int],
    columns: int,
    *,
    tallest: int,
    top: int = HEAD,
    heading: int = 0,
    gap: int = GAP,
    below: int = BAR,
) -> Grid:
    """Lays out `count` panels as large as the sheet's width and `tallest`, their height, allow."""
    width = (CONTENT_WIDTH - (columns - 1) * gap) // columns
    width = max(min(width, tallest * frame[1] // frame[0]), 1)
    height = max(round(width * frame[0] / frame[1]), 1)
    row = LABEL + height + below
    y, bottom = top + heading + LABEL, top + heading + ceil(count / columns) * row
    cells = [divmod(index, columns) for index in range(count)]
    corners = [(y + i * row, MARGIN + j * (width + gap)) for i, j in cells]
    right = MARGIN + columns * (width + gap) - gap
    return Grid(corners, (height, width), frame, top, bottom, right)


def choose_columns(count: int, aspect: float, groups: int = 1) -> int:
    """Returns the number of columns for `count` panels of an aspect ratio (width / height).

    It fills the rows, and gives `groups` such grids, one below the other, a pleasant shape.
    """
    if count <= 4:
        return count

    def cost(columns: int) -> float:
        rows = ceil(count / columns)
        whole = columns * aspect / (rows * groups)
        return abs(log(whole / PLEASANT_ASPECT)) + 6 * (columns * rows / count - 1)

    return min(range(2, min(count, 12) + 1), key=cost)


def stack_grids(counts: Sequence[int], frame: tuple[int, int], *, heading: int = 0) -> list[Grid]:
    """Lays out groups of panels, one below the other, each with a heading of `heading` pixels."""
    columns = choose_columns(max(counts), frame[1] / frame[0], len(counts))
    rows = sum(ceil(count / columns) for count in counts)
    tallest = min(TALLEST_PANEL, TALLEST_CONTENT // rows - LABEL - BAR)
    grids: list[Grid] = []
    for count in counts:
        top = grids[-1].bottom if grids else HEAD
        grids.append(make_grid(count, frame, columns, tallest=tallest, top=top, heading=heading))
    return grids


def label_frames(numbers: Sequence[int], frames_per_second: float | int | None = None) -> Labels:
    """Returns frame numbers as text and, if the frame rate is known, times in seconds."""
    times = [f"{n / frames_per_second:.2f} s" if frames_per_second else "" for n in numbers]
    return [(str(number), time) for number, time in zip(numbers, times, strict=True)]


class Sheet:
    """A white picture with a header, grids of panels and a footer.

    Pixels are painted into `picture`; text and marks are drawn on `axes`.
    """

    def __init__(self, grids: Sequence[Grid], *, below: int = 0) -> None:
        """Creates a sheet with the grids, and `below` free pixels below them."""
        self.width = max(MARGIN + LEAST_CONTENT, *(grid.right for grid in grids)) + MARGIN
        self.height = grids[-1].bottom + below + FOOT
        self.picture = Image.new("RGB", (self.width, self.height), "white")
        self.axes = canvas_axes(self.picture.size)

    def image(self) -> Image.Image:
        return draw_over(self.picture, self.axes)

    def write_head(self, title: str, details: str, description: str) -> None:
        """Writes the title, its second line with the details, and the lines of the description."""
        heading, _, rest = title.partition("\n")
        room = self.width - 2 * MARGIN - COLOR_BAR[0] - 40
        draw_text(self.axes, (MARGIN - 1, 60), heading, size=27, bold=True, room=room)
        line = "  ·  ".join(filter(None, [rest, details]))
        draw_text(self.axes, (MARGIN, 90), line, color=SOFT, room=room)
        lines, room = description.split("\n"), self.width - 2 * MARGIN
        if len(lines) == 1:  # there is room for two
            lines = wrapped(description, room)
        for number, text in enumerate(lines):
            draw_text(self.axes, (MARGIN, 116 + 22 * number), text, room=room)

    def write_foot(self, parts: Sequence[str], note: str = "") -> None:
        """Writes the meanings of the marks in one line, and a note above it."""
        for y, text in ((52, note), (30, "  ·  ".join(parts))):
            at, room = (MARGIN, self.height - y), self.width - 2 * MARGIN
            draw_text(self.axes, at, text, size=13, color=SOFT, room=room)

    def draw_color_bar(self, scale: Scale, label: str, *, solid: bool = False) -> None:
        """Draws a color bar: colors over gray, as over frames, or solid colors for charts. Numbers
        are multiples if the unit is the uniform weight."""
        (width, height), left, top = COLOR_BAR, self.width - MARGIN - COLOR_BAR[0], 58
        row, alpha = colors_of(torch.linspace(scale.bottom, scale.top, width), scale)
        if not solid:
            row = row * alpha[:, None] + 0.5 * (1 - alpha[:, None])
        bar = (row * 255).byte().expand(height, width, 3)
        self.picture.paste(Image.fromarray(bar.numpy()), (left, top))
        draw_text(self.axes, (left, top - 9), label, size=13, color=SOFT, room=width)
        middle = scale.least if scale.diverging else (scale.bottom + scale.top) / 2
        y = top + height
        for value in (scale.bottom, middle, scale.top):
            x = left + width * (value - scale.bottom) / (scale.top - scale.bottom)
            self.axes.plot([x, x], [y, y + 4], color=SOFT, lw=1)
            at = (x, y + 18)
            draw_text(self.axes, at, scale.text(value), size=13, color=SOFT, align="center")

    def draw_panels(self, grid: Grid, panels: Panels, labels: Labels, *, marked: int = -1) -> None:
        """Pastes panels, writes number and time above each, and frames the marked panel."""
        height, width = grid.panel
        for index, (panel, (y, x)) in enumerate(zip(panels, grid.corners, strict=True)):
            self.picture.paste(Image.fromarray(panel.permute(1, 2, 0).numpy()), (x, y))
            number, time = labels[index]
            bold = index == marked
            end = draw_text(self.axes, (x, y - 9), number, size=14, bold=bold, room=width) + 8
            if x + width - end > 45:
                draw_text(self.axes, (end, y - 9), time, size=14, color=SOFT, room=x + width - end)
            if index == marked:
                frame = Rectangle((x - 2, y - 2), width + 4, height + 4, fill=False, lw=4)
                frame.set(edgecolor=ACCENT, joinstyle="miter")
                self.axes.add_patch(frame)

    def draw_bars(
        self,
        grid: Grid,
        values: Sequence[float],
        texts: Sequence[str],
        identity: float | None = None,
    ) -> None:
        """Draws a bar from 0 to its value, and a text, below each panel, all on the same scale. A
        line marks the identity value, if any. With it, or if low < 0, texts are on the right."""
        low, high = min(0.0, *values), max(0.0, *values, identity or 0.0)
        high = high if high > low else low + 1.0
        height, width = grid.panel
        per_unit = (width - 60) / (high - low)  # 60 pixels for the text
        for value, text, (y, x) in zip(values, texts, grid.corners, strict=True):
            zero, end, middle = x - low * per_unit, x + (value - low) * per_unit, y + height + 14
            span = sorted((zero, end))
            self.axes.fill_between(span, middle - 5, middle + 5, color=SOFT, lw=0)
            if identity is None and low == 0:
                draw_text(self.axes, (end + 8, middle + 5), text, size=14)
                continue
            draw_text(self.axes, (x + width, middle + 5), text, size=14, align="right")
            if identity is not None:
                mark = x + (identity - low) * per_unit
                self.axes.plot([mark, mark], [middle - 11, middle + 11], color=INK, lw=1.6)


class Clip(NamedTuple):
    """A clip, its heading (left, bold) and details (right), and a label for each frame."""

    frames: Frames
    heading: str
    details: str
    labels: Labels


def draw_clips(
    clips: Sequence[Clip], *, title: str, details: str, description: str, legend: Sequence[str]
) -> Image.Image:
    """Draws clips one below the other; they may differ in size.

    Args:
        title: The heading of the sheet; a second line is drawn smaller, before the details.
        description: The content of the sheet.
        legend: The meaning of the marks.
    """
    grids: list[Grid] = []
    for clip in clips:
        num_frames, _, height, width = clip.frames.shape
        grid = make_grid(
            num_frames,
            (height, width),
            ceil(num_frames / ceil(num_frames / MOST_COLUMNS)),  # rows of similar length
            tallest=TALLEST,
            top=grids[-1].bottom + BETWEEN if grids else HEAD,
            heading=HEADING,
            gap=10,
            below=8,
        )
        grids.append(grid)
    sheet = Sheet(grids)
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
