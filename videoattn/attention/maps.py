"""The types of attention maps, and their resampling to the grid of a clip.

A pairwise map has one row for each query position: the weight that the query gives to each key
position. Other maps (gates, masks, poolings, boxes) have no query.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from videoattn.attention.functional import autocast_off, normalize
from videoattn.types import Grid

Kind = Literal["channel", "spatial", "temporal", "mask", "pooling", "box", "cam"]
Rule = Literal["softmax", "sigmoid", "count", "relu_sum"]


class Factors(NamedTuple):
    """A pairwise map as `rule(q kᵀ · scale)`. Any row can be computed later without the network.

    q, k: Positions first, in the order T, H, W, then special tokens.
    rule: "softmax" and "sigmoid" as in `functional`; "count" divides by P; "relu_sum" is a ReLU,
        then "count".
    """

    q: Float[Tensor, "N h Q D"]
    k: Float[Tensor, "N h P D"]
    rule: Rule
    scale: float

    def rows(self, positions: Tensor) -> Float[Tensor, "N h Q P"]:
        """Returns the rows of the queries with these indices (Q,)."""
        with autocast_off(self.q):
            logits = self.q[:, :, positions.to(self.q.device)] @ self.k.transpose(2, 3) * self.scale
        if self.rule == "relu_sum":
            return normalize(logits.relu(), "count")
        return normalize(logits, self.rule)


@dataclass(frozen=True, eq=False)
class PairwiseAttention:
    """The map of a pairwise block, whose rows are computed on request.

    Args:
        grid_q: (T, H, W) of the queries.
        grid_k: (T, H, W) of the keys; pooled keys have a smaller grid.
        normalized: Whether a row, with the keys that have no position, is a distribution.
        weigh: Function from query numbers (Q,) to weights (N, Q, P) or (N, h, Q, P). Queries are
            numbered by position, in the order T, H, W, and then by special query. Columns after
            the key positions are keys without a position: class tokens, or padding.
        num_heads: h.
        kind: "local" if a query attends to a window around itself; its rows are 0 outside.
        special: Names of queries without a position ("class").
        factors: The map as a product, if it is one.
    """

    grid_q: Grid
    grid_k: Grid
    normalized: bool
    weigh: Callable[[Tensor], Tensor]
    num_heads: int = 1
    kind: Literal["pairwise", "local"] = "pairwise"
    special: tuple[str, ...] = ()
    factors: Factors | None = None

    def rows(self, queries: Tensor) -> Float[Tensor, "N Q T H W"]:
        """Returns the rows of the queries, averaged over heads, in float32 or wider."""
        return self.rows_by_head(queries)[0].mean(1)

    def rows_by_head(
        self, queries: Tensor
    ) -> tuple[Float[Tensor, "N h Q T H W"], Float[Tensor, "N h Q"] | None]:
        """Returns the rows of each head, and the weight of keys without a position, if any."""
        weights = self.weigh(queries)
        return split_keys(weights if weights.ndim == 4 else weights.unsqueeze(1), self.grid_k)


@dataclass(frozen=True)
class PairwiseMap:
    """The recorded rows of one pairwise block, float32 on the CPU.

    Args:
        kind: "pairwise", or "local" if a query attends to a window around itself (0 outside).
        rows: (N, h, Q, T', H', W'), the weight that query q gives to each key position, by head.
        queries: (Q, 3), the positions (t, y, x) of the rows on grid_q; -1 for special queries.
        grid_q: (T, H, W) of the block's queries.
        grid_k: (T', H', W') of its keys.
        normalized: Whether rows, with `elsewhere`, are distributions over the keys.
        received: (N, T', H', W'), the mean weight that each key position receives from all
            positions and heads, if requested.
        elsewhere: (N, h, Q), weight on keys without a position (class tokens, padding), if any.
        special: The row index of each special query, such as "class"; in a map recorded as factors,
            its index among all queries.
        factors: The whole map as a product, if it is one and was requested.
    """

    kind: Literal["pairwise", "local"]
    rows: Float[Tensor, "N h Q T H W"]
    queries: Int64[Tensor, "Q 3"]
    grid_q: Grid
    grid_k: Grid
    normalized: bool
    received: Float[Tensor, "N T H W"] | None = None
    elsewhere: Float[Tensor, "N h Q"] | None = None
    special: Mapping[str, int] = field(default_factory=dict)
    factors: Factors | None = None

    @property
    def weights(self) -> Float[Tensor, "N Q T H W"]:
        """The rows, averaged over heads."""
        return self.rows.mean(1)

    @property
    def is_whole(self) -> bool:
        """Whether `select` can return any row: the map has its factors, or all of its rows."""
        num_queries = math.prod(self.grid_q) + len(self.special)
        return self.factors is not None or len(self.queries) == num_queries

    def select(self, numbers: Int64[Tensor, " Q"]) -> "PairwiseMap":
        """Returns a map of these queries only, without `received` and factors; requires `is_whole`.

        Queries are numbered by position, in the order T, H, W, and then by special query.
        """
        assert self.is_whole
        if self.factors is None:
            rows = self.rows[:, :, numbers]
            elsewhere = None if self.elsewhere is None else self.elsewhere[:, :, numbers]
        else:
            rows, elsewhere = split_keys(self.factors.rows(numbers), self.grid_k)
        queries, kept = cells(numbers, self.grid_q), (self.grid_q, self.grid_k, self.normalized)
        return PairwiseMap(self.kind, rows, queries, *kept, elsewhere=elsewhere)


def split_keys(
    weights: Float[Tensor, "N h Q P"], grid_k: Grid
) -> tuple[Float[Tensor, "N h Q T H W"], Float[Tensor, "N h Q"] | None]:
    """Splits rows into the weights of key positions and, if there are other keys, their sum."""
    num_keys = math.prod(grid_k)
    elsewhere = weights[..., num_keys:]
    rows = weights[..., :num_keys].unflatten(3, grid_k)
    return rows, elsewhere.sum(-1) if elsewhere.shape[-1] else None


def cells(numbers: Int64[Tensor, " Q"], grid: Grid) -> Int64[Tensor, "Q 3"]:
    """Returns the (t, y, x) of positions numbered in the order T, H, W; -1 beyond the grid."""
    _, height, width = (max(size, 1) for size in grid)
    found = [numbers // (height * width), numbers // width % height, numbers % width]
    positions = torch.stack(found, dim=1)
    positions[numbers >= math.prod(grid)] = -1
    return positions


@dataclass(frozen=True)
class GateMap:
    """An attention map that has no query.

    Args:
        kind: The meaning of the weights, and so their shape:
            channel: (N, C), or (N, C, T) for one gate a frame.
            spatial: (N, T, H, W).
            temporal: (N, T).
            mask: (N, C, T, H, W).
            pooling: (N, D, T, H, W), D weightings of all positions.
            cam: (N, T, H, W), the importance of each position for a class's score (`explain`).
            box: (N, T, 4), the box (y0, x0, y1, x1) in each frame of the network's input, in its
                pixels, ends excluded; all zeros for a frame without a box.
        weights: Float weights of that shape.
        normalized: Whether each weighting is a distribution.
        identity_value: The weight that changes nothing (1 for a gate, 0 for a signed cam), if any.
        description: The meaning of a weight, for titles, if the kind alone is not enough.
    """

    kind: Kind
    weights: Float[Tensor, "N ..."]
    normalized: bool = False
    identity_value: float | None = None
    description: str = ""


GATE_AXES: dict[str, tuple[str, ...]] = {
    "channel": ("C", "C T"),
    "spatial": ("T H W",),
    "cam": ("T H W",),
    "temporal": ("T",),
    "mask": ("C T H W",),
    "pooling": ("D T H W",),
    "box": ("T 4",),
}
"""The axes of each kind's weights after the first, N."""


@runtime_checkable
class HasMaps(Protocol):
    """A block whose attention can be recorded.

    `maps` is called with the arguments of `forward`. The key "" is the block itself; other
    keys ("spatial") are appended to its name.
    """

    def maps(self, *inputs: Tensor) -> Mapping[str, PairwiseAttention | GateMap]: ...


def to_input(found: PairwiseMap | GateMap, size: Grid, *, smooth: bool = False) -> Tensor:
    """Resamples a map to the grid (T, H, W) of a clip.

    A frame has the weights of the temporal cell that covers it. A pixel has the weights of its
    cell, or of a bilinear interpolation between cell centers.

    Args:
        size: T, H and W of the clip.
        smooth: Interpolate in space.

    Returns:
        (N, T, H, W) for kinds spatial, temporal, cam and box (1 inside); (N, Q, T, H, W) for the
        rows of a pairwise map, (N, C, T, H, W) for a mask and (N, D, T, H, W) for poolings.

    Raises:
        ValueError: If the map has no positions (a channel gate).
    """
    if isinstance(found, PairwiseMap):
        return _resample(found.weights, size, smooth)
    weights = found.weights
    if found.kind == "channel":
        raise ValueError("a channel gate has no positions; draw its weights as a chart")
    if found.kind == "temporal":
        return _resample(weights[:, :, None, None], size, False)
    if found.kind == "box":
        y, x = torch.arange(size[1])[:, None], torch.arange(size[2])
        y0, x0, y1, x1 = (edge[..., None, None] for edge in weights.unbind(-1))
        inside = (y0 <= y) & (y < y1) & (x0 <= x) & (x < x1)
        return _resample(inside.to(weights.dtype), size, False)
    return _resample(weights, size, smooth)


def _resample(weights: Tensor, size: Grid, smooth: bool) -> Tensor:
    cells = [
        torch.arange(n) * weights.shape[axis] // n
        for axis, n in zip((-3, -2, -1), size, strict=True)
    ]
    weights = weights.index_select(-3, cells[0])
    if smooth:
        flat = weights.reshape(-1, 1, *weights.shape[-2:])
        flat = F.interpolate(flat, size[1:], mode="bilinear", align_corners=False)
        return flat.reshape(*weights.shape[:-2], *size[1:])
    return weights.index_select(-2, cells[1]).index_select(-1, cells[2])
