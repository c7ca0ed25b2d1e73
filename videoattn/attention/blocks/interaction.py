"""Interaction-aware spatio-temporal pyramid attention (Du et al., ECCV 2018, arXiv 1808.01106).

    y_j = W_j X_jᵀ (+ b_j)          scores of the P positions, in D rows, from each level j
    a   = softmax(F(y_1, ..., y_J)) over the positions of all frames
    A   = a, each row divided by its Euclidean length
    M   = A X_J                     (D, C): D weighted sums of the last level's features

Earlier levels are down-sampled to the last one's grid. The idea is that of principal components,
with positions as features and channels as samples: rows that keep much of X and do not overlap, for
which there are two losses (see interaction_loss.py); training-mode passes leave them in `losses`.

The paper's text was not available in full, and no public code is known. These are our readings: the
softmax is over positions; levels are max-pooled down and their scores added; the weights of the
losses (1e-2 each, on the normalized forms) and the init N(0, 0.01²). `pool_with="simplex"` (M = a
X), `residual` and the centring are ours. Know that

- a bias per row cancels in the softmax: with every fusion but "max" it does nothing at all, and its
  gradient is zero. A bias per position is a learned prior. Neither subtracts a mean, as the
  principal components' would; `center="channel_mean"` does, from X.
- rows of length 1 sum to between 1 and sqrt(P): uniform scores give sqrt(P) times the average.
- with "simplex" the layer is attention with learned queries, and evaluation runs it as such.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from videoattn.attention.blocks.pyramid import Level, PyramidPooling
from videoattn.attention.record import GateMap


class InteractionPyramid(nn.Module):
    """A head: forward(pooled, *levels) -> logits, (N, K), or (N, 1, K) where pooled is (N, S, C).

    The tokens' mean goes through a linear layer. `residual`: it is added to the backbone's own
    pooled feature by a factor that starts at 0, so that the head starts as a plain classifier;
    otherwise `pooled` (and the dropout on it) is not used.
    """

    def __init__(
        self, pyramid: PyramidPooling, width: int, num_classes: int, *, residual: bool = False
    ) -> None:
        super().__init__()
        last = pyramid.scores[-1]
        assert isinstance(last, nn.Linear)
        if residual and last.in_features != width:
            raise ValueError(
                f"residual=True adds features of the last level, {last.in_features} channels, to "
                f"the classifier's, {width}: make the last stage the last level, or leave it out"
            )
        self.pyramid = pyramid
        self.gamma = nn.Parameter(torch.zeros(())) if residual else None
        self.linear = nn.Linear(last.in_features, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Tensor, *levels: Level) -> Tensor:
        feature = self.pyramid(*levels).mean(1)
        if self.gamma is not None:
            own = pooled.mean(1) if pooled.ndim == 3 else pooled
            feature = own + (self.gamma * feature).to(own.dtype)
        logits: Tensor = self.linear(feature)
        return logits.unsqueeze(1) if pooled.ndim == 3 else logits

    def maps(self, pooled: Tensor, *levels: Level) -> dict[str, GateMap]:
        """ "": the D fused rows; "0", "1", ...: what each level alone would give. They sum to 1;
        with "l2" the weights used are these times a factor for each row."""
        return _maps(self.pyramid, levels)


def interaction_pyramid(
    width: int,
    level_channels: Sequence[int],
    num_classes: int,
    *,
    rows: int | Sequence[int] = 8,
    fusion: str = "sum",
    down_sampling: str = "max",
    bias: str = "none",
    center: str = "none",
    pool_with: str = "l2",
    loss: str = "normalized",
    residual: bool = False,
) -> InteractionPyramid:
    """The head by its recipe's options: those of `PyramidPooling`, and `residual`."""
    pyramid = PyramidPooling(
        level_channels, rows=rows, fusion=fusion, down_sampling=down_sampling, bias=bias,
        center=center, pool_with=pool_with, loss=loss,
    )  # fmt: skip
    return InteractionPyramid(pyramid, width, num_classes, residual=residual)


def _maps(pyramid: PyramidPooling, levels: Sequence[Level]) -> dict[str, GateMap]:
    fused, every = pyramid.weightings(*levels)
    named = {"": fused, **{str(index): own for index, own in enumerate(every)}}
    return {key: GateMap("pooling", weights, normalized=True) for key, weights in named.items()}
