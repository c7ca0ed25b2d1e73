"""Draws contact sheets of maps without a query: gates, masks, poolings, boxes and CAMs."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from videoattn.attention.maps import GATE_AXES, GateMap
from videoattn.explain import render
from videoattn.explain.boxes import draw_boxes
from videoattn.explain.render import Scale, finite, make_scale, number_text
from videoattn.explain.sheet import (
    CONTENT_WIDTH,
    MARGIN,
    Labels,
    Sheet,
    label_frames,
    make_grid,
    stack_grids,
)
from videoattn.explain.text import INK, LINE, SOFT, draw_text
from videoattn.explain.words import (
    MOST_WEIGHTINGS,
    describe_gate,
    gate_noun,
    grid_note,
    percent,
)
from videoattn.types import Frames

MOST_CHANNELS = 3  # most channels of a mask that are drawn below its mean
CHANNELS = (
    "A mask over the features: its mean at each position, and the channels that differ most from "
    "the mean and from each other"
)
LEAST_SPAN = 0.05  # least range of a scale / largest weight: a flat map must not look peaked
HEADING = 34
CHART_HEIGHT = 440
NAMED = 6  # the number of strongest, and of weakest, channels that are listed


def draw_gate(
    frames: Frames,
    gate_map: GateMap,
    *,
    title: str,
    labels: Labels | None = None,
    sample: int = 0,
    input_size: tuple[int, int] | None = None,
    headings: Sequence[str] = (),
) -> Image.Image:
    """Draws the map of one sample.

    The kind determines the picture: heat over the frames, a bar below each frame (temporal), a
    chart (channel), or boxes and their contents.

    Args:
        frames, title, labels: As in `draw_sheet`.
        input_size: The (height, width) of the network's input; boxes are in its pixels. Default:
            the size of `frames`.
        headings: For a pooling of up to four weightings, the heading of each.

    Raises:
        ValueError: If the frames do not fit the map, weights are not finite or have a wrong shape,
            or a box is outside the input.
    """
    labels = labels or label_frames(range(len(frames)))
    weights = gate_weights(gate_map, sample)
    if gate_map.kind == "box":
        return draw_boxes(frames, weights, title, labels, input_size)
    if gate_map.kind == "channel":
        return _draw_channels(frames, gate_map, weights, title, labels)
    return _draw_frames(frames, gate_map, weights, title, labels, headings)


def gate_weights(gate_map: GateMap, sample: int) -> Tensor:
    """Returns the weights of one sample in float32; channel gates are (C) or (C, T).

    Raises:
        ValueError: If the shape does not fit the kind, or weights are not finite.
    """
    shape, allowed = tuple(gate_map.weights.shape), [a.split() for a in GATE_AXES[gate_map.kind]]
    fits = len(shape) - 1 in map(len, allowed) and (gate_map.kind != "box" or shape[-1] == 4)
    if not fits or 0 in shape:
        axes = " or ".join(f"(N, {', '.join(names)})" for names in allowed)
        raise ValueError(
            f"{gate_map.kind} map: weights have shape {shape}; need {axes}, without "
            "a size of 0; see GateMap"
        )
    return finite(gate_map.weights[sample])


def spatial_weights(gate_map: GateMap, weights: Tensor) -> Tensor:
    """Returns weights (T', H', W'): for a mask or pooling, the mean over channels or weightings."""
    return weights.mean(0) if gate_map.kind in ("mask", "pooling") else weights


def frame_amounts(
    gate_map: GateMap, weights: Tensor, num_frames: int
) -> tuple[list[float], list[str]]:
    """Returns each frame's share (normalized maps) or mean weight, as numbers and as text."""
    if gate_map.normalized:
        shares = render.frame_shares(weights, num_frames)
        return shares, [percent(share) for share in shares]
    cells = render.cells_of_frames(num_frames, len(weights))
    means = weights.double().reshape(len(weights), -1).mean(1)[cells].tolist()
    return means, [number_text(mean) for mean in means]


def _draw_frames(
    frames: Frames,
    gate_map: GateMap,
    weights: Tensor,
    title: str,
    labels: Labels,
    headings: Sequence[str],
) -> Image.Image:
    """Draws the frames once for each map, with heat (unless temporal), and bars below them."""
    temporal, identity = gate_map.kind == "temporal", gate_map.identity_value
    maps = _maps(gate_map, weights)
    if headings:
        maps = dict(zip(headings, maps.values(), strict=True))
    shown = torch.stack(list(maps.values()))
    scale = make_gate_scale(gate_map, shown, positions=shown[0].numel())
    size, counts = (frames.shape[2], frames.shape[3]), [len(frames)] * len(maps)
    grids = stack_grids(counts, size, heading=HEADING if len(maps) > 1 else 0)
    sheet = Sheet(grids)
    panels = render.resize(frames, grids[0].panel)
    for (heading, weights), grid in zip(maps.items(), grids, strict=True):
        drawn = panels if temporal else render.blend(panels, weights, scale)
        sheet.draw_panels(grid, drawn, labels)
        draw_text(sheet.axes, (MARGIN, grid.top + 22), heading, size=17, bold=True)
        sheet.draw_bars(grid, *frame_amounts(gate_map, weights, len(frames)), identity)
    if not temporal:
        sheet.draw_color_bar(scale, _bar_label(gate_map, scale))
    single = gate_map.kind == "mask" and len(maps) > 1
    meaning = CHANNELS if single else describe_gate(gate_map)
    sheet.write_head(title, _range(shown, gate_map, scale), meaning)
    bars = (
        "share of the weight"
        if gate_map.normalized
        else f"{'' if temporal else 'mean '}{gate_noun(gate_map)}"
    )
    parts = [f"bars: each frame's {bars}"]
    if identity is not None:
        parts.append(f"line: the identity, {number_text(identity)}")
    shape = " x ".join(map(str, shown.shape[1:]))
    parts.append(f"map: {shape} ({'T' if temporal else 'T x H x W'})")
    note = "" if temporal else grid_note(tuple(shown.shape[1:]), (len(frames), *size))
    sheet.write_foot(parts, note)
    return sheet.image()


def _maps(gate_map: GateMap, weights: Tensor) -> dict[str, Tensor]:
    """Returns the maps (T', H', W') to draw, by heading."""
    if gate_map.kind == "mask" and (channels := different_channels(weights, MOST_CHANNELS)):
        each = {f"channel {c}": weights[c] for c in channels}
        return {f"mean over {len(weights)} channels": weights.mean(0), **each}
    if gate_map.kind != "pooling" or len(weights) == 1:
        return {"": spatial_weights(gate_map, weights)}
    peaked = torch.argsort(weights.flatten(1).amax(1), descending=True, stable=True)
    chosen = sorted(peaked[:MOST_WEIGHTINGS].tolist())
    return {f"weighting {d}": weights[d] for d in chosen}


def different_channels(weights: Float[Tensor, "C T H W"], count: int) -> list[int]:
    """Returns up to `count` channels whose maps differ most from the mean map and from each other.

    Compares maps, minus their means, by Euclidean distance. Each step selects the channel whose
    smallest distance to the mean map and to the selected channels is largest. Stops if the distance
    is at most 1 % of the norm of the mean map (minus its mean) or of the first distance.
    """
    maps = weights.flatten(1).double()
    maps = maps - maps.mean(1, keepdim=True)
    nearest = (maps - maps.mean(0)).norm(dim=1)
    least = 0.01 * max(float(maps.mean(0).norm()), float(nearest.max()))
    chosen: list[int] = []
    while len(chosen) < count and float(nearest.max()) > least:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (maps - maps[chosen[-1]]).norm(dim=1))
    return chosen


