"""The attention that a forward pass used: rows of pairwise maps, gates, masks, poolings, boxes.

    with record_attention(model, queries=[(3, 60, 80)]) as maps:
        logits = model(video)
    maps["layer2.1_non_local"].weights        # (N, Q, T', H', W')

A block that has a map says so by `maps(*inputs)`, called with what its `forward` was given. Blocks
run their fast path as ever; a recorded pass computes, beside it and from the same projections'
code, the map, and of a pairwise one the rows that were asked for. Nothing is kept when nobody
records.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from videoattn.attention.functional import Grid, PairwiseAttention
from videoattn.types import own_info

Query = tuple[int, int, int]
"""(frame, y, x) in the clip that the network was given: frame number and pixels of its input."""

MOST_ENTRIES = 2**24
"""Rows are asked for by position above so many map entries (64 MiB of float32) per clip."""


Kind = Literal["channel", "spatial", "temporal", "mask", "pooling", "box", "cam"]


@dataclass(frozen=True)
class GateMap:
    """An attention that has no query. `weights`, float, by kind:

    channel: (N, C), or (N, C, T) for one gate a frame.
    spatial: (N, T, H, W). temporal: (N, T). mask: (N, C, T, H, W).
    pooling: (N, D, T, H, W), D weightings of all positions, each with a sum of 1 if `normalized`.
    cam: (N, T, H, W), what each place adds to a class's score (post-hoc, of no block).
    box: (N, T, 4), the box (y0, x0, y1, x1) of each frame of the network's input, in its pixels,
        ends excluded; a frame that is left out has a box of zeros.
    normalized: whether each weighting is a distribution.
    identity_value: the weight that changes nothing (1 for a gate, 0 for a signed cam); None if no
        weight does.
    description: what a weight is, for the title of a picture, where the kind does not tell.
    """

    kind: Kind
    weights: Float[Tensor, "N ..."]
    normalized: bool = False
    identity_value: float | None = None
    description: str = ""


@runtime_checkable
class HasMaps(Protocol):
    """A block whose attention can be recorded. The key "" is the block's own name; another key
    ("spatial") is added to it."""

    def maps(self, *inputs: Tensor) -> Mapping[str, PairwiseAttention | GateMap]: ...


@dataclass(frozen=True)
class PairwiseMap:
    """The recorded rows of one pairwise block, float32 on the CPU.

    kind: pairwise, or local where a query sees a window around itself only (0 elsewhere).
    weights: (N, Q, T', H', W'), what query q gives to each key position.
    queries: (Q, 3), the positions (t, y, x) on grid_q that the rows belong to.
    grid_q, grid_k: (T, H, W) of the block's queries and keys.
    normalized: whether rows are distributions over the keys (they sum to 1).
    received: (N, T', H', W'), the mean weight that each key position gets from all queries; None
        unless asked for.
    """

    kind: Literal["pairwise", "local"]
    weights: Float[Tensor, "N Q T H W"]
    queries: Int64[Tensor, "Q 3"]
    grid_q: Grid
    grid_k: Grid
    normalized: bool
    received: Float[Tensor, "N T H W"] | None = None


def recordable_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Returns every block that has maps, by the name of its maps: that of the block in the model,
    or the `map_name` of a whole network."""
    info = own_info(model)
    whole = info.map_name if info is not None else ""
    return {
        re.sub(r"(\.block)+$", "", path or whole): model.get_submodule(path)
        for path, module in model.named_modules()
        if isinstance(module, HasMaps)
    }


@contextmanager
def record_attention(
    model: nn.Module, queries: Sequence[Query] | None = None, *, received: bool = False
) -> Iterator[dict[str, PairwiseMap | GateMap]]:
    """Records the maps of every attention block that runs inside the `with`.

    queries: positions in the network's input clip; each block answers for the cell of its own grid
        that holds the position. None asks for all rows, which small grids allow.
    received: also sum up what each key position receives from all queries (all rows are computed
        once, in pieces).

    Yields a dictionary, filled by the forward pass, from the block's name (and, after a point, the
    map's, where a block has several) to its map.

    Raises:
        ValueError: no block to record; a query outside the clip; all rows of a map too large.
    """
    blocks = recordable_blocks(model)
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no attention block whose map can be recorded; insert one "
            "with insert_attention, or model.attention in a recipe"
        )
    maps: dict[str, PairwiseMap | GateMap] = {}
    clip: list[Grid] = []

    def remember_clip(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        clip[:] = [tuple(inputs[0].shape[2:])]  # type: ignore[list-item]
        for query in queries or ():
            _check_query(query, clip[0])

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, HasMaps)
            with torch.no_grad():
                for key, found in module.maps(*inputs).items():
                    full = f"{name}.{key}" if key else name
                    if isinstance(found, GateMap):
                        maps[full] = replace(found, weights=found.weights.detach().float().cpu())
                    else:
                        maps[full] = _record(found, clip[0], queries, received)

        return hook

    handles = [model.register_forward_pre_hook(remember_clip)]
    handles += [block.register_forward_hook(recorder(name)) for name, block in blocks.items()]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _record(
    attention: PairwiseAttention, clip: Grid, queries: Sequence[Query] | None, received: bool
) -> PairwiseMap:
    frames, height, width = attention.grid_q
    num_queries = frames * height * width
    if queries is None:
        num_keys = attention.grid_k[0] * attention.grid_k[1] * attention.grid_k[2]
        if num_queries * num_keys > MOST_ENTRIES:
            raise ValueError(
                f"all rows of a {num_queries} x {num_keys} map are too many to keep; "
                "ask for some with queries=[(frame, y, x), ...]"
            )
        positions = torch.arange(num_queries)
    else:
        cells = [
            tuple(
                at * cells // size
                for at, cells, size in zip(query, attention.grid_q, clip, strict=True)
            )
            for query in queries
        ]
        flat = [(t * height + y) * width + x for t, y, x in cells]
        positions = torch.tensor(flat, dtype=torch.long)
    where = torch.stack(
        [positions // (height * width), positions // width % height, positions % width], dim=1
    )
    return PairwiseMap(
        kind=attention.kind,
        weights=attention.rows(positions).float().cpu(),
        queries=where.long(),
        grid_q=attention.grid_q,
        grid_k=attention.grid_k,
        normalized=attention.normalized,
        received=_received(attention, num_queries) if received else None,
    )


def _received(attention: PairwiseAttention, num_queries: int) -> Tensor:
    num_keys = attention.grid_k[0] * attention.grid_k[1] * attention.grid_k[2]
    pieces = torch.arange(num_queries).split(max(MOST_ENTRIES // num_keys, 1))
    total = sum(attention.rows(piece).sum(dim=1) for piece in pieces)
    assert isinstance(total, Tensor)
    return (total / num_queries).float().cpu()


def _check_query(query: Query, clip: Grid) -> None:
    for at, size, axis in zip(query, clip, ("frame", "y", "x"), strict=True):
        if not 0 <= at < size:
            raise ValueError(
                f"query {query}: {axis} {at} is outside the clip; {axis} must be 0 to {size - 1}"
            )
