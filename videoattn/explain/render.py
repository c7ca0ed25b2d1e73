"""Relates the cells of a map to the frames and pixels of a clip, and its weights to colors.

Pixel coordinates are continuous, with the origin at the upper left corner of the frame: the center
of pixel (y, x) is (y + 0.5, x + 0.5), and cell (i, j) of a grid (H', W') over (H, W) pixels has its
center at ((i + 0.5) H / H', (j + 0.5) W / W'), whatever the strides of the network.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from videoattn.types import Frames, Grid

SEQUENTIAL = "plasma"  # perceptually uniform, and none of its colors occurs in a gray frame
DIVERGING = "coolwarm"
STRONGEST_ALPHA = 0.75  # an object stays recognizable under the strongest color
FRAME_SATURATION = 0.25
LEAST_RANGE = 3.0  # least top of a scale, in uniform weights: a flat map must not look peaked


class Position(NamedTuple):
    """A frame index and a continuous pixel position in that frame."""

    frame: int
    y: float
    x: float


def cells_of_frames(num_frames: int, num_cells: int) -> list[int]:
    """Returns the temporal cell that covers each frame.

    Raises:
        ValueError: If there are more cells than frames.
    """
    if num_cells > num_frames:
        raise ValueError(
            f"attention map: {num_cells} temporal cells over {num_frames} frames; need at most "
            "one cell per frame: pass the frames of the clip that the map was recorded on"
        )
    return [frame * num_cells // num_frames for frame in range(num_frames)]


def cell_center(cell: Sequence[int], grid: Grid, clip: Grid) -> Position:
    """Returns the center of a cell (t, i, j) of a grid (T', H', W') in a clip (T, H, W). Its frame
    is the middle one of the cell's frames, or the first of two middle ones."""
    covered = [f for f, c in enumerate(cells_of_frames(clip[0], grid[0])) if c == cell[0]]
    y, x = ((cell[axis] + 0.5) * clip[axis] / grid[axis] for axis in (1, 2))
    return Position(covered[(len(covered) - 1) // 2], y, x)


def finite(weights: Tensor) -> Tensor:
    """Returns the weights in float32; raises a ValueError if one is not finite."""
    if not torch.isfinite(weights).all():
        raise ValueError(
            "attention map: some weights are not finite; find the layer that overflowed, or "
            "record in float32"
        )
    return weights.float()


def frame_shares(weights: Tensor, num_frames: int) -> list[float]:
    """Returns each frame's share of the summed absolute weights; the shares sum to 1. The frames
    that one cell covers share its weight equally."""
    cells = cells_of_frames(num_frames, weights.shape[0])
    mass = weights.abs().double().reshape(len(weights), -1).sum(1)
    total = float(mass.sum())
    if total == 0:  # possible for a row of dot products
        return [1 / num_frames] * num_frames
    return [float(mass[cell]) / total / cells.count(cell) for cell in cells]


class Scale(NamedTuple):
    """A map from weights to colors, shared by all frames of a sheet or an overlay.

    Args:
        unit: The weight that is displayed as 1.
        bottom: The displayed value with the first color.
        top: The displayed value with the last color.
        least: The displayed value without color: the bottom, the uniform weight, or the middle of
            a diverging scale.
        diverging: Whether values on both sides of `least` are colored.
    """

    unit: float
    bottom: float
    top: float
    least: float
    diverging: bool

    def text(self, value: float) -> str:
        """Formats a displayed value, as a multiple if the unit is not 1."""
        return number_text(value) + ("\u00d7" if self.unit != 1 and value else "")


def number_text(value: float | int) -> str:
    """Formats a number with three significant digits or as 2.9e4; the minus sign is U+2212."""
    text = f"{value:.3g}"
    if "e" in text:
        digits, power = f"{value:.1e}".split("e")
        text = f"{digits}e{int(power)}"
    return text.replace("-", "\u2212")


def make_scale(weights: Tensor, *, normalized: bool, visible: int | None = None) -> Scale:
    """Returns the scale for weights of any shape, from their largest absolute value.

    Normalized weights are displayed as multiples of the uniform weight, 1 / (number of
    positions). Other responses are displayed as they are, around zero.

    Args:
        visible: The number of positions that the query attends to. Default: all.
    """
    unit = 1.0 / (visible or weights.numel()) if normalized else 1.0
    top = float(weights.abs().max()) / unit
    if normalized:
        return Scale(unit, 0.0, max(top, LEAST_RANGE), 1.0, False)
    return Scale(unit, -(top or 1.0), top or 1.0, 0.0, True)


def strength(values: Tensor, scale: Scale) -> Tensor:
    """Returns the strength of marks, 0 to 1, for values in units of the scale. Normalized weights
    count from the uniform weight up, so a flat map has no marks."""
    beyond = values - scale.least
    if scale.diverging:
        beyond = beyond.abs()
    return (beyond / (scale.top - scale.least)).clamp(0, 1)


def colors_of(values: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """Returns RGB (..., 3) and alpha (...), from 0 to 1, for displayed values (weight / unit)."""
    position = ((values - scale.bottom) / (scale.top - scale.bottom)).clamp(0, 1)
    table = color_table(DIVERGING if scale.diverging else SEQUENTIAL)
    color = table[(position * (len(table) - 1)).round().long()]
    # A steep alpha around the middle of a diverging scale would draw zero as a contour.
    power = 1.25 if scale.diverging else 0.75
    return color, STRONGEST_ALPHA * strength(values, scale).pow(power)


def upsample(weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Resamples a map (T', H', W') to (T', H, W) with bicubic interpolation, clamped to the range
    of the map, against overshoot."""
    # antialias selects the cubic kernel with a = -0.5, which rings less.
    drawn = interpolate(weights[None], size=size, mode="bicubic", antialias=True)[0]
    return drawn.clamp(weights.min(), weights.max())


def resize(frames: Frames, size: tuple[int, int]) -> UInt8[Tensor, "T C H2 W2"]:
    """Resizes frames to (height, width) pixels, bicubic and antialiased."""
    if size == tuple(frames.shape[-2:]):
        return frames
    drawn = [  # one by one: large frames take four times their memory as floats
        interpolate(frame[None].float(), size=size, mode="bicubic", antialias=True)
        for frame in frames
    ]
    return torch.cat(drawn).round_().clamp_(0, 255).to(torch.uint8)


def blend(frames: Frames, weights: Tensor, scale: Scale) -> Frames:
    """Returns frames with a map (T', H', W') drawn over them. They are desaturated first, because
    their own colors could be mistaken for attention."""
    num_frames, _, height, width = frames.shape
    cells = cells_of_frames(num_frames, weights.shape[0])
    heat, alpha = colors_of(upsample(weights / scale.unit, (height, width)), scale)
    heat, alpha = heat.movedim(-1, 1)[cells], alpha[:, None][cells]
    drawn = frames.float().div_(255)
    gray = (drawn * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    drawn.sub_(gray).mul_(FRAME_SATURATION).add_(gray)
    drawn.mul_(1 - alpha).add_(heat.mul_(alpha))
    return drawn.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


@cache
def color_table(name: str) -> Tensor:
    """Returns the colors of a color map of matplotlib, (256, 3), from 0 to 1."""
    from matplotlib import colormaps  # not at the top: importing it is slow

    color_map = colormaps[name]
    return torch.tensor([color_map(i)[:3] for i in range(color_map.N)], dtype=torch.float32)
