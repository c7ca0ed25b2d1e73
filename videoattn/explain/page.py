"""What every sheet has: a head with a colour bar, labelled panels with bars below, a foot."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from videoattn.explain.layout import MARGIN, Layout
from videoattn.explain.marks import INK, SOFT, Picture, Point, draw_text
from videoattn.explain.render import Scale, colours

BAR_WIDTH, BAR_HEIGHT, BAR_TOP = 300, 14, 58
VALUE_ROOM = 60  # at the right of a panel's bar

Panels = UInt8[Tensor, "P 3 H2 W2"]
Labels = list[tuple[str, str]]
"""For each frame its number, and its time or ""."""


class Caption(NamedTuple):
    """What is known of a clip beside its pixels. title: a second line stands smaller below."""

    title: str
    labels: Labels


def label_frames(
    num_frames: int, frame_numbers: Sequence[int] | None, frames_per_second: float | int | None
) -> Labels:
    """For each frame its number and, where the rate is known, its time in seconds."""
    numbers = range(num_frames) if frame_numbers is None else frame_numbers
    if len(numbers) != num_frames:
        raise ValueError(
            f"frame_numbers: {len(numbers)} numbers for {num_frames} frames; give one for each "
            "frame, or none"
        )
    times = [f"{n / frames_per_second:.2f} s" if frames_per_second else "" for n in numbers]
    return [(str(number), time) for number, time in zip(numbers, times, strict=True)]


def number_text(value: float | int) -> str:
    """Three digits, or two and the power of ten (2.9e4), and a minus that is as wide as a plus."""
    text = f"{value:.3g}"
    if "e" in text:
        digits, power = f"{value:.1e}".split("e")
        text = f"{digits}e{int(power)}"
    return text.replace("-", "\u2212")


def describe(weights: Tensor, identity_value: float | None, unit: float = 1.0) -> str:
    """The weights' range and mean (in units), and what the neutral weight is."""
    shown = weights / unit
    found = torch.stack([shown.min(), shown.mean(), shown.max()])
    found = torch.where(found.abs() < 1e-3 * shown.abs().max(), 0, found)
    times = "\u00d7" if unit != 1.0 else ""
    low, mean, high = (number_text(value) + times for value in found.tolist())
    text = f"min {low}, mean {mean}, max {high}"
    return (
        text
        if identity_value is None
        else f"{text}  ·  {number_text(identity_value)} changes nothing"
    )


def with_neutral(label: str, scale: Scale, identity_value: float | None) -> str:
    """The label of a colour bar, with a word on a neutral weight that it does not reach."""
    if identity_value is None or scale.bottom <= identity_value <= scale.top:
        return label
    return f"{label}  ({number_text(identity_value)} is off this scale)"


def blank(width: int, height: int) -> Picture:
    return np.full((height, width, 3), 255, np.uint8)


def paste_panels(picture: Picture, layout: Layout, panels: Panels, first: int = 0) -> None:
    """Puts panels of the layout's size in place, the first of them at corner `first`."""
    height, width = layout.panel
    corners = layout.corners[first : first + len(panels)]
    for panel, (y, x) in zip(panels.permute(0, 2, 3, 1).numpy(), corners, strict=True):
        picture[y : y + height, x : x + width] = panel


def bar_corner(layout_width: int) -> tuple[int, int]:
    """Where the colour bar of the head stands, (x, y)."""
    return layout_width - MARGIN - BAR_WIDTH, BAR_TOP


def paint_colour_bar(
    picture: Picture, scale: Scale, corner: tuple[int, int], *, solid: bool = False
) -> None:
    """As the colours look over a mid-grey frame, so that the bar reads as the panels do; solid
    where there is no frame under them."""
    values = torch.linspace(scale.bottom, scale.top, BAR_WIDTH)
    row, alpha = colours(values, scale)
    if not solid:
        row = row * alpha[:, None] + 0.5 * (1 - alpha[:, None])
    x, y = corner
    picture[y : y + BAR_HEIGHT, x : x + BAR_WIDTH] = (row * 255).byte().numpy()