def _draw_channels(
    frames: Frames, gate_map: GateMap, weights: Tensor, title: str, labels: Labels
) -> Image.Image:
    """Draws the frames, and below them sorted channel gates: (C,) as bars, (C, T) as a heat map."""
    per_frame, num_frames = weights.ndim == 2, len(frames)
    means = weights.mean(1) if per_frame else weights
    order = torch.argsort(means, descending=True, stable=True)
    identity = gate_map.identity_value
    scale = make_gate_scale(gate_map, weights)
    shown = weights[order] / scale.unit
    if per_frame:
        shown = shown[:, render.cells_of_frames(num_frames, shown.shape[1])]
    size, column = (frames.shape[2], frames.shape[3]), CONTENT_WIDTH / num_frames
    strip = make_grid(num_frames, size, num_frames, tallest=120, gap=6, below=28)
    shift = MARGIN + column / 2 - strip.panel[1] / 2  # panels are centered above columns
    corners = [(y, round(shift + i * column)) for i, (y, _) in enumerate(strip.corners)]
    strip = strip._replace(corners=corners, right=MARGIN + CONTENT_WIDTH)
    sheet = Sheet([strip], below=CHART_HEIGHT + 90)
    sheet.draw_panels(strip, render.resize(frames, strip.panel), labels)
    _draw_chart(sheet, strip.bottom, shown, scale, order.tolist(), identity)

    named = [f"{c} ({number_text(float(means[c]) / scale.unit)})" for c in order.tolist()]
    count = min(NAMED, max(len(named) // 2, 1))
    mean = ", mean over frames" if per_frame else ""
    ends = {"strongest": named[:count], "weakest": named[::-1][:count]}
    for row, (end, names) in enumerate(ends.items()):
        at = (MARGIN, strip.bottom + CHART_HEIGHT + 48 + 24 * row)
        text = f"{end} channels{mean}: {', '.join(names)}"
        draw_text(sheet.axes, at, text, size=14, room=CONTENT_WIDTH)
    sheet.write_head(title, _range(weights, gate_map, scale), describe_gate(gate_map))
    sheet.draw_color_bar(scale, _bar_label(gate_map, scale), solid=True)
    marks = "rows: channels, strongest first; columns" if per_frame else "bars: channels; height"
    sheet.write_foot([f"{marks}: the {gate_noun(gate_map)}{' in the frame above' * per_frame}"])
    return sheet.image()


def _draw_chart(
    sheet: Sheet, top: int, shown: Tensor, scale: Scale, order: list[int], identity: float | None
) -> None:
    """Draws sorted gates as bars (C,) or as a heat map (C, T); `order` has their channels."""
    corner = (MARGIN / sheet.width, 1 - (top + CHART_HEIGHT) / sheet.height)
    size = (CONTENT_WIDTH / sheet.width, CHART_HEIGHT / sheet.height)
    axes = sheet.axes.figure.add_axes((*corner, *size))
    axes.set_facecolor("#f6f6f6")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=12, labelcolor=SOFT, pad=8)
    count, colors = len(order), render.colors_of(shown, scale)[0].tolist()
    named = range(count) if count <= 30 else [0, count - 1]
    names = [str(order[index]) for index in named]
    if shown.ndim == 2:
        axes.imshow(colors, aspect="auto")
        axes.set_xticks([])
        axes.set_yticks(named, names)
        return
    gap = 0.15 * CONTENT_WIDTH / count if count <= CONTENT_WIDTH / 4 else -1  # overlap hides seams
    bars = axes.vlines(range(count), 0, shown, colors=colors, lw=CONTENT_WIDTH / count - gap)
    bars.set_antialiased(False)
    values = [0.0, *shown.tolist(), identity or 0.0]
    low, high = min(values), max(values)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(low, high + 0.06 * (high - low or 1.0)))
    axes.grid(axis="y", color=LINE)
    axes.set_axisbelow(True)
    axes.set_xticks(named, names)
    if identity is not None:
        axes.axhline(identity, color=INK, lw=1.4, ls=(0, (5, 4)))


