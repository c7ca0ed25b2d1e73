"""A head with interaction-aware pyramid attention (Du et al., ECCV 2018, arXiv 1808.01106).

    y_j = W_j X_jᵀ (+ b_j)          scores of the P positions, in D rows, from each level j
    a   = softmax(F(y_1, ..., y_J)) over the positions of all frames
    A   = a, each row divided by its Euclidean length
    M   = A X_J                     (D, C): D weighted sums of the last level's features

Earlier levels are down-sampled to the grid of the last one. The idea is principal component
analysis with positions as features and channels as samples. Two losses favor rows that keep much of
X and do not overlap (see interaction_loss.py); in training mode a forward pass stores them in
`losses`.

Where we differ. The paper's text was not available in full, and no public code is known. Our
readings: the softmax is over positions; levels are max-pooled and their scores added; the losses
have weight 1e-2 each, in the normalized forms; the initialization is N(0, 0.01²); D = 8 (the figure
has one row per position, and reshapes M to a feature map). As a head, the layer replaces the
classifier, and the mean of the D tokens is classified with one cross-entropy per clip; the paper
appears to average one per frame. `pool_with="simplex"` (M = a X), `residual` and `center` are ours.

- A bias per row cancels in the softmax: with every fusion but "max" it has no effect and no
  gradient. A bias per position is a learned prior. Neither subtracts a mean, as principal component
  analysis does; `center="channel_mean"` subtracts it from X.
- Rows of length 1 sum to between 1 and sqrt(P): uniform scores give sqrt(P) times the average.
- With "simplex" the layer is attention with learned queries, and evaluation computes it as such.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from videoattn.attention.blocks.pyramid import Level, PoolingOptions, PyramidPooling
from videoattn.attention.common import mean_of_segments, small_weights
from videoattn.attention.maps import GateMap


class InteractionPyramid(nn.Module):
    """A head that classifies the mean of the pyramid's tokens by a linear layer.

    forward(pooled, *levels) returns logits: (N, K) for pooled features (N, C) of the backbone, or
    (N, 1, K) for those of S segments (N, S, C).

    Args:
        level_channels: Channels of each level.
        residual: Add the mean token to `pooled` with a factor that starts at 0, so the head starts
            as a plain classifier. Otherwise `pooled` (and dropout on it) is not used.
        pooling: Options of `PyramidPooling`.

    Raises:
        ValueError: If `residual` is set and the last level does not have C channels.
    """

    def __init__(
        self,
        width: int,
        level_channels: Sequence[int],
        num_classes: int,
        *,
        residual: bool = False,
        **pooling: Unpack[PoolingOptions],
    ) -> None:
        super().__init__()
        if residual and level_channels[-1] != width:
            raise ValueError(
                f"residual=True: got {level_channels[-1]} channels in the last level; need "
                f"{width}, as in the classifier; end with the last stage, or remove residual"
            )
        self.pyramid = PyramidPooling(level_channels, **pooling)
        self.gamma = nn.Parameter(torch.zeros(())) if residual else None
        self.linear = nn.Linear(level_channels[-1], num_classes)
        small_weights(self.linear)

    def forward(self, pooled: Tensor, *levels: Level) -> Tensor:
        feature = self.pyramid(*levels).mean(1)
        if self.gamma is not None:
            own = mean_of_segments(pooled)
            feature = own + (self.gamma * feature).to(own.dtype)
        logits: Tensor = self.linear(feature)
        return logits.unsqueeze(1) if pooled.ndim == 3 else logits

    def maps(self, pooled: Tensor, *levels: Level) -> dict[str, GateMap]:
        """Returns the D fused rows as "" and the rows of each level alone as "0", "1", ...

        Rows sum to 1. With "l2" the rows used are these times one factor per row.
        """
        fused, every = self.pyramid.weightings(*levels)
        named = {"": fused, **{str(index): own for index, own in enumerate(every)}}
        return {key: GateMap("pooling", rows, normalized=True) for key, rows in named.items()}
