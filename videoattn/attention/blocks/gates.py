"""What all gates share: y = e · x, where e comes from a few pooled numbers of x.

    gate_start="half":      e = sigmoid(z)        in (0, 1), the papers' form; about 1/2 at first
    gate_start="identity":  e = 2 sigmoid(z)      in (0, 2), and the layer that makes z starts at
                                                  zero, so e = 1 to the bit and y = x

With "half" a pretrained branch is halved, or worse, before the first step; "identity" is ours.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.attention.common import check_choice
from videoattn.attention.record import GateMap

STARTS = ("half", "identity")
SCOPES: dict[str, tuple[int, ...]] = {"clip": (2, 3, 4), "frame": (3, 4)}
"""The axes of (N, C, T, H, W) that one gate is pooled over: one a clip, or one a frame."""


def gate_weights(x: Tensor, logits: Tensor, start: str) -> Tensor:
    """What x is multiplied by, in x's dtype, so that the product has it too."""
    weights = torch.sigmoid(logits)
    return (2 * weights if start == "identity" else weights).to(x.dtype)


def channel_field(weights: Tensor, scope: str) -> GateMap:
    """The map of (N, C, 1, 1, 1) or (N, C, T, 1, 1) gates: (N, C), or (N, C, T) by frames."""
    weights = weights[..., 0, 0] if scope == "frame" else weights.flatten(1)
    return GateMap("channel", weights, identity_value=1.0)


def mean(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Summed up in float32 at least: a float16 sum over a clip leaves its range."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.mean(tuple(axes), keepdim=True, dtype=wide).to(x.dtype)


def maximum(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.amax(tuple(axes), keepdim=True)


def _norm(x: Tensor, axes: Sequence[int]) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=tuple(axes), keepdim=True, dtype=wide).to(x.dtype)


def _log_sum_exp(x: Tensor, axes: Sequence[int]) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.logsumexp(x.to(wide), dim=tuple(axes), keepdim=True).to(x.dtype)


POOLS: dict[str, Callable[[Tensor, Sequence[int]], Tensor]] = {
    "avg": mean,
    "max": maximum,
    "lp": _norm,
    "lse": _log_sum_exp,
}
"""Poolings by name; axes are kept with size 1. lp is the L2 norm, lse the log of summed exps."""


class GateMLP(nn.Module):
    """fc2(ReLU(fc1(s))) over axis 1 of pooled (N, C, T, 1, 1) features, by 1x1x1 convolutions."""

    def __init__(self, channels: int, hidden: int, *, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(channels, hidden, 1, bias=bias)
        self.fc2 = nn.Conv3d(hidden, channels, 1, bias=bias)
        for layer in (self.fc1, self.fc2):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.relu(self.fc1(pooled)))
        return out


class GateNorm(nn.BatchNorm3d):
    """Batch norm of pooled features, which may be one number a channel (one clip, one frame).

    Training statistics of one number are none: it would raise, or make the gate constant. There
    the running ones are used, and stay what they were.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


@contextmanager
def statistics_kept(block: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training mode use their batch and leave running statistics alone."""
    norms = [
        module
        for module in block.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def hidden_channels(channels: int, reduction: int, divisor: int = 1) -> int:
    """C/r, which must be whole; with a divisor, C/r rounded to the nearest multiple of it, and to
    no less than it.

    Raises:
        ValueError: a reduction or divisor below 1; C not divisible by r where nothing is rounded.
    """
    if reduction < 1 or divisor < 1:
        raise ValueError(f"reduction={reduction}, divisor={divisor}: both must be at least 1")
    if divisor > 1:
        return max(divisor, int(channels / reduction + divisor / 2) // divisor * divisor)
    if channels % reduction:
        raise ValueError(
            f"{channels} channels are not divisible by reduction={reduction}; choose a divisor of "
            f"{channels}, such as {gcd(channels, reduction)}"
        )
    return channels // reduction


def check_each(name: str, got: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises: ValueError where `got` is empty, names something unknown, or the same twice."""
    for item in got:
        check_choice(name, item, allowed)
    if not got or len(set(got)) < len(got):
        raise ValueError(
            f"{name}: got {list(got)}; name one or more of {', '.join(allowed)}, each once"
        )
