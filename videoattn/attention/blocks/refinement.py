"""The attention refinement module of BiSeNet (Yu et al., ECCV 2018, arXiv 1808.00897).

    f = x                             or, with pre_conv, ReLU(BN(conv3x3(x)))
    s = sigmoid(BN(W mean(f)))        W: C -> C, 1x1, no bias
    out = s · f

This is squeeze-and-excitation without a bottleneck and with a norm. In the paper it refines two
levels of a segmentation pyramid. The authors' code has a convolution before the pooling, which
changes the width of a level to the width of the pyramid; the paper has none. Where we differ: the
paper has images. Here the mean is over T·H·W or over each frame, and the convolution is (1, 3, 3).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.attention.blocks import gates
from videoattn.attention.maps import GateMap
from videoattn.errors import one_of
from videoattn.types import Video

NORMS = ("bn", "ln", "none")


class AttentionRefinement(gates.Gate):
    """A gate per channel: (N, C, T, H, W) -> the same shape, or (N, out_channels, T, H, W).

    The map is the gate that multiplies f: (N, C), or (N, C, T) with scope="frame".

    Args:
        pre_conv: Apply a 3x3 convolution, norm and ReLU before the gate (the authors' code).
        out_channels: Width after that convolution. Default: C; without `pre_conv` it must be C.
        scope: "clip" for one gate per channel and clip, or "frame" for one per channel and frame.
        norm: The norm before the sigmoid: "bn" (the paper), "ln" over the channels, or "none".
            Batch norm of pooled features has one value per channel and clip, so it is noisy for
            small batches. For a single clip it uses its running statistics and does not update
            them; use "ln" to train on single clips.
        gate_start: "half" (the paper) or "identity"; see `gates`. With `pre_conv`, "identity" sets
            only the gate to 1: the convolution still changes x.

    Raises:
        ValueError: If a name is unknown, or `out_channels` differs from C without `pre_conv`.
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
        super().__init__(gate_start)
        self.scope = one_of("scope", scope, gates.SCOPES)
        one_of("norm", norm, NORMS)
        width = channels if out_channels is None else out_channels
        if width != channels and not pre_conv:
            raise ValueError(
                f"out_channels={width} differs from the {channels} input channels, which requires "
                "pre_conv=True: without the convolution the block keeps its channels"
            )
        self.conv: nn.Conv3d | None = None
        if pre_conv:
            self.conv = nn.Conv3d(channels, width, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.bn = nn.BatchNorm3d(width) if pre_conv else None
        self.gate_conv = nn.Conv3d(width, width, 1, bias=False)
        norms = {"bn": gates.GateNorm, "ln": _ChannelLayerNorm, "none": nn.Identity}
        self.gate_norm: nn.Module = norms[norm](width)
        for conv in (self.conv, self.gate_conv):
            if conv is not None:
                nn.init.kaiming_normal_(conv.weight, a=1)
        if gate_start == "identity":
            gates.zero_parameters(self.gate_conv if norm == "none" else self.gate_norm)

    def forward(self, x: Video) -> Tensor:
        features = self._features(x)
        return (features * self.weights(features)).to(x.dtype)

    def maps(self, x: Video) -> dict[str, GateMap]:
        with gates.keep_statistics(self):
            weights = self.weights(self._features(x))
        return {"": gates.channel_map(weights, self.scope)}

    def logits(self, x: Video) -> Tensor:
        return self.gate_norm(self.gate_conv(gates.mean(x, gates.SCOPES[self.scope])))

    def _features(self, x: Video) -> Tensor:
        if self.conv is None or self.bn is None:
            return x
        return F.relu(self.bn(self.conv(x)))


class _ChannelLayerNorm(nn.LayerNorm):
    """A layer norm over axis 1, for each clip or frame separately."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
