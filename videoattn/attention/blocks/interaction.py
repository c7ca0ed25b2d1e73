"""Interaction-aware pyramid attention (Du et al., ECCV 2018, arXiv 1808.01106): a layer and a head.

    y_j = W_j X_jᵀ (+ b_j)          scores of the P positions, in D rows, from each level j
    a   = softmax(F(y_1, ..., y_J)) over the positions of all frames
    A   = a, each row divided by its Euclidean length
    M   = A X_J                     (D, C): D weighted sums of the last level's features

Earlier levels are down-sampled to the grid of the last one. The idea is principal component
analysis with positions as features and channels as samples. Two losses favor rows that keep much of
X and do not overlap (see pyramid.py); in training mode a forward pass stores them in `losses`.

The figure of the paper has one row per position, D = W·H, and reshapes M to the size of the
features, "preserve the unchanged size for being embedded in a general network". That is
`InteractionLayer`. `InteractionPyramid` replaces a network's classifier.

Where we differ. The paper's text was not available in full (the abstract, part of the introduction,
figure 1 and six equations were), and no public code is known. Our readings: the softmax is over
positions; levels are max-pooled and their scores added; the initialization is N(0, 0.01²); the
weights and the forms of the losses (pyramid.py). Ours: `pool_with="simplex"` (M = a X),
`center`, `residual`, and M / sqrt(P) in the layer and with `classify="rows"`, so that uniform rows
give the average. The paper seems to average one classification loss per frame: a TSN with
`scope="frame"`, or with the layer, classifies each frame, and the training loop can average the
losses of frames.

- A bias per row cancels in the softmax: with every fusion but "max" it has no effect and no
  gradient. A bias per position is a learned prior. Neither subtracts a mean, as principal component
  analysis does; `center="channel_mean"` subtracts it from X.
- Rows of length 1 sum to between 1 and sqrt(P): uniform scores give sqrt(P) times the average.
- With "simplex" the layer is attention with learned queries.
- The rows are positive, so they do not reach the principal components (see pyramid.py).
"""

from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.attention.blocks.pyramid import Level, PoolingOptions, PyramidPooling
from videoattn.attention.common import grid_of, mean_of_segments, small_weights
from videoattn.attention.maps import GateMap
from videoattn.errors import one_of
from videoattn.types import Video


class InteractionLayer(nn.Module):
    """A layer for any depth: forward(x, *sources) keeps the shape (N, C, T, H, W) of x.

    The pyramid has x as its last level. M has the grid `rows`. If x has a different grid, M is
    resized to it, and a grid of one frame is repeated for every frame.

    Args:
        source_channels: Channels of earlier layers, in order.
        levels: J, the number of levels: the last J - 1 sources (fewer if there are fewer), and x.
        rows: The grid of M, [height, width] or [frames, height, width]; D is its size. The paper's
            layer has the grid of x.
        residual: Return x + γ M / sqrt(P) with γ = 0 at first, so the layer starts as the identity.
            Otherwise it returns M / sqrt(P), the paper's layer up to a constant.
        pooling: Other options of `PyramidPooling`.

    Raises:
        ValueError: If an option is invalid, or `rows` is not a grid.
    """

    def __init__(
        self,
        channels: int,
        source_channels: Sequence[int] = (),
        *,
        levels: int = 3,
        residual: bool = True,
        **pooling: Unpack[PoolingOptions],
    ) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"levels: got {levels}; need at least 1")
        self.num_sources = min(levels - 1, len(source_channels))
        used = list(source_channels)[len(source_channels) - self.num_sources :]
        options: PoolingOptions = {"rows": (7, 7), **pooling}
        self.pyramid = PyramidPooling([*used, channels], **options)
        frames_of_rows = len(self.pyramid.grid or ()) - 2
        if frames_of_rows < 0 or (frames_of_rows and self.pyramid.scope == "frame"):
            raise ValueError(
                f"rows: got {pooling.get('rows')} with scope={self.pyramid.scope!r}; need the grid "
                "of a feature map, [height, width], or [frames, height, width] with scope='clip'"
            )
        self.gamma = nn.Parameter(torch.zeros(())) if residual else None

    def forward(self, x: Video, *sources: Level) -> Video:
        levels = self._levels(x, sources)
        m = self.pyramid.to_video(_averages(self.pyramid, levels))
        if m.shape != x.shape:
            m = F.interpolate(m, grid_of(x), mode="trilinear", align_corners=False)
        return m if self.gamma is None else x + (self.gamma * m).to(x.dtype)

    def maps(self, x: Video, *sources: Level) -> dict[str, GateMap]:
        """Returns the D fused rows as "" and the rows of each level alone as "0", "1", ..."""
        return _maps(self.pyramid, self._levels(x, sources))

    def _levels(self, x: Video, sources: Sequence[Level]) -> list[Level]:
        return [*sources[len(sources) - self.num_sources :], x]


