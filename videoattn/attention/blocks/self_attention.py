"""The self-attention of SAGAN (Zhang et al., ICML 2019, arXiv 1805.08318) over a clip's positions.

    o_i = Σ_j softmax_j(f(x_i) · h(x_j)) v(x_j)        y_i = x_i + γ o_i,  γ = 0 at first

|                 | "paper"            | "plain", a usual port | "authors", their TensorFlow code  |
| queries, keys   | C/8 channels       | C/8 channels          | C/8 channels, keys max-pooled     |
| values          | C/8, then C/8 -> C | C channels            | C/2, max-pooled, then C/2 -> C    |
| biases          | no                 | yes                   | no                                |
| initialization  | Xavier             | PyTorch's default     | Xavier                            |

"paper" is the text's formula. "authors", the default, is the code of the published numbers. None of
them scales the logits. An option adds spectral norm to every convolution, which stabilizes a GAN.
Where we differ: the paper generates images; for videos, positions run over T·H·W, and the pooling
is (1, 2, 2).
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as spectral

from videoattn.attention.blocks.non_local import PairwiseBlock
from videoattn.attention.common import evaluating, grid_of, pool_keys
from videoattn.attention.functional import to_tokens
from videoattn.attention.maps import PairwiseAttention
from videoattn.errors import one_of
from videoattn.types import Grid, Video


class SelfAttention(PairwiseBlock):
    """The self-attention block of SAGAN; keeps the shape (N, C, T, H, W).

    γ starts at 0, so the block starts as the identity, and the first step moves only γ.

    Args:
        variant: "authors", "paper" or "plain"; see the table above.
        spectral_norm: Divide the weight of each convolution by its largest singular value. The
            authors do so to stabilize a GAN; a classifier does not need it.

    Raises:
        ValueError: If `variant` is unknown.
    """

    def __init__(
        self, channels: int, *, variant: str = "authors", spectral_norm: bool = False
    ) -> None:
        super().__init__()
        divisors = {"authors": 2, "paper": 8, "plain": 1}
        width = max(channels // divisors[one_of("variant", variant, divisors)], 1)
        inner, plain = max(channels // 8, 1), variant == "plain"
        self.key_pool = (1, 2, 2) if variant == "authors" else None
        self.query = nn.Conv3d(channels, inner, 1, bias=plain)
        self.key = nn.Conv3d(channels, inner, 1, bias=plain)
        self.value = nn.Conv3d(channels, width, 1, bias=plain)
        self.out = nn.Identity() if plain else nn.Conv3d(width, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))
        for module in self.children():
            if isinstance(module, nn.Conv3d):
                if not plain:
                    nn.init.xavier_uniform_(module.weight)
                if spectral_norm:
                    spectral(module)

    def forward(self, x: Video) -> Video:
        return x + self.gamma * self.respond(x)

    def project(self, x: Video) -> tuple[Tensor, Tensor, Tensor, Grid]:
        k = pool_keys(self.key(x), self.key_pool)
        v = pool_keys(self.value(x), self.key_pool)
        return to_tokens(self.query(x)), to_tokens(k), to_tokens(v), grid_of(k)

    def maps(self, x: Video) -> dict[str, PairwiseAttention]:
        with evaluating(self):  # in training mode, each use of a spectral norm updates its state
            return super().maps(x)
