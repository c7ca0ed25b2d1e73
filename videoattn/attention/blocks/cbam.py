"""CBAM (Woo et al., ECCV 2018, arXiv 1807.06521) for video, with a gate over time.

    channel:   M_c = sigmoid(MLP(avg x) + MLP(max x))                      over positions
    spatial:   M_s = sigmoid(BN(conv([max x ; mean x])))                   over channels
    temporal:  M_t = sigmoid(BN(conv1d([mean x ; max x])))                 over channels and places

Gates run one after the other, each on what the one before it left. The paper has the channel gate
and then the spatial one, on images: `gates=[channel, spatial]` is that. The temporal gate mirrors
its spatial one and is ours, as are the choices of what a gate is pooled over in a clip. As in the
authors' code the norm before a sigmoid starts at zero, so those gates start at 1/2 everywhere, and
its momentum is 0.01. Theirs has biases in the MLP, and may pool by the L2 norm and the log of
summed exponentials too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from videoattn.attention.blocks.gates import (
    POOLS,
    SCOPES,
    STARTS,
    GateMLP,
    GateNorm,
    channel_field,
    check_each,
    gate_weights,
    hidden_channels,
    maximum,
    mean,
    statistics_kept,
    zero,
)
from videoattn.attention.common import check_choice
from videoattn.attention.record import GateMap
from videoattn.layers import Conv3d
from videoattn.types import Video

GATES = ("channel", "spatial", "temporal")
TEMPORAL = ("conv", "mlp", "channel")


class CBAM(nn.Module):
    """Gates in a row: (N, C, T, H, W) -> the same shape.

    gates: which, in the order they run in.
    reduction: C/r is the width of the channel gate's MLP; it must divide C.
    pools: what the channel gate pools by, of avg, max, lp and lse; the MLP's answers are summed.
    scope: of the channel gate: one a "clip", or one for every "frame"
        (`model.attention.options.scope=frame`).
    kernel: of the spatial gate, (frames, height, width), odd: (1, 7, 7) gates each frame by itself
        as the 2-D block does; (3, 7, 7) and (7, 7, 7) look at its neighbours too.
    temporal: "conv", a kernel of 7 frames, for clips of any length; "mlp", a perceptron over all
        frames, T -> T/2 -> T, for clips of `num_frames` only; "channel", a kernel of 7 frames for
        every channel by itself, on features pooled over height and width: a gate for each channel
        and frame.
    num_frames: T as it reaches the block; for temporal="mlp" and nothing else.
    gate_start: "half" (the paper) or "identity", see `gates`.

    Its maps are the gates as they are multiplied: channel (N, C), or (N, C, T) by frames; spatial
    (N, T, H, W); temporal (N, T), or of kind channel (N, C, T) for temporal="channel".

    Raises:
        ValueError: an unknown, repeated or missing gate or pool; C not divisible by `reduction`;
            an even kernel; `num_frames` that is missing, is not for this gate, or is not T.
    """

    def __init__(
        self,
        channels: int,
        *,
        gates: Sequence[str] = GATES,
        reduction: int = 16,
        pools: Sequence[str] = ("avg", "max"),
        scope: str = "clip",
        kernel: Sequence[int] = (1, 7, 7),
        temporal: str = "conv",
        num_frames: int | None = None,
        gate_start: str = "half",
    ) -> None:
        super().__init__()
        names = [gates] if isinstance(gates, str) else list(gates)
        check_each("gates", names, GATES)
        check_choice("gate_start", gate_start, STARTS)
        check_choice("temporal", temporal, TEMPORAL)
        if (num_frames is not None) != (temporal == "mlp"):
            raise ValueError(
                f"temporal={temporal!r} with num_frames={num_frames}: 'mlp' needs the number of "
                "frames that reach the block, the others take any number: leave it"
            )

        def build(gate: str) -> nn.Module:
            if gate == "channel":
                return ChannelGate(
                    channels, reduction=reduction, pools=pools, scope=scope, gate_start=gate_start
                )
            if gate == "spatial":
                return SpatialGate(kernel=kernel, gate_start=gate_start)
            if num_frames is not None:
                return FrameMLPGate(num_frames, gate_start=gate_start)
            return TemporalGate(channels, per_channel=temporal == "channel", gate_start=gate_start)

        self.gates = nn.ModuleDict({name: build(name) for name in names})

    def forward(self, x: Video) -> Video:
        for gate in self.gates.values():
            x = gate(x)
        return x

    def maps(self, x: Video) -> dict[str, GateMap]:
        found = {}
        with statistics_kept(self):
            for name, gate in self.gates.items():
                assert isinstance(gate, _Gate)
                weights = gate.weights(x)
                found[name] = gate.field(weights)
                x = x * weights
        return found


class _Gate(nn.Module):
    """x · e(x): a gate says what `logits` are, in a shape that broadcasts, and how to show them."""

    def __init__(self, gate_start: str) -> None:
        super().__init__()
        self.gate_start = gate_start

    def forward(self, x: Video) -> Video:
        return x * self.weights(x)

    def weights(self, x: Video) -> Tensor:
        return gate_weights(x, self.logits(x), self.gate_start)

    def logits(self, x: Video) -> Tensor:
        raise NotImplementedError

    def field(self, weights: Tensor) -> GateMap:
        raise NotImplementedError


class ChannelGate(_Gate):
    """One MLP for all poolings; its answers are summed before the sigmoid."""

    def __init__(
        self, channels: int, *, reduction: int, pools: Sequence[str], scope: str, gate_start: str
    ) -> None:
        super().__init__(gate_start)
        check_choice("scope", scope, tuple(SCOPES))
        check_each("pools", pools, tuple(POOLS))
        self.scope = scope
        self.pools = tuple(pools)
        self.mlp = GateMLP(channels, hidden_channels(channels, reduction))
        if gate_start == "identity":
            zero(self.mlp.fc2)

    def logits(self, x: Video) -> Tensor:
        return _total([self.mlp(POOLS[pool](x, SCOPES[self.scope])) for pool in self.pools])

    def field(self, weights: Tensor) -> GateMap:
        return channel_field(weights, self.scope)


class SpatialGate(_Gate):
    """One gate a position, from the maximum and the mean of the channels there."""

    def __init__(self, *, kernel: Sequence[int], gate_start: str) -> None:
        super().__init__(gate_start)
        if len(kernel) != 3 or any(size < 1 or size % 2 == 0 for size in kernel):
            raise ValueError(
                f"kernel: got {list(kernel)}; need three odd sizes (frames, height, width), such "
                "as [1, 7, 7], [3, 7, 7] or [7, 7, 7]"
            )
        self.conv = _convolution(2, 1, kernel)
        self.bn = _zero_norm(1)

    def logits(self, x: Video) -> Tensor:
        logits: Tensor = self.bn(self.conv(torch.cat([maximum(x, (1,)), mean(x, (1,))], dim=1)))
        return logits

    def field(self, weights: Tensor) -> GateMap:
        return GateMap("spatial", weights.squeeze(1), identity_value=1.0)


class TemporalGate(_Gate):
    """Kernels of 7 frames over the mean and the maximum, for clips of any length.

    per_channel: take the two over the positions of each channel, for a gate for each channel and
        frame; else over all channels too, for one gate a frame.
    """

    def __init__(self, channels: int, *, per_channel: bool, gate_start: str) -> None:
        super().__init__(gate_start)
        width = channels if per_channel else 1
        self.axes = (3, 4) if per_channel else (1, 3, 4)
        self.conv = _convolution(2 * width, width, (7, 1, 1), groups=width)
        self.bn = _zero_norm(width)

    def logits(self, x: Video) -> Tensor:
        # (N, width, 2, T, 1, 1): a grouped kernel takes neighbours, so a channel's two are those.
        pooled = torch.stack([mean(x, self.axes), maximum(x, self.axes)], dim=2).flatten(1, 2)
        logits: Tensor = self.bn(self.conv(pooled))
        return logits

    def field(self, weights: Tensor) -> GateMap:
        if self.axes == (3, 4):
            return channel_field(weights, "frame")
        return GateMap("temporal", weights[:, 0, :, 0, 0], identity_value=1.0)


class FrameMLPGate(_Gate):
    """The channel gate with frames for channels: its MLP knows each frame by its number."""

    def __init__(self, num_frames: int, *, gate_start: str) -> None:
        super().__init__(gate_start)
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        self.num_frames = num_frames
        self.mlp = GateMLP(num_frames, max(num_frames // 2, 1))
        if gate_start == "identity":
            zero(self.mlp.fc2)

    def logits(self, x: Video) -> Tensor:
        if x.shape[2] != self.num_frames:
            raise ValueError(
                f"{x.shape[2]} frames reach this block, and its temporal='mlp' was made for "
                f"{self.num_frames}; set num_frames, or choose temporal='conv', which takes any"
            )
        axes = (1, 3, 4)
        by_pool = [self.mlp(pool(x, axes).transpose(1, 2)) for pool in (mean, maximum)]
        return _total(by_pool).transpose(1, 2)

    def field(self, weights: Tensor) -> GateMap:
        return GateMap("temporal", weights[:, 0, :, 0, 0], identity_value=1.0)


def _total(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _convolution(inputs: int, outputs: int, kernel: Sequence[int], groups: int = 1) -> Conv3d:
    frames, height, width = kernel
    padding = (frames // 2, height // 2, width // 2)
    conv = Conv3d(
        inputs, outputs, (frames, height, width), padding=padding, groups=groups, bias=False
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _zero_norm(channels: int) -> GateNorm:
    norm = GateNorm(channels, momentum=0.01)
    nn.init.zeros_(norm.weight)
    return norm
