"""The base of all gates: y = e · x, with e computed from a few pooled numbers of x.

    gate_start="half":      e = sigmoid(z)      in (0, 1), as in the papers; about 1/2 at the start
    gate_start="identity":  e = 2 sigmoid(z)    in (0, 2); the layer that computes z starts at zero,
                                                so e = 1 and y = x exactly

"half" halves the features of a pretrained branch, once per gate, before the first step; "identity"
is ours and avoids this.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from videoattn.attention.functional import widen
from videoattn.attention.maps import GateMap
from videoattn.errors import one_of
from videoattn.types import Video

STARTS = ("half", "identity")
SCOPES: dict[str, tuple[int, ...]] = {"clip": (2, 3, 4), "frame": (3, 4)}
"""The axes of (N, C, T, H, W) to pool over for one gate per clip, or one per frame."""


class Gate(nn.Module):
    """The base class of gates. A subclass implements `logits` and, inside a CBAM, `gate_map`.

    Args:
        gate_start: "half" or "identity"; see above.

    Raises:
        ValueError: If `gate_start` is another name.
    """

    def __init__(self, gate_start: str) -> None:
        super().__init__()
        self.gate_start = one_of("gate_start", gate_start, STARTS)

    def forward(self, x: Video) -> Video:
        return x * self.weights(x)

    def weights(self, x: Video) -> Tensor:
        """Returns e in the dtype of x and in a shape that broadcasts with x."""
        weights = torch.sigmoid(self.logits(x))
        return (2 * weights if self.gate_start == "identity" else weights).to(x.dtype)

    def logits(self, x: Video) -> Tensor:
        raise NotImplementedError

    def gate_map(self, weights: Tensor) -> GateMap:
        raise NotImplementedError


def channel_map(weights: Tensor, scope: str) -> GateMap:
    """Returns the map of gates (N, C, 1, 1, 1) as (N, C), or of (N, C, T, 1, 1) as (N, C, T)."""
    weights = weights[..., 0, 0] if scope == "frame" else weights.flatten(1)
    return GateMap("channel", weights, identity_value=1.0)


def mean(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Averages in float32 or wider, because a float16 sum over a clip overflows."""
    return widen(x).mean(axes, keepdim=True).to(x.dtype)


def maximum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.amax(axes, keepdim=True)


POOLS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "avg": mean,
    "max": maximum,
    "lp": lambda x, axes: torch.linalg.vector_norm(widen(x), dim=axes, keepdim=True).to(x.dtype),
    "lse": lambda x, axes: torch.logsumexp(widen(x), dim=axes, keepdim=True).to(x.dtype),
}
"""Poolings over axes, which keep size 1. lp is the L2 norm, lse the log of the sum of exps."""


class GateMLP(nn.Module):
    """Computes fc2(ReLU(fc1(s))) over axis 1 of pooled features (N, C, T, 1, 1)."""

    def __init__(self, channels: int, hidden: int, *, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(channels, hidden, 1, bias=bias)
        self.fc2 = nn.Conv3d(hidden, channels, 1, bias=bias)
        for layer in (self.fc1, self.fc2):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(pooled)))


class GateNorm(nn.BatchNorm3d):
    """A batch norm for pooled features, which may have one value per channel (one clip, one frame).

    The statistics of a single value are undefined, so batch norm would raise an error or make the
    gate constant. For such an input this layer uses its running statistics and does not update
    them.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            statistics = self.running_mean, self.running_var
            return F.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


@contextmanager
def keep_statistics(block: nn.Module) -> Iterator[None]:
    """Prevents batch norms from updating their running statistics inside the `with`."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def zero_parameters(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def hidden_channels(channels: int, reduction: int, divisor: int = 1) -> int:
    """Returns C / reduction, rounded to the nearest multiple of `divisor` (and at least that).

    Raises:
        ValueError: If an argument is below 1, or if divisor is 1 and C / reduction is not an
            integer.
    """
    if reduction < 1 or divisor < 1:
        raise ValueError(
            f"reduction and divisor: got {reduction} and {divisor}; need at least 1 each"
        )
    if divisor > 1:
        return max(divisor, int(channels / reduction + divisor / 2) // divisor * divisor)
    if channels % reduction:
        raise ValueError(
            f"{channels} channels are not divisible by reduction={reduction}; choose a divisor of "
            f"{channels}, such as {gcd(channels, reduction)}"
        )
    return channels // reduction


def check_each(name: str, got: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises a ValueError if a list is empty, or has an unknown or a repeated name."""
    for item in got:
        one_of(name, item, allowed)
    if not got or len(set(got)) < len(got):
        raise ValueError(
            f"{name}: got {list(got)}; choose one or more of {', '.join(allowed)}, each once"
        )