class InteractionPyramid(nn.Module):
    """A head that classifies the D tokens of the pyramid.

    forward(pooled, *levels) returns logits: (N, K) for pooled features (N, C) of the backbone, or
    (N, S, K) for those of S segments (N, S, C), where S is 1 unless scope="frame".

    Args:
        level_channels: Channels of each level.
        classify: "rows", a linear layer for each row on M / sqrt(P), and the sum of their logits
            over sqrt(D); or "mean", one linear layer on the mean of M over its rows. These logits
            depend on a single weighting, the mean of the rows of A.
        residual: Add the result to that of `pooled` with a factor that starts at 0, so the head
            starts as a plain classifier. The last level must then have C channels. If False,
            `pooled` (and dropout on it) is not used.
        pooling: Options of `PyramidPooling`.

    Raises:
        ValueError: If `classify` is unknown, or `residual` is set and the last level does not have
            C channels.
    """

    def __init__(
        self,
        width: int,
        level_channels: Sequence[int],
        num_classes: int,
        *,
        classify: str = "rows",
        residual: bool = False,
        **pooling: Unpack[PoolingOptions],
    ) -> None:
        super().__init__()
        channels = level_channels[-1]
        if residual and channels != width:
            raise ValueError(
                f"residual=True: got {channels} channels in the last level; need {width}, as in "
                "the classifier; end with the last stage, or remove residual"
            )
        self.classify = one_of("classify", classify, ("rows", "mean"))
        self.pyramid = PyramidPooling(level_channels, **pooling)
        self.gamma = nn.Parameter(torch.zeros(())) if residual else None
        self.plain: nn.Linear | None = None
        if classify == "mean":
            self.linear = nn.Linear(channels, num_classes)
            small_weights(self.linear)
        else:
            self.linear = nn.Linear(self.pyramid.num_rows * channels, num_classes)
            if residual:
                self.plain = nn.Linear(width, num_classes)
                small_weights(self.plain)

    @property
    def ignores_pooled(self) -> bool:
        """Whether the network's own pooling and its dropout have no effect."""
        return self.gamma is None

    def forward(self, pooled: Tensor, *levels: Level) -> Tensor:
        own = mean_of_segments(pooled)
        if self.classify == "mean":
            feature = self.pyramid(*levels).mean(-2)
            logits = self.linear(self._added(own, feature))
        else:
            tokens = _averages(self.pyramid, levels) * self.pyramid.num_rows**-0.5
            logits = self.linear(tokens.flatten(-2))
            if self.plain is not None:
                logits = self._added(self.plain(own), logits)
        if pooled.ndim == 3:
            return logits if logits.ndim == 3 else logits.unsqueeze(1)
        return mean_of_segments(logits)

    def maps(self, pooled: Tensor, *levels: Level) -> dict[str, GateMap]:
        """Returns the D fused rows as "" and the rows of each level alone as "0", "1", ... Rows sum
        to 1. With "l2" the rows used are these times one factor per row."""
        return _maps(self.pyramid, levels)

    def _added(self, own: Tensor, x: Tensor) -> Tensor:
        if self.gamma is None:
            return x
        return (own.unsqueeze(1) if x.ndim == 3 else own) + (self.gamma * x).to(own.dtype)


def _averages(pyramid: PyramidPooling, levels: Sequence[Level]) -> Tensor:
    """Returns M, divided by sqrt(P) if A's rows have length 1, so that uniform rows average X."""
    tokens: Tensor = pyramid(*levels)
    if pyramid.pool_with == "simplex":
        return tokens
    frames, height, width = grid_of(levels[-1])
    return tokens * ((1 if pyramid.scope == "frame" else frames) * height * width) ** -0.5


def _maps(pyramid: PyramidPooling, levels: Sequence[Level]) -> dict[str, GateMap]:
    fused, every = pyramid.weightings(*levels)
    named = {"": fused, **{str(index): own for index, own in enumerate(every)}}
    return {key: GateMap("pooling", rows, normalized=True) for key, rows in named.items()}
