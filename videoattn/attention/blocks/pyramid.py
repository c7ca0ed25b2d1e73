"""Pools the last of several levels to D weighted sums over its positions, and computes the losses
of interaction-aware attention (Du et al., ECCV 2018, arXiv 1808.01106). See also interaction.py.

For one clip with pooled features X (P, C) and rows A (D, P), each of Euclidean length 1:

    interaction = -||A X||² + Σ_{m≠k} (A Aᵀ)²_mk                                          (Eq. 6)
    diversity   = sqrt(Σ_jmk (1 - (a_mk - softmax(y_j)_mk)²))     a: the fused softmax, j: levels

The first loss favors rows that keep much of X and do not overlap. Over free rows of length 1,
principal components minimize it once X has a bounded norm (positions are features, channels are
samples). The rows of a layer are softmaxes: they are positive, overlap, and do not reach the
principal subspace. In the tests' example the smallest cosine between their span and that subspace
stays below 0.5, where free rows with the same loss reach 0.99999. This limits the paper's design,
not this code. The second loss penalizes fused rows that resemble the rows of a level.

| form       | interaction                        | diversity                                      |
| balanced   | on X / |X|, without a gradient for | the mean of 2 a·s / (|a|² + |s|²) over rows    |
|            | X, divided by D(D - 1)             | and levels, s = softmax(y_j); 0 to 1           |
| normalized | on X / |X|, without a gradient     | the root of the mean, 0 to 1                   |
| scaled     | on X / |X|, with a gradient        | the root of the mean                           |
| literal    | the paper's                        | the paper's                                    |

Where we differ. With the features X themselves and weight 1, the first loss collapses: D rows equal
to the first principal component cost `-D l_1 + D(D - 1)`, which is less than D components cost if
`D l_1 - Σ_{k≤D} l_k > D(D - 1)` (l: the eigenvalues of X Xᵀ). Activations usually satisfy this. The
loss is also unbounded below as X grows. With X / |X| the collapse costs more than the components
for every X.

"balanced", the default, is ours. Divided by the number of pairs, the first loss has the minimizers
of the normalized form. Its gradient keeps its size relative to that of a classifier of all rows;
the sum over pairs grows with D (for D = 49 to thousands of times cross-entropy's gradient). The
second loss of the paper is constant up to a fraction of about 1/P, so its gradient is close to
zero. Since |a - s|² <= |a|² + |s|² for rows that are not negative, 1 - δ² with δ² divided by that
bound, summed over positions, is 2 a·s / (|a|² + |s|²): 1 for equal rows, 0 for rows without a
common position, for any P. At the start of training, with random features, both gradients keep
their ratio to cross-entropy's within a fifth for 4 to 49 rows, 49 to 392 positions and 64 to 512
channels (tests/attention/test_interaction_loss.py).
"""

import math
from collections.abc import Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from videoattn.attention.common import HeldLosses, grid_of, small_weights
from videoattn.attention.functional import autocast_off, from_tokens, to_tokens, widen
from videoattn.errors import one_of
from videoattn.types import Video

FORMS = ("balanced", "normalized", "scaled", "literal")

Level = Float[Tensor, "N _ _ _ _"]
"""A `Video` with its own number of channels and its own grid."""
Rows = Float[Tensor, "N D P"]


class PoolingOptions(TypedDict, total=False):
    """The optional arguments of `PyramidPooling`."""

    rows: int | Sequence[int]
    scope: str
    fusion: str
    down_sampling: str
    bias: str
    center: str
    pool_with: str
    loss: str


