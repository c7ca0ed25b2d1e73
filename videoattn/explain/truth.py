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

from videoattn.types import Grid


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

    A uniform map has the mask's share of the clip, which is chance. A map without positive weight
    counts as uniform.
    """
    positive = weights.double().clamp(min=0)
    total = positive.sum((-3, -2, -1), keepdim=True)
    shares = torch.where(total > 0, positive / total, 1 / prod(_grid(weights)))
    return (shares * cells(mask, _grid(weights))).sum((-3, -2, -1))


def pointing(
    weights: Float[Tensor, "... T2 H2 W2"], mask: Float[Tensor, "... T H W"]
) -> Float[Tensor, "..."]:
    """Returns 1 if the cell with the highest weight meets the mask, else 0.

    Of several highest cells, the mean. A cell meets the mask if the mask is above 0.5 anywhere in
    it; `pointing_chance` is the share of such cells.
    """
    highest = weights == weights.amax((-3, -2, -1), keepdim=True)
    hits = highest & meets(mask, _grid(weights))
    return hits.sum((-3, -2, -1)) / highest.sum((-3, -2, -1))


def pointing_chance(mask: Float[Tensor, "... T H W"], grid: Grid) -> Float[Tensor, "..."]:
    """Returns the `pointing` of a random cell: the share of the cells that meet the mask."""
    return meets(mask, grid).double().mean((-3, -2, -1))


def meets(mask: Float[Tensor, "... T H W"], grid: Grid) -> Tensor:
    """Returns whether the mask is above 0.5 anywhere in each cell."""
    return cells((mask > 0.5).double(), grid) > 0


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
