"""From a map of how active places are to a box, and from a box to a crop of the clip's size.

A feature cell i of g covers the input's pixels [i·S, (i+1)·S) with S = size / g; a box that does
not end on a whole pixel is widened to the next one. Everything is tensors of fixed shapes: every
clip of a batch has boxes of its own, and torch.compile and torch.export see no branch.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from videoattn.attention.functional import autocast_off
from videoattn.types import Video

STATISTICS = ("max", "l1", "l2")
SCALES = ("minmax", "max")

Ends = Int64[Tensor, "N 3 2"]
"""Boxes: the first (t, y, x) in them, and the first after them."""


def activity(features: Video, statistic: str) -> Float[Tensor, "N T H W"]:
    """How active each place is: over the channels, the maximum, the mean or the root of the mean
    square of |f|; in float32 at least."""
    size = features.to(torch.promote_types(features.dtype, torch.float32)).abs()
    if statistic == "max":
        return size.amax(1)
    return size.mean(1) if statistic == "l1" else size.square().mean(1).sqrt()


def scaled(heat: Float[Tensor, "N T H W"], scale: str) -> Float[Tensor, "N T H W"]:
    """Each row of N between 0 and 1: (h - min) / (max - min), or h / max. Zeros where all places
    are as active (or, by "max", not at all)."""
    low = heat.amin((1, 2, 3), keepdim=True) if scale == "minmax" else torch.zeros_like(heat[:1])
    span = (heat - low).amax((1, 2, 3), keepdim=True)
    return (heat - low) / torch.where(span > 0, span, 1.0)


def largest_region(mask: Bool[Tensor, "N T H W"]) -> Bool[Tensor, "N T H W"]:
    """The part of each mask that is connected (by faces: 4 neighbours in a frame, 6 in a volume)
    and has the most cells; of equal ones the first in the order T, H, W.

    Cells that reach each other are found by squaring the matrix of who is next to whom: log2(P)
    products of P x P matrices for P cells, which is exact whatever the region's shape. Grids are
    those of a network's last stage: P is 49 for a frame, some hundred for a volume.
    """
    grid = mask.shape[1:]
    num_cells = grid.numel()
    places = torch.cartesian_prod(*(torch.arange(n, device=mask.device) for n in grid))
    steps = (places[:, None] - places).abs().sum(-1)  # (P, P)
    inside = mask.flatten(1)
    reach = (steps <= 1) & inside[:, :, None] & inside[:, None, :]  # (N, P, P)
    with autocast_off(mask):
        for _ in range((num_cells - 1).bit_length()):  # paths of 1, 2, 4, ... steps
            paths = reach.float()
            reach = paths @ paths > 0
    first = reach.sum(-1).argmax(-1)  # (N,), a cell of the largest region
    chosen = reach.gather(1, first[:, None, None].expand(-1, 1, num_cells))
    return chosen.view_as(mask)


def bounding_boxes(mask: Bool[Tensor, "N T H W"]) -> Ends:
    """The smallest box around each mask, in cells; around everything where a mask is empty."""
    mask = mask | ~mask.any(3).any(2).any(1)[:, None, None, None]
    ends = []
    for axis, others in ((1, (3, 2)), (2, (3, 1)), (3, (2, 1))):
        taken = mask.any(others[0]).any(others[1]).int()  # (N, cells of the axis)
        ends.append(torch.stack([taken.argmax(1), mask.shape[axis] - taken.flip(1).argmax(1)], 1))
    return torch.stack(ends, 1)


def in_pixels(boxes: Ends, grid: tuple[int, ...], size: tuple[int, ...], min_size: float) -> Ends:
    """Boxes of cells of a grid as boxes of frames and pixels of a clip (T, H, W).

    A box with a side shorter than `min_size` of the clip's grows about its centre, and is moved
    inside where it would leave the clip.
    """
    cells = torch.tensor(grid, device=boxes.device)
    pixels = torch.tensor(size, device=boxes.device)
    least = torch.tensor([math.ceil(n * min_size) for n in size], device=boxes.device)
    start = boxes[..., 0] * pixels // cells
    end = -(-boxes[..., 1] * pixels // cells)  # rounded up
    length = torch.maximum(end - start, least)
    start = start - (length - (end - start)) // 2
    start = torch.minimum(start.clamp(min=0), pixels - length)
    return torch.stack([start, start + length], -1)


def crop(video: Video, boxes: Int64[Tensor, "N R 3 2"]) -> Video:
    """What is in the boxes, resized to the clip's size; gradients reach the video, not the boxes.

    R = 1 is one box for the clip, cut from time too. Otherwise each frame t has the box
    t·R // T of its own, and no frame is left out. The same numbers as `F.interpolate` (bilinear or
    trilinear, align_corners=False) of `video[..., y0:y1, x0:x1]`, as products with matrices of two
    entries a row, because each clip has another box.
    """
    num_frames, height, width = video.shape[2:]
    wide = torch.promote_types(video.dtype, torch.float32)
    with autocast_off(video):
        frames = video.to(wide).transpose(1, 2)  # (N, T, C, H, W)
        if boxes.shape[1] == 1:
            in_time = _resampling(boxes[:, 0, 0], num_frames, wide)  # (N, T, T)
            frames = (in_time @ frames.flatten(2)).view_as(frames)
        else:
            boxes = boxes[:, box_of_frame(num_frames, boxes.shape[1], boxes.device)]
        rows = _resampling(boxes[:, :, 1], height, wide)  # (N, R, H, H)
        columns = _resampling(boxes[:, :, 2], width, wide)
        frames = rows[:, :, None] @ frames @ columns[:, :, None].transpose(-1, -2)
    return frames.transpose(1, 2).to(video.dtype)


def box_of_frame(num_frames: int, num_boxes: int, device: torch.device) -> Tensor:
    """The number of the box that each frame has: t·R // T."""
    return torch.arange(num_frames, device=device) * num_boxes // num_frames


def _resampling(ends: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(..., 2) -> (..., size, size): output pixels by input pixels. Rows sum to 1; nothing outside
    [start, end) has weight."""
    start, end = ends[..., :1].to(dtype), ends[..., 1:].to(dtype)
    at = torch.arange(size, device=ends.device, dtype=dtype)
    source = (at + 0.5) * ((end - start) / size) - 0.5 + start
    source = torch.minimum(torch.maximum(source, start), end - 1)
    return (1 - (source[..., None] - at).abs()).clamp(min=0)
