"""SAGAN's self-attention (Zhang et al., ICML 2019, arXiv 1805.08318) over all positions of a clip.

    o_i = Σ_j softmax_j(f(x_i) · h(x_j)) v(x_j)        y_i = x_i + γ o_i,  γ = 0 at first

Two forms of it are public, and both are here:

|                 | "plain", the usual PyTorch one  | "authors", their TensorFlow code         |
| queries, keys   | C/8 channels                    | C/8 channels, keys max-pooled            |
| values          | C channels                      | C/2 channels, max-pooled, then C/2 -> C  |
| biases          | yes                             | no                                       |
| weights' start  | PyTorch's default               | Xavier                                   |
| spectral norm   | no                              | on every convolution; an option here     |

There is no logit scale in either. It is made for generating images; for videos positions run over
T·H·W, and the pooling is (1, 2, 2).
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as spectral

from videoattn.attention.common import check_choice, evaluating, grid_of, pairwise_map, pool_keys
from videoattn.attention.functional import (
    Grid,
    PairwiseAttention,
    Path,
    attend,
    attention_weights,
    from_tokens,
    to_tokens,
)
from videoattn.types import Video


class SelfAttention(nn.Module):
    """SAGAN's block: (N, C, T, H, W) -> the same shape.

    variant: "authors" or "plain", the columns of the table above.
    spectral_norm: divide each convolution's weight by its largest singular value, as the authors do
        to keep a GAN stable; a classifier does not need it.

    γ = 0 at first, so the block starts as the identity and in the first step only γ moves.
    """

    path: Path = "auto"
    """How `attend` computes the map; "explicit" builds all of it, for comparison."""

    def __init__(
        self, channels: int, *, variant: str = "authors", spectral_norm: bool = False
    ) -> None:
        super().__init__()
        check_choice("variant", variant, ("authors", "plain"))
        authors = variant == "authors"
        inner, width = max(channels // 8, 1), max(channels // 2, 1) if authors else channels
        self.key_pool = (1, 2, 2) if authors else None
        self.query = nn.Conv3d(channels, inner, 1, bias=not authors)
        self.key = nn.Conv3d(channels, inner, 1, bias=not authors)
        self.value = nn.Conv3d(channels, width, 1, bias=not authors)
        self.out = nn.Conv3d(width, channels, 1, bias=False) if authors else nn.Identity()
        self.gamma = nn.Parameter(torch.zeros(1))
        for module in self.children():
            if isinstance(module, nn.Conv3d):
                if authors:
                    nn.init.xavier_uniform_(module.weight)
                if spectral_norm:
                    spectral(module)

    def forward(self, x: Video) -> Video:
        q, k, v, _ = self.project(x)
        o = self.out(from_tokens(attend(q, k, v, path=self.path), grid_of(x)))
        return x + self.gamma * o

    def project(self, x: Video) -> tuple[Tensor, Tensor, Tensor, Grid]:
        """Queries (N, P, D), keys (N, P', D), values (N, P', E) and the keys' grid (T', H', W')."""
        k = pool_keys(self.key(x), self.key_pool)
        v = pool_keys(self.value(x), self.key_pool)
        return to_tokens(self.query(x)), to_tokens(k), to_tokens(v), grid_of(k)

    def maps(self, x: Video) -> dict[str, PairwiseAttention]:
        """The softmax's rows."""
        with evaluating(self):  # in training, a spectral norm takes a step whenever it is used
            q, k, _, key_grid = self.project(x)
        return {
            "": pairwise_map(
                lambda q, k: attention_weights(q, k, "softmax", 1.0), q, k, grid_of(x), key_grid
            )
        }
