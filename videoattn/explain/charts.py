"""Charts of gates that have no place in the frame: one gate a frame, one a channel."""

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from videoattn.attention.record import GateMap
from videoattn.explain.geometry import cells_of_frames, field_of
from videoattn.explain.layout import CONTENT_WIDTH, FOOT, HEAD, LABEL, MARGIN, make_layout
from videoattn.explain.marks import ACCENT, INK, SOFT, Picture, canvas_axes, draw_text, to_picture
from videoattn.explain.page import (
    Caption,
    Labels,
    bar_corner,
    blank,
    describe,
    draw_bars,
    label_colour_bar,
    number_text,
    paint_colour_bar,
    paste_panels,
    with_neutral,
    write_foot,
    write_head,
    write_labels,
)
from videoattn.explain.render import Scale, colours, make_field_scale, resize
from videoattn.types import Frames

AXIS = 84  # left of a chart, for its numbers
TALLEST_THUMB, THUMB_GAP = 120, 6
CHART_HEIGHT = 440
BELOW = 90  # a chart's own captions
NAMED = 6  # channels, at each end
BACKGROUND = 246


def draw_temporal_sheet(
    frames: Frames, field_map: GateMap, *, caption: Caption, sample: int
) -> Image.Image:
    """The frames, and below each its gate as a bar with its value."""
    weights = field_of(field_map, sample)
    gates = weights[cells_of_frames(len(frames), len(weights))].tolist()
    layout = make_layout(len(frames), frames.shape[2], frames.shape[3])
    picture = blank(layout.width, layout.height)
    paste_panels(picture, layout, resize(frames, layout.panel))
    axes = canvas_axes(picture)
    details = describe(weights, field_map.identity_value)
    description = "Temporal attention: the weight of each frame"
    parts = ["bars: each frame's weight, from 0"]
    if field_map.identity_value is not None:
        description = "A temporal gate: by what the features of each frame are multiplied"
        line = number_text(field_map.identity_value)
        parts = [f"bars: each frame's gate, from 0; the line is at {line}, which changes nothing"]
    if len(weights) < len(frames):
        parts.append(f"one gate covers {len(frames) / len(weights):.3g} frames")
    write_head(axes, layout.width, caption.title, details, description)
    write_labels(axes, layout, caption.labels)
    texts = [f"{gate:.3f}".replace("-", "\u2212") for gate in gates]
    draw_bars(
        axes,
        layout,
        gates,
        texts,
        identity_value=field_map.identity_value,
        thickness=14,
        colour=ACCENT,
    )
    write_foot(axes, layout.width, layout.height, parts)
    return Image.fromarray(to_picture(axes))


class Chart:
    """Where a chart of `height` pixels stands below a strip of the clip's frames."""

    def __init__(self, frames: Frames, *, spread: bool) -> None:
        """spread: the frames are the columns of the chart; else they stand together at its left."""
        count, _, height, width = frames.shape
        self.left, self.width = MARGIN + AXIS, CONTENT_WIDTH - AXIS
        column = self.width / count
        thumb_width = int(min(column - THUMB_GAP, TALLEST_THUMB * width / height))
        self.thumb = (max(round(thumb_width * height / width), 1), max(thumb_width, 1))
        step = column if spread else thumb_width + THUMB_GAP
        inset = (column - thumb_width) / 2 if spread else 0
        self.thumbs = [round(self.left + i * step + inset) for i in range(count)]
        self.strip = HEAD + LABEL
        self.top = self.strip + self.thumb[0] + 28
        self.bottom = self.top + CHART_HEIGHT
        self.size = (CONTENT_WIDTH + 2 * MARGIN, self.bottom + BELOW + FOOT)  # width, height

    def row(self, value: float, limits: tuple[float, float]) -> int:
        """The y of a value, between the limits at the chart's bottom and top."""
        share = (value - limits[0]) / (limits[1] - limits[0])
        return round(self.bottom - share * (self.bottom - self.top))

    def start(self, frames: Frames) -> UInt8[np.ndarray, "H2 W2 3"]:
        """A sheet with the strip, and the chart's ground."""
        picture = blank(*self.size)
        thumbs = resize(frames, self.thumb).permute(0, 2, 3, 1).numpy()
        for thumb, x in zip(thumbs, self.thumbs, strict=True):
            picture[self.strip : self.strip + self.thumb[0], x : x + self.thumb[1]] = thumb
        picture[self.top : self.bottom, self.left : self.left + self.width] = BACKGROUND
        return picture

    def label_strip(self, axes: Axes, labels: Labels) -> None:
        if self.thumb[1] < 30:  # no room for a number
            return
        for (number, _), x in zip(labels, self.thumbs, strict=True):
            draw_text(axes, (x, self.strip - 8), number, size=13)


