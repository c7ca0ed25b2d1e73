"""Attention with a choice of similarity and normaliser, over positions or over channels.

    y = normalise(similarity(θ(x), φ(x))) g(x)        z = x + BN(W_z y)

| similarity | logit of query i and key j         |
| dot        | q_i · k_j                          |
| scaled     | q_i · k_j / sqrt(D)                |
| cosine     | tau · q_i · k_j / (|q_i| |k_j|)    |
| rbf        | -|q_i - k_j|² / (2 bandwidth²)     |
| additive   | w · tanh(q_i + k_j)                |
| concat     | ReLU(w · [q_i ; k_j])              |

Each goes with each normaliser: softmax (rows sum to 1), sigmoid (weights in (0, 1), with -log P so
that the P of a row sum to about 1 at first; ours), count (the logit itself over P). The non-local
paper's embedded gaussian, dot product and concatenation (Wang et al., CVPR 2018) are scaled with
softmax, dot with count, concat with count.

Over channels: softmax(X Xᵀ) X with C x C weights, as in the channel half of the dual attention
network (Fu et al., CVPR 2019, arXiv 1809.02983). Theirs subtracts the logits from their maximum and
has a scalar weight; here logits are scaled by 1/sqrt(T·H·W) and a batch norm starts at zero.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from videoattn.attention.blocks.similarities import (
    additive_weights,
    attend_additive,
    cosine_tokens,
    rbf_tokens,
)
from videoattn.attention.common import (
    check_choice,
    grid_of,
    pairwise_map,
    pool_keys,
    small_weights,
    zero_norm,
)
from videoattn.attention.functional import (
    NORMALISERS,
    Grid,
    Normaliser,
    PairwiseAttention,
    Path,
    attend,
    attend_separable,
    attention_weights,
    autocast_off,
    from_tokens,
    separable_weights,
    to_tokens,
)
from videoattn.attention.record import GateMap
from videoattn.types import Video

SIMILARITIES = ("dot", "scaled", "cosine", "rbf", "additive", "concat")


class SimilarityAttention(nn.Module):
    """Attention over all positions of a clip: (N, C, T, H, W) -> the same shape.

    similarity, normaliser: of the table above.
    inner_channels: width of q, k and v (and of the additive one's hidden layer); half the channels
        unless given.
    key_pool: max-pooling (frames, height, width) of x before the keys' and values' projections, or
        None. An axis shorter than its pool is pooled whole.
    tau: the largest logit of "cosine".
    bandwidth: of "rbf"; D^(1/4) unless given, by which q · k is scaled as in "scaled".

    The norm starts at zero, so the block starts as the identity.
    """

    path: Path = "auto"
    """How `attend` computes the map; "explicit" builds all of it, for comparison."""

    def __init__(
        self,
        channels: int,
        *,
        similarity: str = "scaled",
        normaliser: str = "softmax",
        inner_channels: int | None = None,
        key_pool: Sequence[int] | None = (1, 2, 2),
        tau: float = 10.0,
        bandwidth: float | None = None,
    ) -> None:
        super().__init__()
        check_choice("similarity", similarity, SIMILARITIES)
        check_choice("normaliser", normaliser, NORMALISERS)
        for name, value in (("tau", tau), ("bandwidth", bandwidth)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        inner = inner_channels or max(channels // 2, 1)
        self.similarity = similarity
        self.normaliser = cast(Normaliser, normaliser)
        self.key_pool = key_pool
        scales = {"scaled": inner**-0.5, "cosine": tau, "rbf": (bandwidth or inner**0.25) ** -2}
        self.logit_scale = scales.get(similarity, 1.0)
        self.theta = nn.Conv3d(channels, inner, 1)
        self.phi = nn.Conv3d(channels, inner, 1)
        self.g = nn.Conv3d(channels, inner, 1)
        if similarity in ("additive", "concat"):
            self.pair = nn.Linear(inner if similarity == "additive" else 2 * inner, 1, bias=False)
        self.out = nn.Conv3d(inner, channels, 1)
        self.bn = nn.BatchNorm3d(channels)
        small_weights(self)
        zero_norm(self.bn)

    def forward(self, x: Video) -> Video:
        q, k, v, _ = self.project(x)
        return x + self.bn(self.out(from_tokens(self._attend(q, k, v), grid_of(x))))

    def project(self, x: Video) -> tuple[Tensor, Tensor, Tensor, Grid]:
        """Queries (N, P, D), keys (N, P', D), values (N, P', E) and the keys' grid (T', H', W')."""
        source = pool_keys(x, self.key_pool)
        q, k, v = (to_tokens(y) for y in (self.theta(x), self.phi(source), self.g(source)))
        return q, k, v, grid_of(source)

    def maps(self, x: Video) -> dict[str, PairwiseAttention]:
        """The weights that `forward` uses on x, by rows."""
        q, k, _, key_grid = self.project(x)
        normalized = self.normaliser == "softmax"
        return {"": pairwise_map(self._weights, q, k, grid_of(x), key_grid, normalized=normalized)}

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        normaliser, path = self.normaliser, self.path
        if self.similarity == "additive":
            return attend_additive(q, k, self._pair(q), v, normaliser=normaliser, path=path)
        if self.similarity == "concat":
            return attend_separable(*self._separate(q, k), v, normaliser=normaliser, path=path)
        scale = self.logit_scale
        if self.similarity in ("dot", "scaled"):
            return attend(q, k, v, normaliser=normaliser, scale=scale, path=path)
        with autocast_off(q):  # norms and squared distances
            q, k = self._as_products(q, k)
            y = attend(q, k, v.to(q.dtype), normaliser=normaliser, scale=scale, path=path)
        return y.to(v.dtype)

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        if self.similarity == "additive":
            return additive_weights(q, k, self._pair(q), self.normaliser)
        if self.similarity == "concat":
            return separable_weights(*self._separate(q, k), self.normaliser)
        return attention_weights(*self._as_products(q, k), self.normaliser, self.logit_scale)

    def _as_products(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.similarity == "cosine":
            return cosine_tokens(q), cosine_tokens(k)
        return rbf_tokens(q, k, self.normaliser) if self.similarity == "rbf" else (q, k)

    def _pair(self, like: Tensor) -> Tensor:
        return self.pair.weight.to(like.dtype).squeeze(0)

    def _separate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """w · [q_i ; k_j] = a_i + b_j"""
        w_q, w_k = self._pair(q).chunk(2)
        return q @ w_q, k @ w_k


class ChannelAttention(nn.Module):
    """Attention among channels: (N, C, T, H, W) -> the same shape, in time linear in T·H·W.

    Tokens are the channels, their features what they have at each position. A channel's query, key
    and value are itself; with project=True, 1x1x1 convolutions of x (C to C channels) make them.

    The norm starts at zero, so the block starts as the identity.
    """

    def __init__(self, channels: int, *, project: bool = False) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (
            nn.Conv3d(channels, channels, 1) if project else nn.Identity() for _ in range(3)
        )
        self.bn = nn.BatchNorm3d(channels)
        small_weights(self)
        zero_norm(self.bn)

    def forward(self, x: Video) -> Video:
        q, k = self._tokens(x)
        v = self.g(x).flatten(2)
        with autocast_off(x):  # logits are sums over every position
            y = attend(q, k, v.to(q.dtype), scale=q.shape[2] ** -0.5, path="explicit")
        return x + self.bn(y.to(v.dtype).view(x.shape))

    def maps(self, x: Video) -> dict[str, GateMap]:
        """The mean weight that each channel gets from all: (N, C), with a sum of 1."""
        q, k = self._tokens(x)
        with autocast_off(x):
            weights = attention_weights(q, k, "softmax", q.shape[2] ** -0.5)
        return {"": GateMap("channel", weights.mean(dim=1), normalized=True)}

    def _tokens(self, x: Video) -> tuple[Tensor, Tensor]:
        """Queries and keys, (N, C, T·H·W), in float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return self.theta(x).flatten(2).to(wide), self.phi(x).flatten(2).to(wide)
