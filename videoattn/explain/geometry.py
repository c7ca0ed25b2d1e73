"""Relates the cells of an attention map to the frames and pixels of a clip. No drawing.

Pixel coordinates are continuous, with the origin at the upper left corner of the frame: the center
of pixel (y, x) is (y + 0.5, x + 0.5), and cell (i, j) of a grid (H', W') over (H, W) pixels has its
center at ((i + 0.5) H / H', (j + 0.5) W / W'), whatever the strides of the network.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from videoattn.attention.maps import GATE_AXES, GateMap, PairwiseMap


class Position(NamedTuple):
    """A frame index and a continuous pixel position in that frame."""

    frame: int
    y: float
    x: float


class Window(NamedTuple):
    """The region of a clip that a query attends to: frames, and pixels with exclusive ends."""

    frames: list[int]
    top: float
    left: float
    bottom: float
    right: float


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


def cell_center(
    cell: tuple[int, int, int], grid: tuple[int, int, int], clip: tuple[int, int, int]
) -> Position:
    """Returns the center of a cell (t, i, j) of a grid (T', H', W') in a clip (T, H, W).

    Its frame is the middle one of the cell's frames, or the first of two middle ones.
    """
    covered = [f for f, c in enumerate(cells_of_frames(clip[0], grid[0])) if c == cell[0]]
    y, x = ((cell[axis] + 0.5) * clip[axis] / grid[axis] for axis in (1, 2))
    return Position(covered[(len(covered) - 1) // 2], y, x)


def query_position(
    attention_map: PairwiseMap,
    query: int,
    clip: tuple[int, int, int],
    pixel: tuple[int, int, int] | None = None,
) -> Position:
    """Returns the position of a query in a clip: `pixel` (frame, y, x) or, without it, the center
    of its cell.

    Raises:
        ValueError: If the pixel is outside the clip, or neither in the query's cell nor next to it.
            Neighbors are allowed, because pixels are rounded if a clip is drawn larger than the
            network's input.
    """
    t, i, j = attention_map.queries[query].tolist()
    if pixel is None:
        return cell_center((t, i, j), attention_map.grid_q, clip)
    sizes = zip(pixel, attention_map.grid_q, clip, strict=True)
    frame, y, x = (at * cells // size for at, cells, size in sizes)
    inside = all(0 <= at < size for at, size in zip(pixel, clip, strict=True))
    if not inside or frame != t or abs(y - i) > 1 or abs(x - j) > 1:
        raise ValueError(
            f"pixel (frame, y, x) = {pixel} of a clip of {clip[0]} x {clip[1]} x {clip[2]} is not "
            f"in the cell of query {query}, {(t, i, j)} of {attention_map.grid_q}; record this "
            "pixel, or omit it to mark the center of the cell"
        )
    return Position(pixel[0], pixel[1] + 0.5, pixel[2] + 0.5)


def weights_of(attention_map: PairwiseMap, sample: int, query: int) -> Tensor:
    """Returns the weights (T', H', W') of one query in float32.

    Raises:
        ValueError: If a weight is not finite.
    """
    return _finite(attention_map.weights[sample, query])


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
    return _finite(gate_map.weights[sample])


def _finite(weights: Tensor) -> Tensor:
    if not torch.isfinite(weights).all():
        raise ValueError(
            "attention map: some weights are not finite; find the layer that overflowed, or "
            "record in float32"
        )
    return weights.float()


def window_of(weights: Tensor, clip: tuple[int, int, int]) -> Window:
    """Returns the smallest window with all nonzero weights of a map (T', H', W')."""
    used = weights.nonzero() if bool(weights.any()) else torch.ones_like(weights).nonzero()
    (t0, i0, j0), (t1, i1, j1) = used.amin(0).tolist(), (used.amax(0) + 1).tolist()
    y, x = clip[1] / weights.shape[1], clip[2] / weights.shape[2]
    cells = cells_of_frames(clip[0], weights.shape[0])
    frames = [frame for frame, cell in enumerate(cells) if t0 <= cell < t1]
    return Window(frames, i0 * y, j0 * x, i1 * y, j1 * x)


def strongest_keys(
    weights: Tensor, count: int, clip: tuple[int, int, int]
) -> list[tuple[Position, float]]:
    """Returns the cells of a map (T', H', W') with the largest absolute weights, largest first.

    There are at most `count`, and none is below the mean: a map with one peak has few.
    """
    grid = (weights.shape[0], weights.shape[1], weights.shape[2])
    flat = weights.flatten()
    order = torch.argsort(flat.abs(), descending=True, stable=True)[:count]
    least = flat.abs().double().mean() * (1 - 1e-5)  # rounding: a flat map equals its mean
    strongest = order[flat.abs()[order] >= least].tolist()
    cells = [(i // (grid[1] * grid[2]), i // grid[2] % grid[1], i % grid[2]) for i in strongest]
    positions = [cell_center(cell, grid, clip) for cell in cells]
    return list(zip(positions, flat[strongest].tolist(), strict=True))


def frame_shares(weights: Tensor, num_frames: int) -> list[float]:
    """Returns each frame's share of the summed absolute weights; the shares sum to 1.

    The frames that one cell covers share its weight equally.
    """
    cells = cells_of_frames(num_frames, weights.shape[0])
    mass = weights.abs().double().reshape(len(weights), -1).sum(1)
    total = float(mass.sum())
    if total == 0:  # possible for a row of dot products
        return [1 / num_frames] * num_frames
    return [float(mass[cell]) / total / cells.count(cell) for cell in cells]