def draw_channel_sheet(
    frames: Frames, field_map: GateMap, *, caption: Caption, sample: int
) -> Image.Image:
    """Channels by their gate, strongest first: bars, or, with gates of each frame, a heat map whose
    columns stand below the frames."""
    weights = field_of(field_map, sample)
    per_frame = weights.ndim == 2
    means = weights.mean(1) if per_frame else weights
    order = torch.argsort(means, descending=True, stable=True)
    scale = make_field_scale(
        weights, normalized=field_map.normalized, identity_value=field_map.identity_value
    )
    shown = weights[order] / scale.unit
    chart = Chart(frames, spread=per_frame)
    picture = chart.start(frames)
    corner = bar_corner(chart.size[0])
    paint_colour_bar(picture, scale, corner, solid=True)
    if per_frame:
        columns = cells_of_frames(len(frames), shown.shape[1])
        paint_heat(picture, chart, shown[:, columns], scale)
    else:
        limits = bar_limits(shown, field_map.identity_value)
        paint_bars(picture, chart, shown, limits, scale)

    axes = canvas_axes(picture)
    what = "gate" if field_map.identity_value is not None else "weight"
    details = describe(weights, field_map.identity_value, unit=scale.unit)
    each = " in each frame" if per_frame else ""
    description = (
        f"A channel {what}: by what each of {len(means)} channels is multiplied{each}, sorted"
    )
    if field_map.identity_value is None:
        description = (
            f"Channel attention: the weight of each of {len(means)} channels{each}, sorted"
        )
    write_head(axes, chart.size[0], caption.title, details, description)
    label, shares = with_neutral(what, scale, field_map.identity_value), field_map.normalized
    label_colour_bar(axes, scale, corner, label, times=shares, ends=not shares)
    chart.label_strip(axes, caption.labels)
    if per_frame:
        _label_rows(axes, chart, order.tolist())
    else:
        _label_bars(axes, chart, order.tolist(), limits, field_map.identity_value)
    _name_channels(axes, chart, order.tolist(), (means[order] / scale.unit).tolist(), per_frame)
    parts = ["top: the clip's frames", f"bars: channels, the strongest first; height: the {what}"]
    if per_frame:
        parts = [f"rows: channels, the strongest on top; columns: the {what} in the frame above"]
    write_foot(axes, *chart.size, parts)
    return Image.fromarray(to_picture(axes))


def bar_limits(gates: Tensor, identity_value: float | None) -> tuple[float, float]:
    """The least and the greatest value of the chart: bars begin at 0."""
    values = [0.0, *gates.tolist(), identity_value or 0.0]
    low, high = min(values), max(values)
    return low, (high + 0.06 * (high - low)) if high > low else low + 1.0


def paint_bars(
    picture: Picture, chart: Chart, gates: Tensor, limits: tuple[float, float], scale: Scale
) -> None:
    """One bar a channel in the order given, from 0 to its gate, in the colour of the scale."""
    step = chart.width / len(gates)
    gap = round(0.15 * step) if step >= 4 else 0
    paint = (colours(gates, scale)[0] * 255).round().to(torch.uint8).numpy()
    for index, gate in enumerate(gates.tolist()):
        left, right = (chart.left + round(i * step) for i in (index, index + 1))
        rows = sorted((chart.row(gate, limits), chart.row(0.0, limits)))
        picture[rows[0] : rows[1], left : max(right - gap, left)] = paint[index]


def paint_heat(picture: Picture, chart: Chart, gates: Tensor, scale: Scale) -> None:
    """A row a channel, a column a frame: gates (C, T). Of more channels than pixels, neighbours in
    the order are averaged."""
    if len(gates) > CHART_HEIGHT:
        gates = adaptive_avg_pool1d(gates.T, CHART_HEIGHT).T
    rows = torch.arange(CHART_HEIGHT) * len(gates) // CHART_HEIGHT
    columns = torch.arange(chart.width) * gates.shape[1] // chart.width
    colour = colours(gates, scale)[0][rows][:, columns]
    area = picture[chart.top : chart.bottom, chart.left : chart.left + chart.width]
    area[:] = (colour * 255).round().to(torch.uint8).numpy()


def _label_bars(
    axes: Axes,
    chart: Chart,
    order: list[int],
    limits: tuple[float, float],
    identity_value: float | None,
) -> None:
    right = chart.left + chart.width
    ticks = np.asarray(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(*limits))
    for value in ticks[(ticks >= limits[0]) & (ticks <= limits[1])].tolist():
        y = chart.row(value, limits)
        axes.plot([chart.left, right], [y, y], color="#d2d2d7", lw=1, zorder=0.5)
        draw_text(axes, (chart.left - 10, y + 5), number_text(value), size=13, align="right")
    if identity_value is not None:
        y = chart.row(identity_value, limits)
        axes.plot([chart.left, right], [y, y], color=INK, lw=1.4, ls=(0, (5, 4)))
        description = f"{number_text(identity_value)}: changes nothing"
        draw_text(axes, (right - 6, y - 8), description, size=13, align="right")
    step = chart.width / len(order)
    if step >= 30:
        for index, channel in enumerate(order):
            at = (chart.left + (index + 0.42) * step, chart.bottom + 18)
            draw_text(axes, at, str(channel), size=12, colour=SOFT, align="center")


def _label_rows(axes: Axes, chart: Chart, order: list[int]) -> None:
    step = CHART_HEIGHT / len(order)
    names = {0: "strongest", len(order) - 1: "weakest"}
    if step >= 14:
        names = {index: str(channel) for index, channel in enumerate(order)}
    for index, name in names.items():
        middle = chart.top + (index + 0.5) * step
        y = min(max(middle, chart.top + 6), chart.bottom - 6) + 4
        draw_text(axes, (chart.left - 10, y), name, size=12, colour=SOFT, align="right")


def _name_channels(
    axes: Axes, chart: Chart, order: list[int], values: list[float], per_frame: bool
) -> None:
    """Those at either end, with their values."""
    count = min(NAMED, max(len(order) // 2, 1))
    pairs = [f"{c} ({number_text(v)})" for c, v in zip(order, values, strict=True)]
    mean = ", mean over frames" if per_frame else ""
    lines = [f"strongest channels{mean}: " + ", ".join(pairs[:count])]
    if len(order) > 1:
        lines.append(f"weakest channels{mean}: " + ", ".join(reversed(pairs[-count:])))
    for index, line in enumerate(lines):
        at = (chart.left, chart.bottom + 48 + 24 * index)
        draw_text(axes, at, line, size=14, room=chart.width)