class PyramidPooling(nn.Module):
    """Pools levels (N, C_j, T_j, H_j, W_j) to the tokens M (N, D, C_J) of the last level.

    Args:
        level_channels: C_j of each level.
        rows: D; or a grid, [height, width] or [frames, height, width], for D = its size. With a
            grid, `to_video` returns M as a feature map.
        scope: "clip": a row is a softmax over positions of all frames (the paper's aggregation over
            time). "frame": over positions of one frame, and each frame has its own M.
        fusion: Combines the scores of all levels by their "sum", "mean" or "max", or by a "learned"
            convex combination.
        down_sampling: "max" or "avg" pooling of earlier levels to the grid of the last one.
        bias: "none"; "row", one value per row; or "position", one per position, which needs the
            grid of the last level as `rows` ([height, width]: the same values in every frame).
        center: "channel_mean" subtracts from each position of X its mean over the channels.
        pool_with: "l2", rows of length 1 (the paper), or "simplex", rows that sum to 1.
        loss: "balanced", "normalized", "scaled" or "literal"; see above.

    Raises:
        ValueError: If a name is unknown, `rows` is not a number or grid, or a position bias has no
            grid; on forward, if the grid of a position bias differs from that of the features.
    """

    def __init__(
        self,
        level_channels: Sequence[int],
        *,
        rows: int | Sequence[int] = 8,
        scope: str = "clip",
        fusion: str = "sum",
        down_sampling: str = "max",
        bias: str = "none",
        center: str = "none",
        pool_with: str = "l2",
        loss: str = "balanced",
    ) -> None:
        super().__init__()
        self.scope = one_of("scope", scope, ("clip", "frame"))
        self.fusion = one_of("fusion", fusion, ("sum", "mean", "max", "learned"))
        self.down_sampling = one_of("down_sampling", down_sampling, ("max", "avg"))
        one_of("bias", bias, ("none", "row", "position"))
        self.center = one_of("center", center, ("none", "channel_mean"))
        self.pool_with = one_of("pool_with", pool_with, ("l2", "simplex"))
        self.loss = one_of("loss", loss, FORMS)
        self.num_rows, self.grid = _count_rows(rows)
        self.scores = nn.ModuleList(
            nn.Linear(channels, self.num_rows, bias=bias == "row") for channels in level_channels
        )
        self.position: nn.Parameter | None = None
        if bias == "position":
            if self.grid is None:
                raise ValueError(
                    f"bias='position' needs a value for each position of a grid, got rows={rows}; "
                    "give the grid of the last level, such as rows=[7, 7]"
                )
            self.position = nn.Parameter(torch.zeros(len(level_channels), *self.grid))
        if fusion == "learned":
            self.mixture = nn.Parameter(torch.zeros(len(level_channels)))
        # Not zero: equal rows would get equal gradients and stay equal.
        small_weights(self.scores)
        self.losses = HeldLosses()

    def forward(self, *levels: Level) -> Float[Tensor, "N *T D C"]:
        """Returns M, (N, D, C), or (N, T, D, C) with scope="frame"."""
        tokens = self._pool(*self._reduce(levels)).to(levels[-1].dtype)
        return tokens.unflatten(0, (len(levels[-1]), -1)) if self.scope == "frame" else tokens

    def _pool(self, reduced: Sequence[Level], values: Tensor) -> Float[Tensor, "N D C"]:
        with autocast_off(values):  # scores are exponentiated and rows are squared
            scores = self.level_scores(reduced)
            fused = self.fuse(scores)
            a, rows = fused.softmax(-1), unit_rows(fused)
            if self.training:
                own = [y.softmax(-1) for y in scores]
                self.losses["interaction"] = interaction_loss(rows, values, self.loss).mean()
                self.losses["diversity"] = diversity_loss(a, own, self.loss).mean()
            return (a if self.pool_with == "simplex" else rows) @ values

    def weightings(self, *levels: Level) -> tuple[Video, list[Video]]:
        """Returns the fused softmax rows and those of each level, all (N, D, T, H, W). A row sums
        to 1 over its positions. With scope="frame" it is divided by T."""
        reduced, values = self._reduce(levels)
        grid = grid_of(levels[-1])
        with autocast_off(values):
            scores = self.level_scores(reduced)
            fused, *every = (y.softmax(-1) for y in (self.fuse(scores), *scores))
        if self.scope == "frame":  # (N·T, D, H·W) -> (N, D, T·H·W)
            fused, *every = (
                (a / grid[0]).unflatten(0, (-1, grid[0])).transpose(1, 2).flatten(2)
                for a in (fused, *every)
            )
        return fused.unflatten(2, grid), [a.unflatten(2, grid) for a in every]

    def to_video(self, tokens: Float[Tensor, "N *T D C"]) -> Video:
        """Returns M as a feature map on the grid `rows`. A grid of 2 axes gives one frame, or T
        frames with scope="frame"."""
        assert self.grid is not None, "rows is a number, so M has no grid"
        frames, height, width = (1, *self.grid)[-3:]
        if tokens.ndim == 4:
            frames, tokens = tokens.shape[1], tokens.flatten(1, 2)
        return from_tokens(tokens, (frames, height, width))

    def level_scores(self, reduced: Sequence[Level]) -> list[Rows]:
        """Returns y_j of each level, (N, D, P)."""
        found = []
        for index, (x, linear) in enumerate(zip(reduced, self.scores, strict=True)):
            assert isinstance(linear, nn.Linear)
            bias = None if linear.bias is None else linear.bias.to(x.dtype)
            y = F.linear(to_tokens(x), linear.weight.to(x.dtype), bias).transpose(1, 2)
            if self.position is not None:
                y = y + self._prior(self.position[index], x).to(x.dtype)
            found.append(y)
        return found

    def fuse(self, scores: Sequence[Rows]) -> Rows:
        stacked = torch.stack(list(scores))
        if self.fusion == "max":
            return stacked.amax(0)
        shares: Tensor | float = 1 / len(stacked) if self.fusion == "mean" else 1.0
        if self.fusion == "learned":
            shares = self.mixture.to(stacked.dtype).softmax(0).view(-1, 1, 1, 1)
        return (shares * stacked).sum(0)

    def _prior(self, position: Tensor, x: Level) -> Tensor:
        grid = grid_of(x)
        if grid[-position.ndim :] != position.shape:
            raise ValueError(
                f"bias='position' has rows={list(position.shape)}, but the features of the last "
                f"level are {list(grid)} (frames, height, width); change rows or bias"
            )
        return position.expand(grid).flatten()

    def _reduce(self, levels: Sequence[Level]) -> tuple[list[Tensor], Tensor]:
        """Returns all levels, pooled to the grid of the last one, and X (N, P, C), in float32 or
        wider. With scope="frame", N counts frames."""
        dtype, grid = widen(levels[-1]).dtype, grid_of(levels[-1])
        pool = F.adaptive_max_pool3d if self.down_sampling == "max" else F.adaptive_avg_pool3d
        reduced = [
            self._frames((x if grid_of(x) == grid else pool(x, grid)).to(dtype)) for x in levels
        ]
        values = to_tokens(reduced[-1])
        if self.center == "channel_mean":
            values = values - values.mean(2, keepdim=True)
        return reduced, values

    def _frames(self, x: Level) -> Tensor:
        """Makes each frame a separate clip if scope="frame"."""
        return x.transpose(1, 2).flatten(0, 1).unsqueeze(2) if self.scope == "frame" else x


