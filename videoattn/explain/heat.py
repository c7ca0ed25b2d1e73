"""Sheets of weights that have a place in the frame: spatial gates, masks, poolings."""

from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from videoattn.attention.record import GateMap
from videoattn.explain.geometry import cells_of_frames, field_of, frame_shares
from videoattn.explain.layout import MARGIN, Layout, choose_columns, make_layout
from videoattn.explain.marks import canvas_axes, draw_text, to_picture
from videoattn.explain.page import (
    BAR_WIDTH,
    Caption,
    Labels,
    Panels,
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
from videoattn.explain.render import Scale, blend, make_field_scale, resize
from videoattn.types import Frames

MOST_SHOWN = 4
"""So many weightings of a pooling are all shown; of more, the mean and the most peaked."""
HEADING, HEADING_WITH_BAR = 34, 68


class _Group(NamedTuple):
    """Panels under a heading. `shown` are (weights (T', H', W'), frame) of each panel."""

    heading: str
    shown: list[tuple[Tensor, int]]
    names: Labels
    scale: Scale


def placed_weights(field_map: GateMap, sample: int) -> Tensor:
    """One weight for each place, (T', H', W'): a mask's mean over channels, a pooling's over its
    weightings."""
    weights = field_of(field_map, sample)
    return weights if field_map.kind in ("spatial", "cam") else weights.mean(0)


def frame_amounts(
    field_map: GateMap, weights: Tensor, num_frames: int
) -> tuple[list[float], list[str]]:
    """For each frame its share of weights that sum to 1, else its mean weight; and as text."""
    if field_map.normalized:
        shares = frame_shares(weights, num_frames)
        return shares, [f"{100 * share:.0f} %" for share in shares]
    means = weights.double().mean(dim=(1, 2))[cells_of_frames(num_frames, len(weights))].tolist()
    return means, [number_text(mean) for mean in means]


def draw_heat_sheet(
    frames: Frames, field_map: GateMap, *, caption: Caption, sample: int
) -> Image.Image:
    """The clip's frames with the weights over them: once, or for each weighting of a pooling."""
    num_frames, _, height, width = frames.shape
    groups = _groups(field_map, sample, frames, caption.labels)
    own_scales = len({group.scale for group in groups}) > 1
    heading = 0 if len(groups) == 1 else HEADING_WITH_BAR if own_scales else HEADING
    layout = make_layout(
        num_frames, height, width, groups=[len(g.shown) for g in groups], heading=heading
    )
    corners = [bar_corner(layout.width)]
    if own_scales:
        corners = [(corners[0][0], y + 24) for y in layout.headings]

    picture, first = blank(layout.width, layout.height), 0
    sized = resize(frames, layout.panel)
    for group in groups:
        paste_panels(picture, layout, _panels(sized, group), first)
        first += len(group.shown)
    for group, corner in zip(groups, corners, strict=False):
        paint_colour_bar(picture, group.scale, corner)

    axes = canvas_axes(picture)
    weights = (field_of if field_map.kind == "pooling" else placed_weights)(field_map, sample)
    details = describe(weights, field_map.identity_value, unit=groups[0].scale.unit)
    write_head(axes, layout.width, caption.title, details, describe_map(field_map, sample))
    for group, corner in zip(groups, corners, strict=False):
        label = with_neutral(_bar_label(field_map), group.scale, field_map.identity_value)
        every = field_map.normalized
        label_colour_bar(axes, group.scale, corner, label, times=every, ends=not every)
    _write_groups(axes, layout, field_map, groups, num_frames)
    grid = tuple(placed_weights(field_map, sample).shape)
    write_foot(axes, layout.width, layout.height, _legend(field_map, grid))
    return Image.fromarray(to_picture(axes))


def _groups(field_map: GateMap, sample: int, frames: Frames, labels: Labels) -> list[_Group]:
    every = list(range(len(frames)))
    together = placed_weights(field_map, sample)

    def scale_of(weights: Tensor) -> Scale:
        return make_field_scale(
            weights,
            normalized=field_map.normalized,
            identity_value=field_map.identity_value,
            positions=together.numel(),
        )

    def whole_clip(heading: str, weights: Tensor, scale: Scale) -> _Group:
        return _Group(heading, [(weights, frame) for frame in every], labels, scale)

    if field_map.kind != "pooling":
        return [whole_clip("", together, scale_of(together))]
    weightings = field_of(field_map, sample)
    if len(weightings) <= MOST_SHOWN:
        scale = scale_of(weightings)
        return [whole_clip(f"weighting {d}", w, scale) for d, w in enumerate(weightings)]
    aspect = frames.shape[3] / frames.shape[2]
    count = min(choose_columns(len(frames), aspect, groups=2), len(weightings))
    peaks = weightings.flatten(1).amax(1)
    strongest = torch.argsort(peaks, descending=True, stable=True)[:count].tolist()
    shown, names = [], []
    for d in strongest:
        shares = frame_shares(weightings[d], len(frames))
        frame = shares.index(max(shares))
        shown.append((weightings[d], frame))
        names.append((f"no. {d}", f"frame {labels[frame][0]}"))
    description = f"the {count} most peaked, each in the frame that it weights most"
    return [
        whole_clip(f"mean of all {len(weightings)} weightings", together, scale_of(together)),
        _Group(description, shown, names, scale_of(weightings[strongest])),
    ]


def _panels(frames: Frames, group: _Group) -> Panels:
    first, _ = group.shown[0]
    if all(weights is first for weights, _ in group.shown):
        return blend(frames, first, group.scale)
    drawn = []
    for weights, frame in group.shown:
        cell = cells_of_frames(len(frames), len(weights))[frame]
        drawn.append(blend(frames[frame][None], weights[cell][None], group.scale))
    return torch.cat(drawn)


def _write_groups(
    axes: Axes, layout: Layout, field_map: GateMap, groups: list[_Group], num_frames: int
) -> None:
    write_labels(axes, layout, [name for group in groups for name in group.names])
    first = 0
    for group, top in zip(groups, layout.headings, strict=True):
        if len(groups) > 1:
            room = layout.width - 2 * MARGIN - BAR_WIDTH - 40
            draw_text(axes, (MARGIN, top + 22), group.heading, size=17, bold=True, room=room)
        amounts = [frame_amounts(field_map, weights, num_frames) for weights, _ in group.shown]
        values = [values[f] for (values, _), (_, f) in zip(amounts, group.shown, strict=True)]
        texts = [texts[f] for (_, texts), (_, f) in zip(amounts, group.shown, strict=True)]
        draw_bars(axes, layout, values, texts, first=first, identity_value=field_map.identity_value)
        first += len(group.shown)


def describe_map(field_map: GateMap, sample: int) -> str:
    if field_map.description:
        return field_map.description
    if field_map.kind == "pooling":
        count = field_map.weights.shape[1]
        each = "" if count == 1 else f", by each of {count} weightings"
        return (
            f"Attention pooling: how much each place of the clip counts in the pooled feature{each}"
        )
    if field_map.kind == "mask":
        channels = field_map.weights.shape[1]
        return f"A mask over the features, mean of its {channels} channels at each place"
    if field_map.kind == "cam":
        return "What each place of each frame adds to the score of the class"
    if field_map.identity_value is None:
        return "Spatial attention: the weight of each place in each frame"
    return "A spatial gate: by what the features at each place of each frame are multiplied"


def _bar_label(field_map: GateMap) -> str:
    if field_map.normalized:
        return "weight, times the uniform weight"
    if field_map.kind == "mask":
        return "mean mask"
    if field_map.kind == "cam":
        return "added to the score"
    if field_map.identity_value is not None:
        return "gate"
    return "strength" if field_map.description else "weight"


def _legend(field_map: GateMap, grid: tuple[int, ...]) -> list[str]:
    if field_map.normalized:
        bars = "bars: each frame's share of the weight"
    else:
        bars = "bars: each frame's mean"
    if field_map.identity_value is not None:
        bars += f", with a line at {number_text(field_map.identity_value)}"
    return [bars, f"the map has {' x '.join(map(str, grid))} positions (T x H x W)"]
