"""Knocks keys out of pairwise attention, and whole blocks out of a network.

A row of a pairwise map makes a claim about its block, not about the class. Removing key j from the
row of query i (weight 0, a softmax row scaled to sum to 1 again) changes the response at i to

    y'_i = (y_i - w_ij v_j) / (1 - w_ij)

Knocking out the keys with the highest weight for all queries should change the class score more
than knocking out random keys, or the block does not use where it looks. The effect of key j is
w_ij |v_j - y_i| / (1 - w_ij), so we report how well w_ij, and w_ij |v_j|, rank the effects.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import ceil, prod
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from videoattn.attention.maps import PairwiseAttention
from videoattn.attention.record import MOST_ENTRIES, recordable_blocks
from videoattn.explain.faithful.statistics import spearman
from videoattn.types import Video

SHARE = 0.05
"""The share of the keys that is knocked out for all queries."""
NUM_QUERIES, NUM_KEYS = 16, 32
KEYS = ("highest", "random", "lowest")


@runtime_checkable
class Attends(Protocol):
    """A block of one head whose `forward` calls `attend` with queries (N, Q, D), keys (N, P, D) and
    values (N, P, E). `weights` returns the rows (N, Q, P)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...

    def weights(self, q: Tensor, k: Tensor) -> Tensor: ...


@runtime_checkable
class Windowed(Protocol):
    """A layer of several heads. `values` returns those of all positions (N, h, P, E), `maps` its
    one map, and `pooled` the output for responses (N, C, T, H, W)."""

    def values(self, x: Tensor) -> Tensor: ...

    def maps(self, x: Tensor) -> dict[str, PairwiseAttention]: ...

    def pooled(self, y: Tensor) -> Tensor: ...


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Changed = Callable[[Attend, Tensor, Tensor, Tensor], Tensor]


