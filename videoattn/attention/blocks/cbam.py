"""The gates of CBAM (Woo et al., ECCV 2018, arXiv 1807.06521) for video, and a temporal gate.

    channel:   M_c = sigmoid(MLP(avg x) + MLP(max x))              pooled over positions
    spatial:   M_s = sigmoid(BN(conv([max x ; mean x])))           pooled over channels
    temporal:  M_t = sigmoid(BN(conv1d([mean x ; max x])))         pooled over channels and H·W

Gates run in sequence, each on the output of the previous one. The paper applies the channel gate
and then the spatial gate to images: `gates=[channel, spatial]`. The norm before the spatial sigmoid
is in the authors' code, but not in the paper's formula (equation 3), which is `norm="none"`. There
and here its weight starts at 0, so the gate starts at 1/2 everywhere; its momentum is 0.01. The
default follows the code, because the published numbers come from it.

Where we differ: the temporal gate, which mirrors the spatial one, and the axes of a clip that each
gate pools over are ours. In the authors' code the MLP always has biases.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from videoattn.attention.blocks.gates import (
    POOLS,
    SCOPES,
    Gate,
    GateMLP,
    GateNorm,
    channel_map,
    check_each,
    hidden_channels,
    keep_statistics,
    maximum,
    mean,
    zero_parameters,
)
from videoattn.attention.common import check_odd
from videoattn.attention.maps import GateMap
from videoattn.errors import one_of
from videoattn.layers import Conv3d
from videoattn.types import Video

GATES = ("channel", "spatial", "temporal")
TEMPORAL = ("conv", "mlp", "channel")


class CBAM(nn.Module):
    """A sequence of gates on x; keeps the shape (N, C, T, H, W).

    The maps are the gates: "channel" (N, C), or (N, C, T) with scope="frame"; "spatial"
    (N, T, H, W); "temporal" (N, T), or (N, C, T) of kind channel with temporal="channel".

    Args:
        gates: The gates to apply, in this order.
        reduction: r; the MLP of the channel gate is C/r wide, and r must divide C.
        pools: Poolings of the channel gate: avg, max, lp, lse. The MLP's outputs are summed.
        scope: One channel gate per "clip", or one per "frame".
        kernel: Odd size (frames, height, width) of the spatial gate. (1, 7, 7) gates each frame by
            itself, as the 2-D block does; (3, 7, 7) also uses the neighboring frames.
        temporal: "conv" is a kernel of 7 frames, for clips of any length. "mlp" is a perceptron
            over all frames, T -> T/2 -> T, for clips of `num_frames`. "channel" is a kernel of 7
            frames for each channel, pooled over height and width: a gate per channel and frame.
        num_frames: T at this block; required for temporal="mlp", and invalid otherwise.
        norm: The norm before the sigmoid of the spatial gate, and of the temporal gates with a
            kernel: "bn" (the authors' code) or "none" (the paper's formula).
        gate_start: "half" (the paper) or "identity"; see `gates`.

    Raises:
        ValueError: If a name is unknown, repeated or missing; r does not divide C; a kernel size is
            even; `num_frames` is missing or not used, or a clip has another number of frames.
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
        norm: str = "bn",
        gate_start: str = "half",
    ) -> None:
        super().__init__()
        names = [gates] if isinstance(gates, str) else list(gates)
        check_each("gates", names, GATES)
        one_of("temporal", temporal, TEMPORAL)
        one_of("norm", norm, ("bn", "none"))
        if (num_frames is not None) != (temporal == "mlp"):
            raise ValueError(
                f"num_frames: got {num_frames} with temporal={temporal!r}; 'mlp' needs the "
                "number of frames at this block, 'conv' and 'channel' need None"
            )
        options = {"norm": norm, "gate_start": gate_start}

        def build(gate: str) -> nn.Module:
            if gate == "channel":
                return ChannelGate(
                    channels, reduction=reduction, pools=pools, scope=scope, gate_start=gate_start
                )
            if gate == "spatial":
                check_odd("kernel", kernel)
                return ConvGate(1, kernel, (1,), pools=("max", "avg"), **options)
            if num_frames is not None:
                return FrameMLPGate(num_frames, gate_start=gate_start)
            width, axes = (channels, (3, 4)) if temporal == "channel" else (1, (1, 3, 4))
            return ConvGate(width, (7, 1, 1), axes, pools=("avg", "max"), **options)

        self.gates = nn.ModuleDict({name: build(name) for name in names})

    def forward(self, x: Video) -> Video:
        for gate in self.gates.values():
            x = gate(x)
        return x

    def maps(self, x: Video) -> dict[str, GateMap]:
        found = {}
        with keep_statistics(self):
            for name, gate in self.gates.items():
                assert isinstance(gate, Gate)
                weights = gate.weights(x)
                found[name] = gate.gate_map(weights)
                x = x * weights
        return found


