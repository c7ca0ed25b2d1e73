"""Where things stand on a contact sheet, in its pixels: arithmetic, no drawing."""

from collections.abc import Sequence
from math import ceil, log
from typing import NamedTuple

from videoattn.explain.geometry import Position

MARGIN = 56
HEAD = 146  # title, subtitle, what is shown, and the colour bar at the right of the first two
LABEL = 30  # a frame's number and time, above it
SHARE = 34  # its share of attention, below it
FOOT = 84  # the legend of the marks
GAP_X, GAP_Y = 20, 16
CONTENT_WIDTH, LEAST_CONTENT = 1640, 880  # the head needs some room
TALLEST_PANEL, TALLEST_CONTENT = 460, 1500
PLEASANT_ASPECT = 1.8  # of all the panels together


class Layout(NamedTuple):
    """A sheet of `width` x `height` pixels; `corners` are (y, x) of each frame's panel.

    Panels may come in several groups under headings: `headings` are the y where each begins.
    """

    width: int
    height: int
    panel: tuple[int, int]  # height, width
    clip: tuple[int, int, int]  # T, H, W of the frames that the panels show
    corners: tuple[tuple[int, int], ...]
    headings: tuple[int, ...] = ()

    def point(self, position: Position) -> tuple[float, float]:
        """(x, y) on the sheet of a place in the clip."""
        y, x = self.corners[position.frame]
        return (
            x + position.x * self.panel[1] / self.clip[2],
            y + position.y * self.panel[0] / self.clip[1],
        )


def choose_columns(num_frames: int, aspect: float, groups: int = 1) -> int:
    """How many panels of this aspect (width / height) to a row: full rows, a pleasant whole.

    groups: so many times these panels, one group below the other.
    """
    if num_frames <= 4:
        return num_frames

    def cost(columns: int) -> float:
        rows = ceil(num_frames / columns)
        whole = columns * aspect / (rows * groups)
        return abs(log(whole / PLEASANT_ASPECT)) + 6 * (columns * rows / num_frames - 1)

    return min(range(2, min(num_frames, 12) + 1), key=cost)


def make_layout(
    num_frames: int, height: int, width: int, *, groups: Sequence[int] = (), heading: int = 0
) -> Layout:
    """The sheet for a clip of T frames of H x W pixels.

    groups: the number of panels in each group, T in one unless given; `heading` pixels above each.
    """
    counts = tuple(groups) or (num_frames,)
    columns = choose_columns(max(counts), width / height, len(counts))
    rows = sum(ceil(count / columns) for count in counts)
    tallest = min(TALLEST_PANEL, TALLEST_CONTENT // rows - LABEL - SHARE - GAP_Y)
    panel_width = min((CONTENT_WIDTH - (columns - 1) * GAP_X) // columns, tallest * width // height)
    panel_height = round(panel_width * height / width)
    row_height = LABEL + panel_height + SHARE + GAP_Y
    corners, headings, top = [], [], HEAD
    for count in counts:
        headings.append(top)
        top += heading
        corners += [
            (
                top + (i // columns) * row_height + LABEL,
                MARGIN + (i % columns) * (panel_width + GAP_X),
            )
            for i in range(count)
        ]
        top += ceil(count / columns) * row_height
    content = columns * panel_width + (columns - 1) * GAP_X
    return Layout(
        width=max(content, LEAST_CONTENT) + 2 * MARGIN,
        height=top - GAP_Y + FOOT,
        panel=(panel_height, panel_width),
        clip=(num_frames, height, width),
        corners=tuple(corners),
        headings=tuple(headings),
    )
