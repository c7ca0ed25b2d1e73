"""The gates of squeeze-and-excitation (Hu et al., CVPR 2018, arXiv 1709.01507) and of S3D-G (Xie et
al., ECCV 2018, arXiv 1712.04851), whose self-gating is the same without the bottleneck.

    s = mean of x over positions
    squeeze-and-excitation:  e = sigmoid(W2 ReLU(W1 s + b1) + b2)     W1: C -> C/r, W2: C/r -> C
    self-gating:             e = sigmoid(W s + b)                     W: C -> C
    y = e · x

Where we differ: the network of Hu et al. is 2-D. Here a gate belongs to a clip, and s is the mean
over T·H·W, or it belongs to a frame. With both papers' initialization e is about 1/2 ("half").
"""

from torch import Tensor, nn

from videoattn.attention.blocks import gates
from videoattn.attention.maps import GateMap
from videoattn.errors import one_of
from videoattn.types import Video


class SqueezeExcite(gates.Gate):
    """A gate per channel; keeps the shape (N, C, T, H, W).

    The map is the gate that multiplies x: (N, C), or (N, C, T) with scope="frame".

    Args:
        reduction: r. None selects S3D-G's self-gating, a single C x C layer.
        scope: "clip" for one gate per channel and clip, or "frame" for one per channel and frame.
            The latter is T independent 2-D blocks, which suits the segments of a TSN.
        gate_start: "half" (the papers) or "identity"; see `gates`.
        divisor: Round C/r to a multiple of this number (timm uses 8). With 1, C/r must be an
            integer.
        bias: Give the layers biases.
        add_maxpool: Compute s as half the mean plus half the maximum (an option of timm).

    Raises:
        ValueError: If a name is unknown, r does not divide C, or `divisor` is set without r.
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
        super().__init__(gate_start)
        self.scope = one_of("scope", scope, gates.SCOPES)
        if reduction is None and divisor != 1:
            raise ValueError(
                f"divisor={divisor} rounds C/reduction, which does not exist for reduction=None; "
                "remove it"
            )
        self.add_maxpool = add_maxpool
        self.excite: nn.Conv3d | gates.GateMLP
        if reduction is None:
            self.excite = last = nn.Conv3d(channels, channels, 1, bias=bias)
            if last.bias is not None:
                nn.init.zeros_(last.bias)
        else:
            hidden = gates.hidden_channels(channels, reduction, divisor)
            self.excite = gates.GateMLP(channels, hidden, bias=bias)
            last = self.excite.fc2
        if gate_start == "identity":
            gates.zero_parameters(last)

    def logits(self, x: Video) -> Tensor:
        """Returns the input of the sigmoid, (N, C, 1, 1, 1) or (N, C, T, 1, 1)."""
        axes = gates.SCOPES[self.scope]
        pooled = gates.mean(x, axes)
        if self.add_maxpool:
            pooled = 0.5 * (pooled + gates.maximum(x, axes))
        return self.excite(pooled)

    def maps(self, x: Video) -> dict[str, GateMap]:
        return {"": gates.channel_map(self.weights(x), self.scope)}
