"""Finds the most active region of a feature map, its bounding box, and the crop of that box.

Of g cells along an axis of `size` pixels, cell i covers the pixels [i·S, (i+1)·S) with S = size/g;
a box that ends between two pixels is widened to whole pixels. All functions work on batches in
which every clip has its own boxes, and have no data-dependent shapes or branches, for torch.compile
and torch.export.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from videoattn.attention.functional import autocast_off, widen
from videoattn.types import Video

STATISTICS = ("max", "l1", "l2")
SCALES = ("minmax", "max")

Ends = Int64[Tensor, "N 3 2"]
"""Boxes as [start, end) for t, y and x."""


def activity(features: Video, statistic: str) -> Float[Tensor, "N T H W"]:
    """Returns the activity of each position, in float32 or wider: over channels, the maximum of |f|
    ("max"), its mean ("l1") or its root mean square ("l2")."""
    size = widen(features).abs()
    if statistic == "max":
        return size.amax(1)
    return size.mean(1) if statistic == "l1" else size.square().mean(1).sqrt()


def scaled(heat: Float[Tensor, "N T H W"], scale: str) -> Float[Tensor, "N T H W"]:
    """Scales each map to [0, 1] by (h - min) / (max - min) ("minmax") or h / max ("max"). A
    constant map ("minmax") or a map of zeros ("max") becomes zero."""
    low = heat.amin((1, 2, 3), keepdim=True) if scale == "minmax" else torch.zeros_like(heat[:1])
    span = (heat - low).amax((1, 2, 3), keepdim=True)
    return (heat - low) / torch.where(span > 0, span, 1.0)


def largest_region(mask: Bool[Tensor, "N T H W"]) -> Bool[Tensor, "N T H W"]:
    """Returns the largest connected component of each mask; ties go to the first in T, H, W order.

    Cells are connected by faces: 4 neighbors in a frame, 6 in a volume. Reachability is computed by
    squaring the adjacency matrix: log2(P) products of P x P matrices for P cells, which is exact
    for any shape. Grids come from the last stage of a network, so P is 49 for a frame and a few
    hundred for a volume.
    """
    grid = mask.shape[1:]
    num_cells = grid.numel()
    positions = torch.cartesian_prod(*(torch.arange(n, device=mask.device) for n in grid))
    steps = (positions[:, None] - positions).abs().sum(-1)  # (P, P)
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
    """Returns the bounding box of each mask in cells; an empty mask gives the whole grid."""
    mask = mask | ~mask.any((1, 2, 3), keepdim=True)
    ends = []
    for axis, others in ((1, (2, 3)), (2, (1, 3)), (3, (1, 2))):
        taken = mask.any(others).int()  # (N, cells of the axis)
        ends.append(torch.stack([taken.argmax(1), mask.shape[axis] - taken.flip(1).argmax(1)], 1))
    return torch.stack(ends, 1)


def in_pixels(boxes: Ends, grid: tuple[int, ...], size: tuple[int, ...], min_size: float) -> Ends:
    """Converts boxes in cells of a grid to boxes in frames and pixels of a clip of size (T, H, W).

    A side shorter than `min_size` times the clip's side grows around its center. A box that
    would leave the clip is moved inside.
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
    """Crops each clip to its boxes and resizes the crop to the size of the clip.

    With R = 1 a clip has one box, which also crops time. Otherwise frame t has box t·R // T, and no
    frame is dropped. The result equals `F.interpolate` (bilinear or trilinear, align_corners=False)
    of `video[..., y0:y1, x0:x1]`. It is computed as products with matrices that have two entries
    per row, because every clip has its own box. Gradients reach the video, not the boxes.
    """
    num_frames, height, width = video.shape[2:]
    with autocast_off(video):
        frames = widen(video).transpose(1, 2)  # (N, T, C, H, W)
        wide = frames.dtype
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
    """Returns the index of each frame's box, t·R // T."""
    return torch.arange(num_frames, device=device) * num_boxes // num_frames


def _resampling(ends: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Returns matrices (..., size, size) from input to output pixels for [start, end) (..., 2).
    Rows sum to 1, and pixels outside [start, end) have weight 0."""
    start, end = ends[..., :1].to(dtype), ends[..., 1:].to(dtype)
    at = torch.arange(size, device=ends.device, dtype=dtype)
    source = (at + 0.5) * ((end - start) / size) - 0.5 + start
    source = torch.minimum(torch.maximum(source, start), end - 1)
    return (1 - (source[..., None] - at).abs()).clamp(min=0)