def label_colour_bar(
    axes: Axes,
    scale: Scale,
    corner: tuple[int, int],
    label: str,
    *,
    times: bool = False,
    ends: bool = False,
) -> None:
    """times: the numbers are multiples. ends: the ends are named, and the middle of a diverging
    scale; otherwise round numbers are."""
    left, top = corner
    draw_text(axes, (left, top - 9), label, size=13, colour=SOFT, room=BAR_WIDTH)
    if ends:
        middle = scale.least if scale.diverging else (scale.bottom + scale.top) / 2
        ticks = np.asarray([scale.bottom, middle, scale.top])
    else:
        ticks = np.asarray(MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(scale.bottom, scale.top))
        ticks = ticks[(ticks >= scale.bottom) & (ticks <= scale.top)]
    for value in ticks.tolist():
        x = left + BAR_WIDTH * (value - scale.bottom) / (scale.top - scale.bottom)
        axes.plot([x, x], [top + BAR_HEIGHT, top + BAR_HEIGHT + 4], color=SOFT, lw=1)
        value = value if abs(value) > 1e-3 * scale.top else 0.0
        text = number_text(value) + ("\u00d7" if times and value else "")
        at = (x, top + BAR_HEIGHT + 18)
        draw_text(axes, at, text, size=13, colour=SOFT, align="center")


def write_head(axes: Axes, width: int, title: str, details: str, description: str) -> None:
    """title: its first line is the heading; a second one stands smaller below, before `details`.
    description: what the sheet shows, in words."""
    heading, _, rest = title.partition("\n")
    room = width - 2 * MARGIN - BAR_WIDTH - 40
    draw_text(axes, (MARGIN - 1, 60), heading, size=27, bold=True, room=room)
    line = "  ·  ".join(filter(None, [rest, details]))
    draw_text(axes, (MARGIN, 90), line, colour=SOFT, room=room)
    draw_text(axes, (MARGIN, 116), description, room=width - 2 * MARGIN)


def write_foot(axes: Axes, width: int, height: int, parts: Sequence[str]) -> None:
    text, room = "  ·  ".join(parts), width - 2 * MARGIN
    draw_text(axes, (MARGIN, height - 30), text, size=13, colour=SOFT, room=room)


def write_labels(axes: Axes, layout: Layout, labels: Labels, marked: int = -1) -> None:
    """Above each panel its number at the left and its time at the right; one may be bold."""
    for index, ((number, time), (y, x)) in enumerate(zip(labels, layout.corners, strict=True)):
        width = layout.panel[1]
        room = 0.42 * width if time else width
        draw_text(axes, (x, y - 9), number, size=14, bold=index == marked, room=room)
        at = (x + width, y - 9)
        draw_text(axes, at, time, size=14, colour=SOFT, align="right", room=0.55 * width)


def draw_bars(
    axes: Axes,
    layout: Layout,
    values: Sequence[float],
    texts: Sequence[str],
    *,
    first: int = 0,
    identity_value: float | None = None,
    thickness: int = 8,
    colour: str = SOFT,
) -> None:
    """Below each panel a bar from 0 to its value, all to one measure, and a text beside it.

    first: the corner of the first panel. identity_value: a value marked by a line at every bar; the
        texts then stand in a column at the right, clear of it.
    """
    low, high = min(0.0, *values), max(0.0, *values, identity_value or 0.0)
    high = high if high > low else low + 1.0
    height, width = layout.panel
    measure = (width - VALUE_ROOM) / (high - low)
    for value, text, (y, x) in zip(values, texts, layout.corners[first:], strict=False):
        zero, end, middle = x - low * measure, x + (value - low) * measure, y + height + 14
        edges = (middle - thickness / 2, middle + thickness / 2)
        axes.fill_between(sorted((zero, end)), *edges, color=colour, lw=0)
        if identity_value is None and low == 0:
            at: Point = (end + 8, middle + 5)
            draw_text(axes, at, text, size=14)
            continue
        draw_text(axes, (x + width, middle + 5), text, size=14, align="right")
        if identity_value is not None:
            mark = x + (identity_value - low) * measure
            axes.plot([mark, mark], [middle - 11, middle + 11], color=INK, lw=1.6)