def blocks_that_attend(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the blocks whose keys can be knocked out, by name."""
    found = recordable_blocks(model)
    kinds = (Attends, Windowed)
    return {name: block for name, block in found.items() if isinstance(block, kinds)}


@contextmanager
def replaced_attend(block: nn.Module, changed: Changed) -> Iterator[None]:
    """Lets a block call `changed(attend, q, k, v)` instead of its `attend` inside the `with`."""
    assert isinstance(block, Attends)
    block.attend = partial(changed, block.attend)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del block.attend


def without(
    block: nn.Module, attend: Attend, q: Tensor, k: Tensor, v: Tensor, dropped: Tensor
) -> Tensor:
    """Returns the response of `attend` without some keys; `dropped` (N, K) has their indices.

    For a softmax, the keys are removed, so that the other weights sum to 1 again. For other rules,
    whose weights do not depend on each other, the values of the keys are set to 0.
    """
    kept = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device).scatter(1, dropped, False)
    if getattr(block, "normalizer", "softmax") != "softmax":
        return attend(q, k, v * kept.unsqueeze(2))
    left = (x[kept].view(len(x), -1, x.shape[2]) for x in (k, v))
    return attend(q, *left)


@contextmanager
def without_keys(
    block: nn.Module, which: str, generator: torch.Generator, share: float = SHARE
) -> Iterator[None]:
    """Knocks out a share of the keys for all queries inside the `with`: those that receive the
    "highest" or "lowest" weight from all queries, or "random" ones."""

    def choose(like: Tensor, received: Callable[[], Tensor]) -> Tensor:
        """Returns the indices (N, k) of a share of K keys; `like` is (N, K, ...)."""
        if which == "random":
            values = torch.rand(like.shape[:2], generator=generator).to(like.device)
        else:
            values = received()
        count = ceil(share * values.shape[1])
        return values.topk(count, dim=1, largest=which != "lowest").indices

    def changed(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropped = choose(k, lambda: _received(block, q, k))
        return without(block, attend, q, k, v, dropped)

    if not isinstance(block, Windowed):
        with replaced_attend(block, changed):
            yield
        return

    def replaced(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        (x,) = inputs
        places = x[:, 0].flatten(1)

        def received() -> Tensor:
            return torch.as_tensor(sum(rows.sum((1, 2)) for rows in _rows_of(block, x)))

        return _window_response(block, x, choose(places, received))

    with block.register_forward_hook(replaced):
        yield


def _rows_of(block: Windowed, x: Video) -> Iterator[Float[Tensor, "N h Q P"]]:
    """Yields the rows of all queries, a few queries at a time."""
    (found,) = block.maps(x).values()
    count = prod(found.grid_q)
    queries = torch.arange(count, device=x.device)
    for part in queries.split(max(MOST_ENTRIES // (len(x) * found.num_heads * count), 1)):
        yield found.weigh(part)


def _window_response(block: Windowed, x: Video, dropped: Int64[Tensor, "N K"]) -> Tensor:
    """Returns a layer's output without some keys. Responses are 0 if a window has no other key."""
    v = block.values(x)
    is_dropped = torch.zeros(len(x), v.shape[2], dtype=torch.bool, device=x.device)
    is_dropped = is_dropped.scatter(1, dropped, True)[:, None, None]
    parts = []
    for rows in _rows_of(block, x):
        left = rows.masked_fill(is_dropped, 0)
        rest = 1 - (rows - left).sum(-1, keepdim=True)  # with the weight of padding, if any
        parts.append((left / rest.clamp_min(1e-12)) @ v.to(left.dtype))
    y = torch.cat(parts, dim=2).transpose(2, 3).flatten(1, 2)
    return block.pooled(y.unflatten(2, x.shape[2:]).to(v.dtype))


@contextmanager
def without_key(
    block: nn.Module, queries: Int64[Tensor, " Q"], keys: Int64[Tensor, "N Q"]
) -> Iterator[None]:
    """Knocks a key out of the row of each query: in copy n of a clip, keys[n, i] for queries[i]."""

    def changed(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = attend(q, k, v).clone()
        for at, query in enumerate(queries.tolist()):
            row = q[:, query : query + 1]
            y[:, query] = without(block, attend, row, k, v, keys[:, at : at + 1])[:, 0]
        return y

    with replaced_attend(block, changed):
        yield


@torch.no_grad()
def row_order(
    model: nn.Module, block: nn.Module, video: Video, generator: torch.Generator
) -> dict[str, float]:
    """Returns the mean over queries of Spearman's rho between w_ij ("weights"), or w_ij |v_j|
    ("weighted_values"), and the effects of keys j on the block's output at query i.

    Takes 16 random queries and, for each, 32 keys at evenly spaced ranks of the row. Runs the block
    on 32 copies of the clip, each without one key per query. Returns {} if the block has several
    heads, or attends within groups of positions.
    """
    if not isinstance(block, Attends):
        return {}
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    passes: list[tuple[tuple[Tensor, ...], Tensor]] = []

    def kept(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append((q, k, v))
        return attend(q, k, v)

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        passes.append((tuple(x.clone() for x in inputs), output.clone()))

    with block.register_forward_hook(keep), replaced_attend(block, kept):
        model(video)
    if len(calls) != 1 or len(calls[0][0]) != 1:
        return {}
    ((inputs, output),) = passes
    q, k, v = calls[0]
    queries = torch.randperm(q.shape[1], generator=generator)[:NUM_QUERIES]
    rows = block.weights(q[:, queries], k)[0]
    places = torch.linspace(0, k.shape[1] - 1, min(NUM_KEYS, k.shape[1])).round().long()
    keys = rows.argsort(dim=1)[:, places].T  # (keys, queries)
    with without_key(block, queries, keys):
        changed = block(*(x.expand(len(keys), -1, -1, -1, -1) for x in inputs))
    effects = (changed - output).flatten(2)[:, :, queries].norm(dim=1)
    weights = rows.gather(1, keys.T).abs()
    norms = weights * v[0].norm(dim=1)[keys.T]
    orders = {"weights": weights, "weighted_values": norms}
    return {
        name: sum(map(spearman, values, effects.T)) / len(queries)
        for name, values in orders.items()
    }


@contextmanager
def block_off(block: nn.Module) -> Iterator[None]:
    """Replaces a block by the identity inside the `with`.

    Raises:
        ValueError: If the output of the block has another shape than its input.
    """

    def identity(module: nn.Module, args: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.shape != args[0].shape:
            raise ValueError(f"{type(module).__name__} is not an addition to its input; keep it on")
        x: Tensor = args[0]
        return x

    with block.register_forward_hook(identity):
        yield


@torch.no_grad()
def answers_without(model: nn.Module, video: Video) -> dict[str, int]:
    """Returns the predicted class of one clip, an index, without each block in turn.

    Heads and layers that change the shape cannot be replaced by the identity, and are left out.
    """
    found = {}
    for name, block in recordable_blocks(model).items():
        with suppress(ValueError), block_off(block):
            found[name] = int(model(video)[0].argmax())
    return found


def _received(block: nn.Module, q: Tensor, k: Tensor) -> Float[Tensor, "N P"]:
    """Returns the sum of the weights that each key receives from all queries."""
    total = torch.zeros(k.shape[:2], device=k.device)
    for rows in q.split(max(MOST_ENTRIES // (len(k) * k.shape[1]), 1), dim=1):
        total += block.weights(rows, k).sum(1)  # type: ignore[operator]
    return total
