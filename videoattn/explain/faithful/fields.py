"""Turns maps of every kind into fields: one value for each cell of a grid (T', H', W')."""

from math import prod

from jaxtyping import Float
from torch import Tensor

from videoattn.attention.maps import GateMap, PairwiseMap, to_input
from videoattn.explain.choose import summarize
from videoattn.explain.truth import cells
from videoattn.types import Grid

MOST_CELLS = 4096
COARSE: Grid = (8, 14, 14)
"""The largest grid that a map with more cells is averaged to."""


def field_of(
    found: PairwiseMap | GateMap, clip: Grid, *, most_cells: int = MOST_CELLS
) -> Float[Tensor, "t h w"] | None:
    """Returns the field of a map of one clip (T, H, W), or None if it has no positions.

    The field of a pairwise map is the mean weight that each key position receives; of a mask, its
    mean over channels; of poolings, their mean. Fields with more than `most_cells` are averaged.
    """
    if isinstance(found, PairwiseMap):
        if not found.is_whole or not all(found.grid_q):
            return None
        field = summarize(found).received.view(found.grid_k)
    elif found.kind == "channel":
        return None
    elif found.kind == "box":
        field = to_input(found, clip)[0]
    elif found.kind == "temporal":
        field = found.weights[0, :, None, None]
    else:
        field = found.weights[0] if found.weights.ndim == 4 else found.weights[0].mean(0)
    field = field.float().cpu()
    sizes = field.shape[0], field.shape[1], field.shape[2]
    if prod(sizes) <= most_cells:
        return field
    t, y, x = (min(pair) for pair in zip(sizes, COARSE, strict=True))
    return cells(field, (t, y, x)).float()