def _range(weights: Tensor, gate_map: GateMap, scale: Scale) -> str:
    """Returns text with the minimum, mean and maximum weight / `scale.unit`, and the identity."""
    shown = weights / scale.unit
    found = torch.stack([shown.min(), shown.mean(), shown.max()])
    found = torch.where(found.abs() < 1e-3 * shown.abs().max(), 0, found)
    low, mean, high = (scale.text(value) for value in found.tolist())
    text = f"min {low}, mean {mean}, max {high}"
    value = gate_map.identity_value
    return text if value is None else f"{text}  ·  identity: {number_text(value)}"


def _bar_label(gate_map: GateMap, scale: Scale) -> str:
    if gate_map.normalized:
        return "weight, times the uniform weight"
    value = gate_map.identity_value
    if value is None or scale.bottom <= value <= scale.top:
        return gate_noun(gate_map)
    return f"{gate_noun(gate_map)}  ({number_text(value)} is outside this range)"


def make_gate_scale(gate_map: GateMap, weights: Tensor, positions: int | None = None) -> Scale:
    """Returns the color scale for some weights of a gate map, of any shape.

    If weights lie on both sides of the identity value (or 0), the scale diverges around it.
    Otherwise it spans the range of the weights, because gates often differ little compared with
    their distance from the identity value.

    Args:
        positions: The number of weights that sum to 1, if normalized. Default: all.
    """
    if gate_map.normalized:
        return make_scale(weights, normalized=True, visible=positions)
    low, high = float(weights.min()), float(weights.max())
    middle = gate_map.identity_value or 0.0
    least_span = LEAST_SPAN * max(abs(low), abs(high), abs(middle)) or 1.0
    if low < middle < high or low == middle == high:
        reach = max(high - middle, middle - low, least_span)
        return Scale(1.0, middle - reach, middle + reach, middle, True)
    return Scale(1.0, low, max(high, low + least_span), low, False)
