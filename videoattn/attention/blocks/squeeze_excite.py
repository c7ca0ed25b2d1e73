"""Squeeze-and-excitation (Hu et al., CVPR 2018, arXiv 1709.01507), and the self-gating of S3D-G
(Xie et al., ECCV 2018, arXiv 1712.04851), which is it without the bottleneck.

    s = mean of x over positions
    squeeze-and-excitation:  e = sigmoid(W2 ReLU(W1 s + b1) + b2)     W1: C -> C/r, W2: C/r -> C
    self-gating:             e = sigmoid(W s + b)                     W: C -> C
    y = e · x

The paper's network is 2-D. Here a gate belongs to a clip, s being the mean over T·H·W, or to each
frame alone. Both papers' starts leave about half of x ("half").
"""

from torch import Tensor, nn

from videoattn.attention.blocks.gates import (
    SCOPES,
    STARTS,
    GateMLP,
    channel_field,
    gate_weights,
    hidden_channels,
    maximum,
    mean,
    zero,
)
from videoattn.attention.common import check_choice
from videoattn.attention.record import GateMap
from videoattn.types import Video


class SqueezeExcite(nn.Module):
    """One gate a channel: (N, C, T, H, W) -> the same shape.

    reduction: r. None is S3D-G's self-gating, one C x C layer.
    scope: "clip", one gate a channel and clip, or "frame", one for every frame of it: T independent
        2-D blocks, which suits a TSN's segments (`model.attention.options.scope=frame`).
    gate_start: "half" (the papers) or "identity", see `gates`.
    divisor: round C/r to a multiple of it, as timm does (8 there). With 1, C/r must be whole.
    bias: whether the layers have biases.
    add_maxpool: s is half the mean and half the maximum (timm's option).

    Its map is the gate that x is multiplied by: (N, C), or (N, C, T) by frames.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int | None = 16,
        scope: str = "clip",
        gate_start: str = "half",
        divisor: int = 1,
        bias: bool = True,
        add_maxpool: bool = False,
    ) -> None:
        super().__init__()
        check_choice("scope", scope, tuple(SCOPES))
        check_choice("gate_start", gate_start, STARTS)
        if reduction is None and divisor != 1:
            raise ValueError(
                f"divisor={divisor} rounds C/reduction, and reduction=None has none: leave it"
            )
        self.scope = scope
        self.gate_start = gate_start
        self.add_maxpool = add_maxpool
        self.excite: nn.Module
        if reduction is None:
            self.excite = last = nn.Conv3d(channels, channels, 1, bias=bias)
            if last.bias is not None:
                nn.init.zeros_(last.bias)
        else:
            hidden = hidden_channels(channels, reduction, divisor)
            self.excite = mlp = GateMLP(channels, hidden, bias=bias)
            last = mlp.fc2
        if gate_start == "identity":
            zero(last)

    def forward(self, x: Video) -> Video:
        return x * self._weights(x)

    def logits(self, x: Video) -> Tensor:
        """(N, C, 1, 1, 1), or (N, C, T, 1, 1) by frames: what the sigmoid is given."""
        axes = SCOPES[self.scope]
        pooled = mean(x, axes)
        if self.add_maxpool:
            pooled = 0.5 * (pooled + maximum(x, axes))
        logits: Tensor = self.excite(pooled)
        return logits

    def maps(self, x: Video) -> dict[str, GateMap]:
        return {"": channel_field(self._weights(x), self.scope)}

    def _weights(self, x: Video) -> Tensor:
        return gate_weights(x, self.logits(x), self.gate_start)