def _count_rows(rows: int | Sequence[int]) -> tuple[int, tuple[int, ...] | None]:
    """Returns D, and the grid if there is one."""
    sizes = [rows] if isinstance(rows, int) else list(rows)
    if min(sizes, default=0) < 1 or (not isinstance(rows, int) and len(sizes) not in (2, 3)):
        raise ValueError(
            f"rows: got {rows}; need a number of 1 or more, or a grid [height, width] or [frames, "
            "height, width]"
        )
    return math.prod(sizes), None if isinstance(rows, int) else tuple(sizes)


def unit_rows(scores: Rows) -> Rows:
    """Returns `softmax(y) / ||softmax(y)||₂` over positions.

    Using the log of the norm avoids the square of a tiny weight, which would underflow.
    """
    return (scores - 0.5 * torch.logsumexp(2 * scores, dim=-1, keepdim=True)).exp()


def interaction_loss(
    rows: Rows, x: Float[Tensor, "N P C"], form: str = "balanced"
) -> Float[Tensor, " N"]:
    """Returns the first loss of each clip, in [-D l_1, D(D - 1)] for rows of length 1 (l_1: see
    above). "balanced" divides it by D(D - 1), or by 1 if D = 1."""
    if form in ("balanced", "normalized"):
        x = x.detach()
    if form != "literal":
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        x = x / norm.clamp_min(torch.finfo(x.dtype).tiny)  # zero features stay zero
    kept = (rows @ x).square().sum((1, 2))
    overlaps = (rows @ rows.transpose(1, 2)).tril(-1)  # symmetric: each pair once
    loss = 2 * overlaps.square().sum((1, 2)) - kept
    count = rows.shape[1]
    return loss / max(count * (count - 1), 1) if form == "balanced" else loss


def diversity_loss(
    fused: Rows, levels: Sequence[Rows], form: str = "balanced"
) -> Float[Tensor, " N"]:
    """Returns the second loss of each clip, from softmax rows. The literal form lies in
    [sqrt(J D (P - 2)), sqrt(J D P)] for J levels, the others in [0, 1]."""
    own = torch.stack(list(levels), 1)  # (N, J, D, P)
    fused = fused.unsqueeze(1)
    if form == "balanced":
        squares = fused.square().sum(-1) + own.square().sum(-1)
        return (2 * (fused * own).sum(-1) / squares).mean((1, 2))
    rest, axes = 1 - (fused - own).square(), (1, 2, 3)
    total = rest.sum(axes) if form == "literal" else rest.mean(axes)
    if fused.shape[-1] <= 2:  # the sum can reach 0, and sqrt has no gradient there
        total = total + torch.finfo(total.dtype).eps
    return total.sqrt()
