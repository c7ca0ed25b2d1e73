"""A block with attention between positions, and a choice of similarity and normalizer.

    y = normalize(similarity(θ(x), φ(x))) g(x)        z = x + BN(W_z y)

| similarity | logit of query i and key j         | computed by                              |
| dot        | q_i · k_j                          | `attend`                                 |
| scaled     | q_i · k_j / sqrt(D)                | `attend`                                 |
| raw        | q_i · k_j, always in float32       | `attend` (for the non-local "gaussian")  |
| cosine     | tau · q_i · k_j / (|q_i| |k_j|)    | `attend` on `cosine_tokens`              |
| rbf        | -|q_i - k_j|² / (2 bandwidth²)     | `attend` on `rbf_tokens`                 |
| additive   | w · tanh(q_i + k_j)                | `attend_additive`, in chunks of queries  |
| concat     | ReLU(w · [q_i ; k_j])              | `attend_separable`                       |

    form="plain":  y = normalize(similarity(θ(x), φ(x))) g(x)     nothing else; y has C channels

With the similarity "dot" this is the spatial gate of CBAM, rewritten with queries, keys and values.

Every similarity works with every normalizer of `functional`: softmax, sigmoid (our own; rows sum to
about 1 at the start of training), and count. The forms of the non-local paper are special cases,
and `NonLocal` has the same base. The additive similarity is that of Bahdanau, Cho and
Bengio (ICLR 2015, arXiv 1409.0473), whose two matrices are θ and φ here.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from videoattn.attention.blocks.non_local import PairwiseBlock
from videoattn.attention.common import small_weights, zero_norm
from videoattn.attention.functional import (
    NORMALIZERS,
    Normalizer,
    Path,
    autocast_off,
    by_queries,
    check_path,
    normalize,
    widen,
)
from videoattn.attention.maps import Factors
from videoattn.errors import one_of
from videoattn.types import Video

SIMILARITIES = ("dot", "scaled", "cosine", "rbf", "additive", "concat")


class SimilarityAttention(PairwiseBlock):
    """A block with attention over all positions of a clip; keeps the shape (N, C, T, H, W).

    The norm starts at zero, so the block starts as the identity.

    Args:
        similarity: A name from the table above, except "raw".
        normalizer: "softmax", "sigmoid" or "count".
        inner_channels: Width D of q, k and v. Default: C / 2.
        key_pool: Max-pooling (frames, height, width) of x before the projections of keys and
            values, or None. An axis shorter than its pool is pooled to size 1.
        tau: The largest logit of "cosine".
        bandwidth: Bandwidth of "rbf". The default D^(1/4) scales q · k as "scaled" does.
        form: "residual", z above, or "plain", y alone, which does not start as the identity. Plain
            values have C channels, and projections keep PyTorch's initialization.

    Raises:
        ValueError: If a name is unknown, or `tau` or `bandwidth` is not positive.
    """

    bn: nn.Module

    def __init__(
        self,
        channels: int,
        *,
        similarity: str = "scaled",
        normalizer: str = "softmax",
        inner_channels: int | None = None,
        key_pool: Sequence[int] | None = (1, 2, 2),
        tau: float = 10.0,
        bandwidth: float | None = None,
        form: str = "residual",
    ) -> None:
        one_of("similarity", similarity, SIMILARITIES)
        one_of("normalizer", normalizer, NORMALIZERS)
        for name, value in (("tau", tau), ("bandwidth", bandwidth)):
            if value is not None and value <= 0:
                raise ValueError(f"{name}: got {value}; need more than 0")
        inner = inner_channels or max(channels // 2, 1)
        scales = {"scaled": inner**-0.5, "cosine": tau, "rbf": (bandwidth or inner**0.25) ** -2}
        super().__init__()
        self.similarity, self.normalizer = similarity, cast(Normalizer, normalizer)
        self.logit_scale, self.key_pool = scales.get(similarity, 1.0), key_pool
        self.theta = nn.Conv3d(channels, inner, 1)
        self.phi = nn.Conv3d(channels, inner, 1)
        self.is_plain = one_of("form", form, ("residual", "plain")) == "plain"
        self.g = nn.Conv3d(channels, channels if self.is_plain else inner, 1)
        if similarity in ("additive", "concat"):
            self.pair = nn.Linear(inner if similarity == "additive" else 2 * inner, 1, bias=False)
        if self.is_plain:
            self.out, self.bn = nn.Identity(), nn.Identity()
            return
        self.out = nn.Conv3d(inner, channels, 1)
        self.bn = nn.BatchNorm3d(channels)
        small_weights(self)
        zero_norm(self.bn)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.similarity != "additive":
            return super().attend(q, k, v)
        w = self._pair(q)
        return attend_additive(q, k, w, v, normalizer=self.normalizer, path=self.path)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        if self.similarity != "additive":
            return super().weights(q, k)
        return additive_weights(q, k, self._pair(q), self.normalizer)

    def factors(self, q: Tensor, k: Tensor) -> Factors | None:
        return None if self.similarity == "additive" else super().factors(q, k)

    def _as_products(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.similarity == "cosine":
            return cosine_tokens(q), cosine_tokens(k)
        if self.similarity == "rbf":
            return rbf_tokens(q, k, self.normalizer)
        return super()._as_products(q, k)

    def forward(self, x: Video) -> Video:
        y = self.bn(self.respond(x))
        return y if self.is_plain else x + y


def cosine_tokens(x: Float[Tensor, "N P D"]) -> Float[Tensor, "N P D"]:
    """Scales tokens to length 1, so that their dot products are cosines. Zero tokens stay zero."""
    return F.normalize(widen(x), dim=-1, eps=1e-6)


def rbf_tokens(
    q: Float[Tensor, "N Q D"], k: Float[Tensor, "N P D"], normalizer: Normalizer
) -> tuple[Float[Tensor, "N Q W"], Float[Tensor, "N P W"]]:
    """Returns queries and keys whose dot product is `-|q_i - k_j|² / 2`, in float32 or wider.

    One extra channel, 1 in q and `-|k|²/2` in k, gives `q · k - |k|²/2`. The remaining term
    `-|q|²/2` is the same for all keys. A softmax cancels it; for other normalizers a second extra
    channel adds it.
    """
    q, k = widen(q), widen(k)
    q_length = -q.square().sum(-1, keepdim=True) / 2
    k_length = -k.square().sum(-1, keepdim=True) / 2
    q_one, k_one = torch.ones_like(q_length), torch.ones_like(k_length)
    if normalizer == "softmax":
        return torch.cat([q, q_one], dim=-1), torch.cat([k, k_length], dim=-1)
    return torch.cat([q, q_one, q_length], dim=-1), torch.cat([k, k_length, k_one], dim=-1)


def additive_weights(
    q: Float[Tensor, "N Q D"],
    k: Float[Tensor, "N P D"],
    w: Float[Tensor, " D"],
    normalizer: Normalizer = "softmax",
) -> Float[Tensor, "N Q P"]:
    """Returns the normalized rows of `w · tanh(q_i + k_j)`. Needs O(Q·P·D) memory."""
    return normalize((q.unsqueeze(2) + k.unsqueeze(1)).tanh() @ w, normalizer)


def attend_additive(
    q: Float[Tensor, "N Q D"],
    k: Float[Tensor, "N P D"],
    w: Float[Tensor, " D"],
    v: Float[Tensor, "N P E"],
    *,
    normalizer: Normalizer = "softmax",
    path: Path = "auto",
) -> Float[Tensor, "N Q E"]:
    """Returns `normalize(w · tanh(q_i + k_j)) v`, computed in float32 or wider.

    The Q·P·D intermediate values cannot be avoided. Path "chunked", which "auto" selects, computes
    them for a few queries at a time.

    Raises:
        ValueError: If `path` is not "auto", "explicit" or "chunked".
    """
    check_path(path, "an additive map", "chunked")
    with autocast_off(q):
        q, keys, w, values = (widen(x) for x in (q, k, w, v))

        def rows(some: Tensor) -> Tensor:
            return additive_weights(some, keys, w, normalizer)

        if path == "explicit":
            return (rows(q) @ values).to(v.dtype)
        return by_queries(rows, q, values, entries=k.shape[1:].numel()).to(v.dtype)
