"""Records the attention of a forward pass: rows of pairwise maps, gates, masks, poolings, boxes.

    with record_attention(model, queries=[(3, 60, 80)]) as maps:
        logits = model(video)
    maps["layer2.1_non_local"].weights        # (N, Q, T', H', W')

Blocks run their fast path as usual. While recording, each block also computes its map from the same
projections; pairwise blocks compute only the requested rows. Without recording, no map is kept.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from videoattn.attention.adapters import multihead_maps
from videoattn.attention.maps import GateMap, HasMaps, PairwiseAttention, PairwiseMap, cells
from videoattn.types import Grid, ModelInfo, own_info

Query = tuple[int, int, int]
"""(frame, y, x) in the network's input clip: a frame number and a pixel."""

MOST_ENTRIES = 2**24
"""The most entries per clip of a map whose rows are all recorded (64 MiB of float32)."""

Maps = dict[str, PairwiseMap | GateMap]


def recordable_blocks(model: nn.Module, info: ModelInfo | None = None) -> dict[str, nn.Module]:
    """Returns every block that has maps, by the name of its maps: its own name in the model, or
    the `map_name` of a whole network."""
    info = info or own_info(model)
    whole = info.map_name if info is not None else ""
    adapted = info is not None and info.token_grid is not None
    return {
        re.sub(r"(\.block)+$", "", path or whole): model.get_submodule(path)
        for path, module in model.named_modules()
        if isinstance(module, HasMaps) or (adapted and isinstance(module, nn.MultiheadAttention))
    }


@contextmanager
def record_attention(
    model: nn.Module,
    queries: Sequence[Query | str] | None = None,
    *,
    received: bool = False,
    factors: bool | Literal["instead"] = False,
    info: ModelInfo | None = None,
) -> Iterator[Maps]:
    """Records the maps of every attention block that runs inside the `with`.

    Yields a dictionary that the forward pass fills: from the name of a block (followed by "." and
    the name of the map, if the block has several) to its map. The network may be called with
    positional or keyword arguments; its clip is the first tensor among them.

    Args:
        model: The network. `nn.MultiheadAttention` modules are recorded if its structure has a
            `token_grid`.
        queries: Positions in the input clip, or names of special tokens ("class"). Each block
            records the row of the cell that holds the position. None records all rows, if the
            grid is small enough.
        received: Also compute the mean weight that each key position receives from all queries.
        factors: Also keep queries and keys of maps that are products. "instead" replaces the rows
            of these maps. Other maps then keep all rows, or only the rows of `queries` if all would
            need too much memory. `PairwiseMap.select` returns any row later.
        info: Structure of the network; its own `info` by default.

    Raises:
        ValueError: If there is no block to record, a query is outside the clip, or all rows of a
            map are too many.
    """
    info = info or own_info(model) or ModelInfo("")
    blocks = recordable_blocks(model, info)
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no attention block whose map can be recorded; insert one "
            "with insert_attention"
        )
    maps: Maps = {}
    recorder = _Recorder(maps, info, queries, received, factors)
    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(recorder.start, with_kwargs=True))
        for name, block in blocks.items():
            hook = block.register_forward_hook(partial(recorder.record, name), with_kwargs=True)
            hooks.enter_context(hook)
        yield maps


@dataclass(eq=False)
class _Recorder:
    maps: Maps
    info: ModelInfo
    queries: Sequence[Query | str] | None
    received: bool
    factors: bool | str
    clip: Grid = (0, 0, 0)

    def start(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Reads the clip's size, and checks the queries."""
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        sizes = dict(zip(self.info.axes, tensors[0].shape, strict=False))
        self.clip = (sizes.get("T", 1), sizes.get("H", 1), sizes.get("W", 1))
        for query in self.queries or ():
            place = () if isinstance(query, str) else query
            for at, size, axis in zip(place, self.clip, ("frame", "y", "x"), strict=False):
                if not 0 <= at < size:
                    raise ValueError(
                        f"query {query}: {axis} {at} is outside the clip; {axis} must be 0 to "
                        f"{size - 1}"
                    )

    @torch.no_grad()
    def record(
        self, name: str, block: nn.Module, args: Any, kwargs: Mapping[str, Any], output: object
    ) -> None:
        """Adds the maps of a block that has run."""
        maps: Mapping[str, PairwiseAttention | GateMap]
        if isinstance(block, HasMaps):
            maps = block.maps(*args, **kwargs)
        else:
            assert isinstance(block, nn.MultiheadAttention)
            assert self.info.token_grid is not None
            grid = self.info.token_grid(self.clip)
            maps = multihead_maps(block, args, kwargs, grid, self.info.special_tokens)
        for key, found in maps.items():
            full = f"{name}.{key}" if key else name
            if isinstance(found, GateMap):
                self.maps[full] = replace(found, weights=_kept(found.weights))
                continue
            numbers, special = self._numbers(found)
            # queries=[] requests only `received`
            if len(numbers) or not self.queries or self.factors == "instead":
                self.maps[full] = self._rows(found, numbers, special)

    def _numbers(self, found: PairwiseAttention) -> tuple[Tensor, dict[str, int]]:
        """Returns the indices of the queries to record, and the row of each special query."""
        num_queries, num_keys = prod(found.grid_q), prod(found.grid_k)
        special = {name: num_queries + index for index, name in enumerate(found.special)}
        every = torch.arange(num_queries + len(special))
        few = num_queries * num_keys <= MOST_ENTRIES
        if self.factors == "instead" and (found.factors is not None or few):
            return every if found.factors is None else every[:0], special
        if self.queries is None:
            if not few:
                raise ValueError(
                    f"queries: got None; all rows of a {num_queries} x {num_keys} map are too many "
                    "to keep; name some, as in queries=[(frame, y, x), ...]"
                )
            return every, special
        numbers: list[int] = []
        asked: dict[str, int] = {}
        for query in self.queries:
            if isinstance(query, str):
                if query not in special:
                    continue  # this block has only positions
                asked[query] = len(numbers)
                numbers.append(special[query])
            elif num_queries:
                numbers.append(cell_number(query, self.clip, found.grid_q))
        return torch.tensor(numbers, dtype=torch.long), asked

    def _rows(
        self, found: PairwiseAttention, numbers: Tensor, special: dict[str, int]
    ) -> PairwiseMap:
        rows, elsewhere = found.rows_by_head(numbers)
        factors = found.factors if self.factors else None
        if factors is not None:
            factors = factors._replace(q=_kept(factors.q), k=_kept(factors.k))
        return PairwiseMap(
            found.kind,
            _kept(rows),
            cells(numbers, found.grid_q),
            found.grid_q,
            found.grid_k,
            found.normalized,
            received=_received(found) if self.received and all(found.grid_q) else None,
            elsewhere=None if elsewhere is None else _kept(elsewhere),
            special=special,
            factors=factors,
        )


def _kept(x: Tensor) -> Tensor:
    return x.detach().float().cpu()


def cell_number(query: Query, clip: Grid, grid: Grid) -> int:
    """Returns the number, in the order T, H, W, of the grid's cell that holds a position."""
    t, y, x = (at * n // size for at, n, size in zip(query, grid, clip, strict=True))
    return (t * grid[1] + y) * grid[2] + x


def _received(found: PairwiseAttention) -> Tensor:
    num_queries, num_keys = prod(found.grid_q), prod(found.grid_k)
    pieces = torch.arange(num_queries).split(max(MOST_ENTRIES // (num_keys * found.num_heads), 1))
    total = sum(found.rows(piece).sum(dim=1) for piece in pieces)
    assert isinstance(total, Tensor)
    return (total / num_queries).float().cpu()
