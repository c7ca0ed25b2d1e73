"""Helpers of many blocks: checks, grids, pooled keys, initial weights, auxiliary losses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.attention.functional import widen
from videoattn.attention.maps import Factors, Rule
from videoattn.types import Grid


def check_odd(name: str, sizes: Sequence[int]) -> None:
    """Raises a ValueError if the sizes of a kernel or window are not three odd numbers."""
    if len(sizes) != 3 or any(size < 1 or size % 2 == 0 for size in sizes):
        raise ValueError(
            f"{name}: got {list(sizes)}; need three odd sizes (frames, height, width), such as "
            "[3, 7, 7]"
        )


def grid_of(x: Tensor) -> Grid:
    """Returns (T, H, W) of a video (N, C, T, H, W)."""
    frames, height, width = x.shape[2:]
    return frames, height, width


def mean_of_segments(pooled: Tensor) -> Tensor:
    """Averages the features (N, S, C) of S segments; returns features (N, C) unchanged."""
    return pooled.mean(1) if pooled.ndim == 3 else pooled


def pool_keys(x: Tensor, pool: Sequence[int] | None) -> Tensor:
    """Max-pools x by (frames, height, width), if given; a shorter axis is pooled to size 1."""
    if pool is None:
        return x
    return F.max_pool3d(x, [min(p, size) for p, size in zip(pool, x.shape[2:], strict=True)])


def small_weights(block: nn.Module) -> None:
    """Initializes projections as the non-local paper does: N(0, 0.01²), biases 0."""
    for module in block.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def zero_norm(norm: nn.Module) -> None:
    """Makes a norm return 0, so that the residual block that it ends starts as the identity."""
    assert isinstance(norm, nn.BatchNorm3d | nn.GroupNorm)
    nn.init.zeros_(norm.weight)
    nn.init.zeros_(norm.bias)


@contextmanager
def evaluating(block: nn.Module) -> Iterator[None]:
    """Puts the block in eval mode inside the `with`, so that no running statistics change."""
    was = {module: module.training for module in block.modules()}
    block.eval()
    try:
        yield
    finally:
        for module, training in was.items():
            module.training = training


def one_head(q: Tensor, k: Tensor, rule: Rule, scale: float) -> Factors:
    """Returns queries (N, Q, D) and keys (N, P, D) as the factors of a map with one head."""
    return Factors(widen(q).unsqueeze(1), widen(k).unsqueeze(1), rule, scale)


class HeldLosses(dict[str, Tensor]):
    """The named losses that a block keeps from a forward pass in training mode, as means over its
    samples. They belong to the graph of that pass: a copy or a checkpoint of the module has none.
    """

    def __deepcopy__(self, memo: dict[int, object]) -> "HeldLosses":
        return HeldLosses()

    def __reduce__(self) -> tuple[type["HeldLosses"], tuple[()]]:
        return HeldLosses, ()


def auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """Returns the losses of the last training-mode forward pass by name, and removes them from the
    blocks. Losses with the same name, from several blocks, are added. The caller weights them:

        logits = model(video)
        losses = auxiliary_losses(model)  # {"interaction": ..., "diversity": ...}
        loss = cross_entropy(logits, labels) + sum(weights[name] * x for name, x in losses.items())
    """
    found: dict[str, Tensor] = {}
    for module in model.modules():
        held = getattr(module, "losses", None)
        if isinstance(held, HeldLosses):
            for name, loss in held.items():
                found[name] = found[name] + loss if name in found else loss
            held.clear()
    return found
