"""Small parts that many blocks share: checks, grids, pooled keys, starting weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.attention.functional import autocast_off
from videoattn.attention.maps import PairwiseAttention
from videoattn.types import Grid


def check_odd(name: str, sizes: Sequence[int]) -> None:
    """Checks the size of a kernel or window.

    Raises:
        ValueError: If the sizes are not three odd numbers.
    """
    if len(sizes) != 3 or any(size < 1 or size % 2 == 0 for size in sizes):
        raise ValueError(
            f"{name}: got {list(sizes)}; need three odd sizes (frames, height, width), such as "
            "[3, 7, 7]"
        )


def grid_of(x: Tensor) -> Grid:
    """(T, H, W) of a video (N, C, T, H, W)."""
    frames, height, width = x.shape[2:]
    return frames, height, width


def widen(x: Tensor) -> Tensor:
    """Casts to float32, or keeps a wider type. Sums, norms and exponentials need this."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean_of_segments(pooled: Tensor) -> Tensor:
    """Averages the features (N, S, C) of S segments; returns features (N, C) unchanged."""
    return pooled.mean(1) if pooled.ndim == 3 else pooled


def pool_keys(x: Tensor, pool: Sequence[int] | None) -> Tensor:
    """Max-pooling of (frames, height, width), or none. An axis shorter than its pool is pooled
    whole."""
    if pool is None:
        return x
    return F.max_pool3d(x, [min(p, size) for p, size in zip(pool, x.shape[2:], strict=True)])


def small_weights(block: nn.Module) -> None:
    """The non-local paper's start for projections: N(0, 0.01²), biases 0."""
    for module in block.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def zero_norm(norm: nn.Module) -> None:
    """A norm that puts out 0: the residual block behind it starts as the identity."""
    assert isinstance(norm, nn.BatchNorm3d | nn.GroupNorm)
    nn.init.zeros_(norm.weight)
    nn.init.zeros_(norm.bias)


@contextmanager
def evaluating(block: nn.Module) -> Iterator[None]:
    """Eval mode inside: what keeps statistics in training leaves them as they are."""
    was = {module: module.training for module in block.modules()}
    block.eval()
    try:
        yield
    finally:
        for module, training in was.items():
            module.training = training


Weights = Callable[[Tensor, Tensor], Tensor]
"""From queries (N, Q, D) and keys (N, P, D) to rows (N, Q, P)."""


def pairwise_map(
    weights: Weights, q: Tensor, k: Tensor, grid_q: Grid, grid_k: Grid, *, normalized: bool = True
) -> PairwiseAttention:
    """The rows that `weights` makes of some of the queries and all keys, in float32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide), k.to(wide)

    def rows(positions: Tensor) -> Tensor:
        with autocast_off(q):
            return weights(q[:, positions], k)

    return PairwiseAttention(grid_q, grid_k, normalized=normalized, rows=rows)
