"""The attention refinement module of BiSeNet (Yu et al., ECCV 2018, arXiv 1808.00897).

    f = x                             or, with pre_conv, ReLU(BN(conv3x3(x)))
    s = sigmoid(BN(W mean(f)))        W: C -> C, 1x1, no bias
    out = s · f

Squeeze-and-excitation without a bottleneck and with a norm. In the paper it refines two levels of a
pyramid for segmentation, and has nothing before the pooling; the authors' code puts the convolution
there, which also brings the level to the pyramid's width. Their images are our frames: the mean is
over T·H·W or over each frame, and the convolution is (1, 3, 3).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.attention.blocks.gates import (
    SCOPES,
    STARTS,
    GateNorm,
    channel_field,
    gate_weights,
    mean,
    statistics_kept,
    zero,
)
from videoattn.attention.common import check_choice
from videoattn.attention.record import GateMap
from videoattn.types import Video

NORMS = ("bn", "ln", "none")


class AttentionRefinement(nn.Module):
    """One gate a channel: (N, C, T, H, W) -> the same shape, or (N, out_channels, T, H, W).

    pre_conv: a 3x3 convolution, norm and ReLU before the gate (the authors' code).
    out_channels: the width behind that convolution; C unless given, and always C without it.
    scope: "clip", one gate a channel and clip, or "frame", one for every frame of it
        (`model.attention.options.scope=frame`).
    norm: before the sigmoid: "bn" (the paper), "ln" over the channels, or "none". Batch norm of
        pooled features has one number a channel and clip: in training, small batches make it noisy,
        and where one number is all (one clip) it uses its running statistics and leaves them alone.
        Choose "ln" for training on single clips.
    gate_start: "half" (the paper) or "identity", see `gates`. With pre_conv only the gate is 1 at
        the start: the convolution before it changes x.

    Its map is the gate that f is multiplied by: (N, C), or (N, C, T) by frames.
    """

    def __init__(
        self,
        channels: int,
        *,
        pre_conv: bool = False,
        out_channels: int | None = None,
        scope: str = "clip",
        norm: str = "bn",
        gate_start: str = "half",
    ) -> None:
        super().__init__()
        check_choice("scope", scope, tuple(SCOPES))
        check_choice("norm", norm, NORMS)
        check_choice("gate_start", gate_start, STARTS)
        width = channels if out_channels is None else out_channels
        if width != channels and not pre_conv:
            raise ValueError(
                f"out_channels={width} of {channels} channels needs pre_conv=True: without the "
                "convolution the block keeps its channels"
            )
        self.scope = scope
        self.gate_start = gate_start
        self.conv = (
            nn.Conv3d(channels, width, (1, 3, 3), padding=(0, 1, 1), bias=False)
            if pre_conv
            else None
        )
        self.bn = nn.BatchNorm3d(width) if pre_conv else None
        self.gate_conv = nn.Conv3d(width, width, 1, bias=False)
        self.gate_norm: nn.Module = {
            "bn": GateNorm,
            "ln": _ChannelLayerNorm,
            "none": nn.Identity,
        }[norm](width)
        for conv in (self.conv, self.gate_conv):
            if conv is not None:
                nn.init.kaiming_normal_(conv.weight, a=1)
        if gate_start == "identity":
            zero(self.gate_conv if norm == "none" else self.gate_norm)

    def forward(self, x: Video) -> Tensor:
        features = self._features(x)
        return (features * self._weights(features)).to(x.dtype)

    def maps(self, x: Video) -> dict[str, GateMap]:
        with statistics_kept(self):
            weights = self._weights(self._features(x))
        return {"": channel_field(weights, self.scope)}

    def _features(self, x: Video) -> Tensor:
        if self.conv is None or self.bn is None:
            return x
        return F.relu(self.bn(self.conv(x)))

    def _weights(self, features: Tensor) -> Tensor:
        logits = self.gate_norm(self.gate_conv(mean(features, SCOPES[self.scope])))
        return gate_weights(features, logits, self.gate_start)


class _ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over axis 1: each clip's, or each frame's, channels by themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
