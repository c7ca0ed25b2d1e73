"""The attention that a forward pass used, by query position.

    with record_attention(model, queries=[(3, 60, 80)]) as maps:
        logits = model(video)
    maps["layer2.1_non_local"].weights        # (N, Q, T', H', W')

Blocks run their fast path as ever; a recorded pass computes, beside it and from the same
projections' code, the rows that were asked for. Nothing is kept when nobody records.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from videoattn.attention.functional import Grid, PairwiseAttention
from videoattn.types import Video

Query = tuple[int, int, int]
"""(frame, y, x) in the clip that the network was given: frame number and pixels of its input."""

MOST_ENTRIES = 2**24
"""Rows are asked for by position above so many map entries (64 MiB of float32) per clip."""


@runtime_checkable
class Pairwise(Protocol):
    """A block whose output mixes values by a map from query to key positions."""

    def pairwise(self, x: Video) -> PairwiseAttention: ...


@dataclass(frozen=True)
class AttentionMap:
    """The recorded rows of one block, float32 on the CPU.

    weights: (N, Q, T', H', W'), what query q gives to each key position.
    queries: (Q, 3), the positions (t, y, x) on grid_q that the rows belong to.
    grid_q, grid_k: (T, H, W) of the block's queries and keys.
    normalised: whether rows are distributions over the keys (they sum to 1).
    received: (N, T', H', W'), the mean weight that each key position gets from all queries; None
        unless asked for.
    """

    kind: Literal["pairwise"]
    weights: Float[Tensor, "N Q T H W"]
    queries: Int64[Tensor, "Q 3"]
    grid_q: Grid
    grid_k: Grid
    normalised: bool
    received: Float[Tensor, "N T H W"] | None = None


@contextmanager
def record_attention(
    model: nn.Module, queries: Sequence[Query] | None = None, *, received: bool = False
) -> Iterator[dict[str, AttentionMap]]:
    """Records the attention maps of every pairwise block that runs inside the `with`.

    queries: positions in the network's input clip; each block answers for the cell of its own grid
        that holds the position. None asks for all rows, which small grids allow.
    received: also sum up what each key position receives from all queries (all rows are computed
        once, in pieces).

    Yields a dictionary, filled by the forward pass, from the block's name to its map.

    Raises:
        ValueError: no block to record; a query outside the clip; all rows of a map too large.
    """
    blocks: dict[str, nn.Module] = {
        path.removesuffix(".block"): model.get_submodule(path)
        for path, module in model.named_modules()
        if isinstance(module, Pairwise)
    }
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no attention block whose map can be recorded; insert one "
            "with insert_attention, or model.attention in a recipe"
        )
    maps: dict[str, AttentionMap] = {}
    clip: list[Grid] = []

    def remember_clip(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        clip[:] = [tuple(inputs[0].shape[2:])]  # type: ignore[list-item]
        for query in queries or ():
            _check_query(query, clip[0])

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, Pairwise)
            with torch.no_grad():
                maps[name] = _record(module.pairwise(inputs[0]), clip[0], queries, received)

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
) -> AttentionMap:
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
    return AttentionMap(
        kind="pairwise",
        weights=attention.rows(positions).float().cpu(),
        queries=where.long(),
        grid_q=attention.grid_q,
        grid_k=attention.grid_k,
        normalised=attention.normalised,
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
