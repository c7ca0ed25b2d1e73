"""The cross-layer non-local block (Ye et al., ICIP 2020, arXiv 2005.09153).

Positions of a deep layer attend to those of shallower layers r = 1 .. n:

    q = θ(x),  k_r = φ_r(x_r),  v_r = g_r(x_r)
    per_layer:   out = x + Σ_r BN_r(W_z softmax(q k_rᵀ s) v_r)
    joint:       out = x + BN(W_z softmax(q [k_1 .. k_n]ᵀ s) [v_1; ..; v_n])

All layers share θ and W_z. "per_layer" is the authors' code, which produced the published numbers.
"joint" is what their figure shows: one softmax over the positions of all layers, which therefore
compete. s = 1/sqrt(inner channels).

Where we differ: the authors' code reshapes the (positions, channels) product to (channels,
positions) without transposing it, which mixes the two; we transpose. The paper is about images; for
a video, positions run over T·H·W, and T, H and W may differ between layers.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from videoattn.attention.common import grid_of, one_head, small_weights, zero_norm
from videoattn.attention.functional import Path, attend, attention_weights, from_tokens, to_tokens
from videoattn.attention.maps import PairwiseAttention
from videoattn.errors import one_of
from videoattn.types import Video

Source = Float[Tensor, "N _ _ _ _"]
"""A `Video` whose C, T, H and W may differ from those of x."""


class CrossLayerNonLocal(nn.Module):
    """A block that attends from x to other layers: forward(x, *sources) keeps the shape of x.

    x is (N, C, T, H, W), with one source (N, C_r, T_r, H_r, W_r) for each of `source_channels`.
    The norms start at zero, so the block starts as the identity.

    Args:
        source_channels: C_r of each source.
        mode: "per_layer" or "joint".
        inner_channels: Width of queries, keys and values. Default: C / 8.
        scale: Multiply logits by 1/sqrt(inner_channels).

    Raises:
        ValueError: If `mode` is unknown or `source_channels` is empty; on forward, if the number of
            sources is wrong.
    """

    path: Path = "auto"  # how `attend` computes the map; "explicit" builds all of it

    def __init__(
        self,
        channels: int,
        source_channels: Sequence[int],
        *,
        mode: str = "per_layer",
        inner_channels: int | None = None,
        scale: bool = True,
    ) -> None:
        super().__init__()
        one_of("mode", mode, ("per_layer", "joint"))
        if not source_channels:
            raise ValueError("source_channels is empty; name one or more layers to attend to")
        inner = inner_channels or max(channels // 8, 1)
        self.mode = mode
        self.logit_scale = inner**-0.5 if scale else 1.0
        self.theta = nn.Conv3d(channels, inner, 1, bias=False)
        self.phi = nn.ModuleList(nn.Conv3d(c, inner, 1, bias=False) for c in source_channels)
        self.g = nn.ModuleList(nn.Conv3d(c, inner, 1, bias=False) for c in source_channels)
        self.out = nn.Conv3d(inner, channels, 1, bias=False)
        num_norms = 1 if mode == "joint" else len(source_channels)
        self.bn = nn.ModuleList(nn.BatchNorm3d(channels) for _ in range(num_norms))
        small_weights(self)
        for norm in self.bn:
            zero_norm(norm)

    def forward(self, x: Video, *sources: Source) -> Video:
        q, keys, values = self.project(x, *sources)
        if self.mode == "joint":
            keys, values = [torch.cat(keys, dim=1)], [torch.cat(values, dim=1)]
        out = x
        for k, v, bn in zip(keys, values, self.bn, strict=True):
            out = out + bn(self.out(from_tokens(self.attend(q, k, v), grid_of(x))))
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns `softmax(q kᵀ s) v`, the input of `out`, as tokens (N, P, E)."""
        return attend(q, k, v, scale=self.logit_scale, path=self.path)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Returns `softmax(q kᵀ s)`, (N, Q, P), for queries (N, Q, D) and keys (N, P, D)."""
        return attention_weights(q, k, "softmax", self.logit_scale)

    def project(self, x: Video, *sources: Source) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Returns queries (N, P, D), and the keys and values (N, P_r, D) of each source."""
        if len(sources) != len(self.phi):
            raise ValueError(f"sources: got {len(sources)}; this block needs {len(self.phi)}")
        keys = [to_tokens(phi(s)) for phi, s in zip(self.phi, sources, strict=True)]
        values = [to_tokens(g(s)) for g, s in zip(self.g, sources, strict=True)]
        return to_tokens(self.theta(x)), keys, values

    def maps(self, x: Video, *sources: Source) -> dict[str, PairwiseAttention]:
        """Returns one map for each source: "source0", "source1", ... Rows sum to 1 with
        mode="per_layer". With mode="joint", a row sums to 1 over all sources."""
        q, keys, _ = self.project(x, *sources)
        per_layer, sizes, found = self.mode == "per_layer", [k.shape[1] for k in keys], {}
        joint = one_head(q, torch.cat(keys, dim=1), "softmax", self.logit_scale)
        for index, (k, source) in enumerate(zip(keys, sources, strict=True)):

            def share(positions: Tensor, index: int = index) -> Tensor:
                return joint.rows(positions).split(sizes, dim=-1)[index]

            own = one_head(q, k, "softmax", self.logit_scale) if per_layer else None
            found[f"source{index}"] = PairwiseAttention(
                grid_of(x),
                grid_of(source),
                normalized=per_layer or len(sources) == 1,
                weigh=share if own is None else own.rows,
                factors=own,
            )
        return found
