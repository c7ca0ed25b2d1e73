"""Where things stand on a contact sheet, in its pixels: arithmetic, no drawing."""

from math import ceil, log
from typing import NamedTuple

from videoattn.explain.geometry import Position

MARGIN = 56
HEAD = 132  # title, subtitle, and the colour bar at their right
LABEL = 30  # a frame's number and time, above it
SHARE = 34  # its share of attention, below it
FOOT = 84  # the legend of the marks
GAP_X, GAP_Y = 20, 16
CONTENT_WIDTH, LEAST_CONTENT = 1640, 880  # the head needs some room
TALLEST_PANEL, TALLEST_CONTENT = 460, 1500
PLEASANT_ASPECT = 1.8  # of all the panels together


class Layout(NamedTuple):
    """A sheet of `width` x `height` pixels; `corners` are (y, x) of each frame's panel."""

    width: int
    height: int
    panel: tuple[int, int]  # height, width
    clip: tuple[int, int, int]  # T, H, W of the frames that the panels show
    corners: tuple[tuple[int, int], ...]

    def point(self, position: Position) -> tuple[float, float]:
        """(x, y) on the sheet of a place in the clip."""
        y, x = self.corners[position.frame]
        return (
            x + position.x * self.panel[1] / self.clip[2],
            y + position.y * self.panel[0] / self.clip[1],
        )


def choose_columns(num_frames: int, aspect: float) -> int:
    """How many panels of this aspect (width / height) to a row: full rows, a pleasant whole."""
    if num_frames <= 4:
        return num_frames

    def cost(columns: int) -> float:
        rows = ceil(num_frames / columns)
        whole = columns * aspect / rows
        return abs(log(whole / PLEASANT_ASPECT)) + 6 * (columns * rows / num_frames - 1)

    return min(range(2, min(num_frames, 12) + 1), key=cost)


def make_layout(num_frames: int, height: int, width: int) -> Layout:
    """The sheet for a clip of T frames of H x W pixels."""
    columns = choose_columns(num_frames, width / height)
    rows = ceil(num_frames / columns)
    tallest = min(TALLEST_PANEL, TALLEST_CONTENT // rows - LABEL - SHARE - GAP_Y)
    panel_width = min((CONTENT_WIDTH - (columns - 1) * GAP_X) // columns, tallest * width // height)
    panel_height = round(panel_width * height / width)
    row_height = LABEL + panel_height + SHARE
    content = columns * panel_width + (columns - 1) * GAP_X
    corners = [
        (
            HEAD + (f // columns) * (row_height + GAP_Y) + LABEL,
            MARGIN + (f % columns) * (panel_width + GAP_X),
        )
        for f in range(num_frames)
    ]
    return Layout(
        width=max(content, LEAST_CONTENT) + 2 * MARGIN,
        height=HEAD + rows * row_height + (rows - 1) * GAP_Y + FOOT,
        panel=(panel_height, panel_width),
        clip=(num_frames, height, width),
        corners=tuple(corners),
    )