class ChannelGate(Gate):
    """The channel gate: the sigmoid of the sum of one MLP's outputs for all poolings."""

    def __init__(
        self, channels: int, *, reduction: int, pools: Sequence[str], scope: str, gate_start: str
    ) -> None:
        super().__init__(gate_start)
        check_each("pools", pools, tuple(POOLS))
        self.scope = one_of("scope", scope, SCOPES)
        self.pools = tuple(pools)
        self.mlp = GateMLP(channels, hidden_channels(channels, reduction))
        if gate_start == "identity":
            zero_parameters(self.mlp.fc2)

    def logits(self, x: Video) -> Tensor:
        axes = SCOPES[self.scope]
        return reduce(torch.add, [self.mlp(POOLS[pool](x, axes)) for pool in self.pools])

    def gate_map(self, weights: Tensor) -> GateMap:
        return channel_map(weights, self.scope)


class ConvGate(Gate):
    """A gate from a convolution of x pooled over `axes`: per position for (1,), per frame for
    (1, 3, 4), per channel and frame for (3, 4). Each of the `width` channels left has a kernel."""

    def __init__(
        self,
        width: int,
        kernel: Sequence[int],
        axes: tuple[int, ...],
        *,
        pools: Sequence[str],
        norm: str,
        gate_start: str,
    ) -> None:
        super().__init__(gate_start)
        self.axes, self.pools = axes, pools
        frames, height, side = kernel
        padding = (frames // 2, height // 2, side // 2)
        self.conv = Conv3d(
            2 * width, width, (frames, height, side), padding=padding, groups=width, bias=False
        )
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.bn: nn.Module = nn.Identity()
        if norm == "bn":
            self.bn = GateNorm(width, momentum=0.01)
            nn.init.zeros_(self.bn.weight)
        elif gate_start == "identity":
            zero_parameters(self.conv)

    def logits(self, x: Video) -> Tensor:
        # Groups are consecutive channels, so the two poolings of a channel must be adjacent:
        # (N, width, 2, T, H, W).
        pooled = [POOLS[pool](x, self.axes) for pool in self.pools]
        return self.bn(self.conv(torch.stack(pooled, dim=2).flatten(1, 2)))

    def gate_map(self, weights: Tensor) -> GateMap:
        if self.axes == (1,):
            return GateMap("spatial", weights.squeeze(1), identity_value=1.0)
        if self.axes == (1, 3, 4):
            return GateMap("temporal", weights[:, 0, :, 0, 0], identity_value=1.0)
        return channel_map(weights, "frame")


class FrameMLPGate(Gate):
    """The channel gate with frames in place of channels: an MLP over the T frames."""

    def __init__(self, num_frames: int, *, gate_start: str) -> None:
        super().__init__(gate_start)
        if num_frames < 1:
            raise ValueError(f"num_frames: got {num_frames}; need at least 1")
        self.num_frames = num_frames
        self.mlp = GateMLP(num_frames, max(num_frames // 2, 1))
        if gate_start == "identity":
            zero_parameters(self.mlp.fc2)

    def logits(self, x: Video) -> Tensor:
        if x.shape[2] != self.num_frames:
            raise ValueError(
                f"num_frames: this block has temporal='mlp' for {self.num_frames} frames, got "
                f"{x.shape[2]}; change num_frames, or choose temporal='conv' for any number"
            )
        axes = (1, 3, 4)
        average, largest = (self.mlp(pool(x, axes).transpose(1, 2)) for pool in (mean, maximum))
        return (average + largest).transpose(1, 2)

    def gate_map(self, weights: Tensor) -> GateMap:
        return GateMap("temporal", weights[:, 0, :, 0, 0], identity_value=1.0)
