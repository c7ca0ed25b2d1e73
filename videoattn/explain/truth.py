"""Compares an attention map with the ground truth of where to look.

A map has cells (..., T', H', W'). A mask has pixels (..., T, H, W), 0 - 1, of the network's clip.
Leading axes broadcast, so that the rows of many queries are compared with one mask. Cell i of n
covers the interval from i/n to (i + 1)/n of its axis.
"""

from itertools import pairwise
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from videoattn.attention.maps import PairwiseMap
from videoattn.types import Grid

Mask = Float[Tensor, "T H W"]
ON_OBJECT = 0.5
"""A query lies on the object if the object covers at least this share of its cell."""


def cells(mask: Float[Tensor, "... T H W"], grid: Grid) -> Float[Tensor, "... T2 H2 W2"]:
    """Returns the share of each cell of the grid that the mask covers, 0 - 1, in float64."""
    shares = mask.double()
    for axis, num_cells in zip((-3, -2, -1), grid, strict=True):
        overlap = _overlap(shares.shape[axis], num_cells)
        shares = (shares.movedim(axis, -1) @ overlap).movedim(-1, axis)
    return shares


def mass(
    weights: Float[Tensor, "... T2 H2 W2"], mask: Float[Tensor, "... T H W"]
) -> Float[Tensor, "..."]:
    """Returns the share of a map's positive weight that falls on the mask.

    Chance is the result of a uniform map: the share of the clip that the mask covers. A map without
    positive weights counts as uniform.
    """
    positive = weights.double().clamp(min=0)
    total = positive.sum((-3, -2, -1), keepdim=True)
    shares = torch.where(total > 0, positive / total, 1 / prod(_grid(weights)))
    return (shares * cells(mask, _grid(weights))).sum((-3, -2, -1))


def pointing(
    weights: Float[Tensor, "... T2 H2 W2"], mask: Float[Tensor, "... T H W"]
) -> Float[Tensor, "..."]:
    """Returns 1 if the cell with the highest weight meets the mask, else 0.

    Cells that share the highest weight are averaged. A cell meets the mask if the mask is above 0.5
    anywhere in it; `pointing_chance` is the share of such cells.
    """
    highest = weights == weights.amax((-3, -2, -1), keepdim=True)
    hits = highest & meets(mask, _grid(weights))
    return hits.sum((-3, -2, -1)) / highest.sum((-3, -2, -1))


def pointing_chance(mask: Float[Tensor, "... T H W"], grid: Grid) -> Float[Tensor, "..."]:
    """Returns the `pointing` of a random cell: the share of the cells that meet the mask."""
    return meets(mask, grid).double().mean((-3, -2, -1))


def meets(mask: Float[Tensor, "... T H W"], grid: Grid) -> Tensor:
    """Returns, for each cell, whether the mask is above 0.5 anywhere in it (bool)."""
    return cells((mask > 0.5).double(), grid) > 0


def place_scores(
    field: Float[Tensor, "t h w"], mask: Mask, distractors: Float[Tensor, "D T H W"]
) -> dict[str, float]:
    """Returns pointing, mass and lift (mass / area) on the object, distractor mass, and chances."""
    others = distractors.sum(0)
    grid = (field.shape[0], field.shape[1], field.shape[2])
    on_object, area = float(mass(field, mask)), float(mask.double().mean())
    return {
        "pointing": float(pointing(field, mask)),
        "pointing_chance": float(pointing_chance(mask, grid)),
        "mass": on_object,
        "area": area,
        "lift": on_object / area if area else 1.0,
        "distractors": float(mass(field, others)),
        "distractors_area": float(others.double().mean()),
    }


def time_scores(field: Float[Tensor, "t h w"], moving: Float[Tensor, " T"]) -> dict[str, float]:
    """Returns the share of mass in frames where the object moves (`moving` is 1), and chance."""
    mask = moving[:, None, None]
    return {"time": float(mass(field, mask)), "time_chance": float(moving.double().mean())}


def rival_scores(field: Float[Tensor, "t h w"], mask: Mask, rival: Mask) -> dict[str, float]:
    """Returns the mass on the object as a share of the mass on the object and on a rival, and the
    corresponding share of their areas, which is chance."""
    ours, theirs = float(mass(field, mask)), float(mass(field, rival))
    areas = float(mask.double().sum()), float(rival.double().sum())
    return {
        "right_object": ours / (ours + theirs) if ours + theirs else 0.5,
        "right_object_chance": areas[0] / sum(areas) if sum(areas) else 0.5,
    }


def tracking(found: PairwiseMap, mask: Mask) -> dict[str, float] | None:
    """Scores whether queries on the object, at most one per frame, attend to it in other frames.

    Returns the mean share of their weight in other frames on the object there ("tracking"), and on
    its place in the query's frame ("staying"), each with the share of the area, which is chance.
    Returns None if no query lies on the object, or the map is not whole or has one frame.
    """
    on_queries, on_keys = cells(mask, found.grid_q), cells(mask, found.grid_k)
    queries, frames = _queries_on(on_queries, found.grid_q, found.grid_k[0])
    if not len(queries) or found.grid_k[0] < 2 or not found.is_whole:
        return None
    rows = found.select(queries).weights[0].double().clamp(min=0)
    sums = {"tracking": 0.0, "tracking_chance": 0.0, "staying": 0.0, "staying_chance": 0.0}
    for row, frame in zip(rows, frames, strict=True):
        other = torch.arange(len(on_keys)) != frame
        shares = row[other] / row[other].sum().clamp_min(1e-12)
        for name, place in (("tracking", on_keys[other]), ("staying", on_keys[frame][None])):
            sums[name] += float((shares * place).sum()) / len(rows)
            sums[f"{name}_chance"] += float(place.mean()) / len(rows)
    return sums


def _queries_on(
    covered: Float[Tensor, "t h w"], grid: Grid, key_frames: int
) -> tuple[Tensor, list[int]]:
    """Returns each frame's query that the object covers most (at least half), and its key frame."""
    best = covered.flatten(1).max(1)
    frames = (best.values >= ON_OBJECT).nonzero().flatten()
    numbers = frames * prod(grid[1:]) + best.indices[frames]
    return numbers, [int(frame) * key_frames // grid[0] for frame in frames]


def _grid(weights: Tensor) -> Grid:
    frames, height, width = weights.shape[-3:]
    return frames, height, width


def _overlap(size: int, num_cells: int) -> Tensor:
    """Returns the share of each cell that each pixel covers: (size, num_cells)."""
    edges = [size * cell / num_cells for cell in range(num_cells + 1)]
    first = torch.arange(size, dtype=torch.float64)
    columns = [
        (first + 1).clamp(max=end) - first.clamp(min=start) for start, end in pairwise(edges)
    ]
    return torch.stack(columns, dim=1).clamp(min=0) * (num_cells / size)
