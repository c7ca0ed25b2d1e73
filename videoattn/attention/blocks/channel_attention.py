"""A block with attention between channels: the channel half of the dual attention network (Fu et
al., CVPR 2019, arXiv 1809.02983).

    Y = softmax(X Xᵀ / sqrt(P)) X        Z = X + BN(Y)        X: (C, P), P = T·H·W positions

Where we differ: the paper subtracts the logits from their maximum and learns a scalar weight. Here
the logits are scaled by 1/sqrt(P), and a batch norm starts at zero.

    form="plain":  Y = softmax(θ(X) φ(X)ᵀ) g(X)

is the channel gate of CBAM, rewritten with queries, keys and values. It has no residual, norm or
scale. An article that describes it multiplies the (C, C) map and the (C, P) values elementwise,
which their shapes do not allow; this module uses the matrix product.
"""

from torch import Tensor, nn

from videoattn.attention.common import small_weights, zero_norm
from videoattn.attention.functional import attend, attention_weights, autocast_off, widen
from videoattn.attention.maps import GateMap
from videoattn.errors import one_of
from videoattn.types import Video


class ChannelAttention(nn.Module):
    """A block with attention between channels; keeps the shape (N, C, T, H, W); linear in T·H·W.

    A token is a channel, and its features are its values at all positions. The norm starts at
    zero, so the block starts as the identity.

    Args:
        project: Compute queries, keys and values by 1x1x1 convolutions (C to C channels). By
            default all three are x itself.
        form: "residual" (Z above) or "plain", which does not start as the identity.

    Raises:
        ValueError: If `form` is unknown.
    """

    def __init__(self, channels: int, *, project: bool = False, form: str = "residual") -> None:
        super().__init__()
        self.is_plain = one_of("form", form, ("residual", "plain")) == "plain"
        self.theta, self.phi, self.g = (
            nn.Conv3d(channels, channels, 1) if project else nn.Identity() for _ in range(3)
        )
        if self.is_plain:
            self.bn: nn.Module = nn.Identity()  # convolutions keep PyTorch's initialization
            return
        self.bn = nn.BatchNorm3d(channels)
        small_weights(self)
        zero_norm(self.bn)

    def forward(self, x: Video) -> Video:
        q, k = self._tokens(x)
        v = self.g(x).flatten(2)
        with autocast_off(x):  # logits are sums over every position
            y = attend(q, k, v.to(q.dtype), scale=self._scale(q), path="explicit")
        y = y.to(v.dtype).view(x.shape)
        return y if self.is_plain else x + self.bn(y)

    def maps(self, x: Video) -> dict[str, GateMap]:
        """Returns the mean weight that channels receive from all channels: (N, C), summing to 1."""
        q, k = self._tokens(x)
        with autocast_off(x):
            weights = attention_weights(q, k, "softmax", self._scale(q))
        return {"": GateMap("channel", weights.mean(dim=1), normalized=True)}

    def _tokens(self, x: Video) -> tuple[Tensor, Tensor]:
        """Returns queries and keys (N, C, T·H·W), in float32 or wider."""
        return widen(self.theta(x).flatten(2)), widen(self.phi(x).flatten(2))

    def _scale(self, q: Tensor) -> float:
        return 1.0 if self.is_plain else float(q.shape[2] ** -0.5)
