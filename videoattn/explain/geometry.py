"""Where a cell of an attention map lies in a clip, and back: index arithmetic, no drawing.

Pixels are continuous with the origin at the upper left corner of the upper left pixel, so the
centre of pixel (y, x) is (y + 0.5, x + 0.5) and a grid of (H', W') cells over (H, W) pixels has
the centre of cell (i, j) at ((i + 0.5) H / H', (j + 0.5) W / W'), whatever the strides between.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from videoattn.attention.record import GateMap, PairwiseMap


class Position(NamedTuple):
    """A place in a clip: which of its frames (from 0), and a continuous pixel of it."""

    frame: int
    y: float
    x: float


class Key(NamedTuple):
    """One key cell of a map, its place in the clip, and the weight that the query gave it."""

    position: Position
    weight: float


def cells_of_frames(num_frames: int, num_cells: int) -> list[int]:
    """For each frame of the clip, the temporal cell that covers it: T / T' frames to a cell.

    Raises ValueError where the map has more temporal cells than the clip has frames.
    """
    if num_cells > num_frames:
        raise ValueError(
            f"attention map: {num_cells} temporal cells over {num_frames} frames; at most one cell "
            "a frame: hand in the frames of the clip that the map was recorded on"
        )
    return [frame * num_cells // num_frames for frame in range(num_frames)]


def frame_of_cell(cell: int, num_frames: int, num_cells: int) -> int:
    """The middle one of the frames that a temporal cell covers (of two, the first)."""
    covered = [f for f, c in enumerate(cells_of_frames(num_frames, num_cells)) if c == cell]
    return covered[(len(covered) - 1) // 2]


def cell_centre(
    cell: tuple[int, int, int], grid: tuple[int, int, int], clip: tuple[int, int, int]
) -> Position:
    """The centre of a cell (t', i, j) of a grid (T', H', W') in a clip of (T, H, W)."""
    return Position(
        frame_of_cell(cell[0], clip[0], grid[0]),
        (cell[1] + 0.5) * clip[1] / grid[1],
        (cell[2] + 0.5) * clip[2] / grid[2],
    )


def check_query(query: tuple[int, int, int], clip: tuple[int, int, int]) -> None:
    """Raises ValueError where a query (frame, y, x) lies outside a clip of (T, H, W)."""
    for name, got, limit in zip(("frame", "y", "x"), query, clip, strict=True):
        if not 0 <= got < limit:
            raise ValueError(
                f"query (frame, y, x) = {query}: {name} {got} is outside the clip; allowed is "
                f"0 to {limit - 1}: a query is a frame and a pixel of the clip that the network "
                f"sees, {clip[0]} frames of {clip[1]} x {clip[2]} pixels (height x width)"
            )


def query_position(
    attention_map: PairwiseMap,
    query: int,
    clip: tuple[int, int, int],
    pixel: tuple[int, int, int] | None = None,
) -> Position:
    """Where a query lies in a clip: at `pixel` (frame, y, x), or else at its cell's centre.

    Raises ValueError where the pixel is outside the clip, or far from the query's cell. A cell
    beside it passes: the clip may be shown larger than the network saw it, and pixels round.
    """
    recorded = attention_map.queries[query].tolist()
    if pixel is None:
        t, i, j = recorded
        return cell_centre((t, i, j), attention_map.grid_q, clip)
    check_query(pixel, clip)
    cell = [
        at * cells // size
        for at, cells, size in zip(pixel, attention_map.grid_q, clip, strict=True)
    ]
    off = [abs(at - there) for at, there in zip(cell, recorded, strict=True)]
    if off[0] > 0 or max(off) > 1:
        raise ValueError(
            f"query pixel (frame, y, x) = {pixel} lies in cell {tuple(cell)} of the query grid, "
            f"but query {query} of the map was recorded at cell {tuple(recorded)}: record this "
            "pixel, or leave it out to mark the cell's centre"
        )
    return Position(pixel[0], pixel[1] + 0.5, pixel[2] + 0.5)


def weights_of(attention_map: PairwiseMap, sample: int, query: int) -> Tensor:
    """One query's weights (T', H', W') in float32. Raises ValueError where there is none such."""
    _check_held("sample", sample, attention_map.weights.shape[0])
    _check_held("query", query, attention_map.weights.shape[1])
    return _finite(attention_map.weights[sample, query])


AXES = {
    "channel": "C",
    "spatial": "T H W",
    "cam": "T H W",
    "temporal": "T",
    "mask": "C T H W",
    "pooling": "D T H W",
}
AXES["box"] = "T 4"


def field_of(field_map: GateMap, sample: int) -> Tensor:
    """One sample's weights, of its kind's shape without N; a channel gate may have a T behind C.

    Raises ValueError where the shape is not the kind's, or there is no such sample.
    """
    shape, axes = tuple(field_map.weights.shape), AXES[field_map.kind].split()
    per_frame = field_map.kind == "channel" and len(shape) == 3
    fits = len(shape) == len(axes) + 1 and (field_map.kind != "box" or shape[-1] == 4)
    if not (fits or per_frame) or 0 in shape:
        allowed = f"(N, {', '.join(axes)})" + (" or (N, C, T)" if axes == ["C"] else "")
        raise ValueError(
            f"{field_map.kind} map: weights of shape {shape}; need {allowed}, none of them 0: "
            "see GateMap"
        )
    _check_held("sample", sample, shape[0])
    return _finite(field_map.weights[sample])


def _check_held(name: str, got: int, limit: int) -> None:
    if not 0 <= got < limit:
        raise ValueError(
            f"{name} {got} is not in the attention map; it holds {limit}, counted from 0: "
            f"record it, or choose 0 to {limit - 1}"
        )


def _finite(weights: Tensor) -> Tensor:
    """In float32."""
    if not torch.isfinite(weights).all():
        raise ValueError(
            "attention map: holds weights that are not finite; allowed are finite numbers: "
            "look for the layer that overflowed, or record in float32"
        )
    return weights.float()


class Window(NamedTuple):
    """The part of a clip that a query can see: its frames, and pixels, ends excluded."""

    frames: list[int]
    top: float
    left: float
    bottom: float
    right: float


def window_of(weights: Tensor, clip: tuple[int, int, int]) -> Window:
    """The smallest block of cells of a local map (T', H', W') that holds all that is not 0."""
    seen = weights.nonzero() if bool(weights.any()) else torch.ones_like(weights).nonzero()
    (t0, i0, j0), (t1, i1, j1) = seen.amin(0).tolist(), (seen.amax(0) + 1).tolist()
    y, x = clip[1] / weights.shape[1], clip[2] / weights.shape[2]
    cells = cells_of_frames(clip[0], weights.shape[0])
    frames = [frame for frame, cell in enumerate(cells) if t0 <= cell < t1]
    return Window(frames, i0 * y, j0 * x, i1 * y, j1 * x)


def strongest_keys(weights: Tensor, count: int, clip: tuple[int, int, int]) -> list[Key]:
    """The cells of a map (T', H', W') with the largest |weight|, strongest first: at most `count`,
    and none below the mean, so that a map with one peak does not point everywhere."""
    grid = (weights.shape[0], weights.shape[1], weights.shape[2])
    flat = weights.flatten()
    order = torch.argsort(flat.abs(), descending=True, stable=True)[:count]
    least = flat.abs().double().mean() * (1 - 1e-5)  # rounding: in a flat map every cell is it
    strongest = order[flat.abs()[order] >= least].tolist()
    cells = [(i // (grid[1] * grid[2]), i // grid[2] % grid[1], i % grid[2]) for i in strongest]
    return [
        Key(cell_centre(cell, grid, clip), float(flat[i]))
        for i, cell in zip(strongest, cells, strict=True)
    ]


def frame_shares(weights: Tensor, num_frames: int) -> list[float]:
    """Each frame's share of the attention: sums of |weight| over a frame, 1 in all.

    A cell that covers several frames gives each an equal part.
    """
    cells = cells_of_frames(num_frames, weights.shape[0])
    mass = weights.abs().double().sum(dim=(1, 2))
    total = float(mass.sum())
    if total == 0:  # a dot-product row may be all zero: nothing is looked at, evenly
        return [1 / num_frames] * num_frames
    return [float(mass[cell]) / total / cells.count(cell) for cell in cells]
