"""From attention weights to colours over frames: pure functions, uint8 frames in and out."""

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from matplotlib import colormaps
from torch import Tensor
from torch.nn.functional import interpolate

from videoattn.explain.geometry import cells_of_frames
from videoattn.types import Frames

SEQUENTIAL = "plasma"  # perceptually uniform, and no part of it is a colour of grey frames
DIVERGING = "coolwarm"
STRONGEST_ALPHA = 0.75  # what is looked at stays recognisable under its own heat
FRAME_SATURATION = 0.25
LEAST_RANGE = 3.0  # in uniform weights: a map that is nearly flat must not look like a peaked one
LEAST_SPAN = 0.05  # of the largest weight, for the same reason where no uniform weight is a measure


class Scale(NamedTuple):
    """How weights become colours: the same for all frames of a sheet or an overlay.

    `unit` is the weight that is shown as 1; `bottom` and `top` are the shown values with the first
    and the last colour. Colour begins at `least`: at the bottom, or above it, or, where the scale
    is diverging, to both sides of it.
    """

    unit: float
    bottom: float
    top: float
    least: float
    diverging: bool


def make_scale(weights: Tensor, *, normalized: bool, visible: int | None = None) -> Scale:
    """The scale for a map (T', H', W') of one query, from its largest |weight|.

    Weights that sum to 1 are shown in multiples of 1 / (T' H' W'), what each position would get
    if the query looked everywhere alike; `visible` is the number of positions that it can see at
    all, where not all. Responses that are no probabilities are shown as they are.
    """
    unit = 1.0 / (visible or weights.numel()) if normalized else 1.0
    top = float(weights.abs().max()) / unit
    if normalized:
        return Scale(unit, 0.0, max(top, LEAST_RANGE), 1.0, False)
    return Scale(unit, -(top or 1.0), top or 1.0, 0.0, True)


def make_field_scale(
    weights: Tensor, *, normalized: bool, identity_value: float | None, positions: int | None = None
) -> Scale:
    """The scale for weights that belong to no query, of any shape, from their range.

    positions: over how many a weighting sums to 1, where it does and they are not all.

    Diverging around the neutral weight (or 0) where there are weights on both sides of it. Where
    all are on one side it runs over their own range: half-open gates differ by little beside their
    distance from 1, and a scale from 1 would show that distance only.
    """
    if normalized:
        return make_scale(weights, normalized=True, visible=positions)
    low, high = float(weights.min()), float(weights.max())
    middle = 0.0 if identity_value is None else identity_value
    least_span = LEAST_SPAN * max(abs(low), abs(high), abs(middle)) or 1.0
    if low < middle < high or low == middle == high:
        reach = max(high - middle, middle - low, least_span)
        return Scale(1.0, middle - reach, middle + reach, middle, True)
    return Scale(1.0, low, max(high, low + least_span), low, False)


def strength(values: Tensor, scale: Scale) -> Tensor:
    """How much of a mark values (in units of the scale) are worth: 0 none, 1 the strongest.

    Weights that sum to 1 count from the uniform one up: a query that looks everywhere alike marks
    nothing.
    """
    beyond = values - scale.least
    if scale.diverging:
        beyond = beyond.abs()
    return (beyond / (scale.top - scale.least)).clamp(0, 1)


def colours(values: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """RGB (..., 3) and alpha (...), both 0 - 1, of values (...) in units of the scale."""
    place = ((values - scale.bottom) / (scale.top - scale.bottom)).clamp(0, 1)
    table = _table(DIVERGING if scale.diverging else SEQUENTIAL)
    colour = table[(place * (len(table) - 1)).round().long()]
    # around the middle of a diverging scale a steep alpha would draw the zero lines as contours
    power = 1.25 if scale.diverging else 0.75
    return colour, STRONGEST_ALPHA * strength(values, scale).pow(power)


def upsample(weights: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (T', H', W') smoothly drawn out to (T', H, W); right at each cell's centre.

    Cubic, and held inside the map's own range: no overshoot invents attention.
    """
    # antialias selects the cubic of a = -0.5, which rings less; enlarging, it blurs nothing
    drawn = interpolate(weights[None], size=size, mode="bicubic", antialias=True)[0]
    return drawn.clamp(weights.min(), weights.max())


def resize(frames: Frames, size: tuple[int, int]) -> UInt8[Tensor, "T C H2 W2"]:
    """The frames at (height, width) pixels, cubic and antialiased."""
    if size == tuple(frames.shape[-2:]):
        return frames
    drawn = interpolate(frames.float(), size=size, mode="bicubic", antialias=True)
    return drawn.round_().clamp_(0, 255).to(torch.uint8)


def blend(frames: Frames, weights: Tensor, scale: Scale) -> Frames:
    """The frames with a query's map (T', H', W') over them, in 8 bits.

    The frames are muted first: their own colours would be taken for attention.
    """
    num_frames, _, height, width = frames.shape
    cells = cells_of_frames(num_frames, weights.shape[0])
    heat, alpha = colours(upsample(weights / scale.unit, (height, width)), scale)
    heat, alpha = heat.movedim(-1, 1)[cells], alpha[:, None][cells]
    drawn = _mute(frames).mul_(1 - alpha).add_(heat.mul_(alpha))
    return drawn.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _mute(frames: Frames) -> Tensor:
    pixels = frames.float().div_(255)
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    return pixels.sub_(grey).mul_(FRAME_SATURATION).add_(grey)


@cache
def _table(name: str) -> Tensor:
    colour_map = colormaps[name]
    return torch.tensor([colour_map(i)[:3] for i in range(colour_map.N)], dtype=torch.float32)
