"""Gates by their definitions: one clip, channel, frame and position at a time; differentiable."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from videoattn.attention.blocks.cbam import CBAM
from videoattn.attention.blocks.gates import GateMLP

Gate = Callable[[Tensor], Tensor]


def half(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def identity(z: Tensor) -> Tensor:
    return 2 / (1 + torch.exp(-z))


STARTS: dict[str, Gate] = {"half": half, "identity": identity}


def mlp(layers: GateMLP, pooled: Tensor) -> Tensor:
    """Returns W2 ReLU(W1 s + b1) + b2 for one vector s."""
    first, second = layers.fc1.weight.flatten(1), layers.fc2.weight.flatten(1)
    hidden = (first @ pooled + layers.fc1.bias).clamp(min=0)
    return second @ hidden + layers.fc2.bias


def bn(norm: nn.BatchNorm3d, value: Tensor, channel: int) -> Tensor:
    """Applies an eval-mode batch norm to one number."""
    deviation = torch.sqrt(norm.running_var[channel] + norm.eps)
    normal = (value - norm.running_mean[channel]) / deviation
    return normal * norm.weight[channel] + norm.bias[channel]


def correlate(x: Tensor, weight: Tensor) -> Tensor:
    """Convolves (I, T, H, W) with (I, k, k, k) to (T, H, W): zero padding, centered odd kernels."""
    sizes = x.shape[1:]
    out = torch.zeros(sizes, dtype=x.dtype)
    offsets = [[index - size // 2 for index in range(size)] for size in weight.shape[1:]]
    for at in itertools.product(*map(range, sizes)):
        for index, offset in zip(
            itertools.product(*map(range, weight.shape[1:])), itertools.product(*offsets),
            strict=True,
        ):  # fmt: skip
            there = [a + o for a, o in zip(at, offset, strict=True)]
            if all(0 <= p < size for p, size in zip(there, sizes, strict=True)):
                out[at] += weight[(slice(None), *index)] @ x[(slice(None), *there)]
    return out


def pool(values: Tensor, name: str) -> Tensor:
    """Pools all values to one number."""
    return {
        "avg": values.sum() / values.numel(),
        "max": values.flatten().sort().values[-1],
        "lp": (values * values).sum() ** 0.5,
        "lse": values.exp().sum().log(),
    }[name]


def matrix(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(list(row)) for row in rows])


def cbam(block: CBAM, x: Tensor, *, temporal: str, start: str) -> Tensor:
    """Applies the gates of the block in order, to one clip at a time (eval mode)."""
    out = []
    for one in x:
        for name, gate in block.gates.items():
            if name == "temporal":
                name = f"temporal {temporal}"
            one = one * _GATES[name](gate, one, STARTS[start])
        out.append(one)
    return torch.stack(out)


def _channel(gate: nn.Module, x: Tensor, squash: Gate) -> Tensor:
    channels, frames = x.shape[:2]
    weights = torch.zeros(channels, frames, 1, 1, dtype=x.dtype)
    for t in range(frames):
        seen = x[:, t : t + 1] if gate.scope == "frame" else x
        logits = sum(
            mlp(gate.mlp, torch.stack([pool(seen[c], name) for c in range(channels)]))
            for name in gate.pools
        )
        for c in range(channels):
            weights[c, t] = squash(logits[c])
    return weights


def _spatial(gate: nn.Module, x: Tensor, squash: Gate) -> Tensor:
    pooled = torch.stack([x.sort(dim=0).values[-1], x.sum(0) / len(x)])
    logits = correlate(pooled, gate.conv.weight[0])
    return _squashed(logits, gate.bn, 0, squash)[None]


def _temporal(gate: nn.Module, x: Tensor, squash: Gate) -> Tensor:
    frames = x.shape[1]
    pooled = [[pool(x[:, t], name) for t in range(frames)] for name in ("avg", "max")]
    logits = correlate(matrix(pooled)[..., None, None], gate.conv.weight[0])
    return _squashed(logits, gate.bn, 0, squash)[None]


def _temporal_by_channel(gate: nn.Module, x: Tensor, squash: Gate) -> Tensor:
    rows = []
    for c, channel in enumerate(x):
        pooled = [[pool(frame, name) for frame in channel] for name in ("avg", "max")]
        logits = correlate(matrix(pooled)[..., None, None], gate.conv.weight[c])
        rows.append(_squashed(logits, gate.bn, c, squash))
    return torch.stack(rows)


def _temporal_mlp(gate: nn.Module, x: Tensor, squash: Gate) -> Tensor:
    frames = x.shape[1]
    logits = sum(
        mlp(gate.mlp, torch.stack([pool(x[:, t], name) for t in range(frames)]))
        for name in ("avg", "max")
    )
    values = [squash(z) for z in logits]
    return torch.stack(values)[None, :, None, None]


def _squashed(logits: Tensor, norm: nn.BatchNorm3d, channel: int, squash: Gate) -> Tensor:
    out = torch.zeros_like(logits)
    for at in itertools.product(*map(range, logits.shape)):
        out[at] = squash(bn(norm, logits[at], channel))
    return out


_GATES: dict[str, Callable[[nn.Module, Tensor, Gate], Tensor]] = {
    "channel": _channel,
    "spatial": _spatial,
    "temporal conv": _temporal,
    "temporal channel": _temporal_by_channel,
    "temporal mlp": _temporal_mlp,
}


def fill(block: nn.Module, seed: int = 1) -> nn.Module:
    """Gives a block random weights and statistics; float64, eval mode."""
    block = block.double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in block.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
                if key.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return block


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def permuted(x: Tensor, axes: Sequence[int] = (2, 3, 4), seed: int = 0) -> Tensor:
    """Permutes the last axes: the positions of a clip or of its frames."""
    flat = x.flatten(axes[0])
    order = torch.randperm(flat.shape[-1], generator=torch.Generator().manual_seed(seed))
    return flat[..., order].view_as(x)
