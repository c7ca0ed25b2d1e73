"""The pooling inside interaction-aware attention: few rows of weights over all positions of a
pyramid's last level, from scores of every level. See interaction.py for the formula.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from videoattn.attention.blocks.interaction_loss import (
    FORMS,
    Rows,
    diversity_loss,
    interaction_loss,
    unit_rows,
)
from videoattn.attention.common import grid_of
from videoattn.attention.functional import Grid, attend, autocast_off, from_tokens, to_tokens
from videoattn.attention.losses import HeldLosses
from videoattn.errors import one_of
from videoattn.types import Video

FUSIONS = ("sum", "mean", "max", "learned")
DOWN_SAMPLINGS = ("max", "avg")
BIASES = ("none", "row", "position")
CENTERS = ("none", "channel_mean")
POOLS = ("l2", "simplex")

Level = Float[Tensor, "N _ _ _ _"]
"""A `Video` among others, of its own channels and grid."""


class PyramidPooling(nn.Module):
    """Levels (N, C_j, T_j, H_j, W_j), the last one the reference -> M as tokens (N, D, C_J).

    rows: D; or a grid, [height, width] or [frames, height, width], for a row per position of it:
        M is then that feature map (`to_video`). [7, 7] over a clip's 7x7 features aggregates time.
    fusion: "sum", "mean" or "max" of the levels' scores, or a "learned" convex combination.
    down_sampling: "max" or "avg" pooling of earlier levels to the reference's grid.
    bias: "none"; "row", one for each row; "position", one for each position, which needs the
        reference's grid in `rows` ([height, width]: the same in every frame).
    center: "channel_mean" subtracts from each position of X its mean over the channels.
    pool_with: "l2", rows of length 1 (the paper), or "simplex", rows that sum to 1.
    loss: "normalized" (see interaction_loss.py), "scaled" or "literal".

    Raises:
        ValueError: an unknown choice; rows that are no number or grid; a position bias without a
            grid, or for another grid than the features have.
    """

    def __init__(
        self,
        level_channels: Sequence[int],
        *,
        rows: int | Sequence[int] = 8,
        fusion: str = "sum",
        down_sampling: str = "max",
        bias: str = "none",
        center: str = "none",
        pool_with: str = "l2",
        loss: str = "normalized",
    ) -> None:
        super().__init__()
        one_of("fusion", fusion, FUSIONS)
        one_of("down_sampling", down_sampling, DOWN_SAMPLINGS)
        one_of("bias", bias, BIASES)
        one_of("center", center, CENTERS)
        one_of("pool_with", pool_with, POOLS)
        one_of("loss", loss, FORMS)
        self.grid = _grid_of_rows(rows)
        if bias == "position" and self.grid is None:
            raise ValueError(
                f"bias='position' has a value for each position of a grid, but rows={rows} is only "
                "a number; give the grid of the last level, as in rows=[7, 7]"
            )
        num_rows = math.prod(self.grid) if self.grid else rows
        assert isinstance(num_rows, int)
        self.fusion, self.down_sampling, self.loss = fusion, down_sampling, loss
        self.center, self.pool_with = center, pool_with
        self.scores = nn.ModuleList(
            nn.Linear(channels, num_rows, bias=bias == "row") for channels in level_channels
        )
        self.position: nn.Parameter | None = None
        if bias == "position" and self.grid is not None:
            self.position = nn.Parameter(torch.zeros(len(level_channels), *self.grid))
        if fusion == "learned":
            self.mixture = nn.Parameter(torch.zeros(len(level_channels)))
        # Rows that start equal get equal gradients and stay equal: never zero.
        for linear in self.scores:
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=0.01)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.losses = HeldLosses()

    def forward(self, *levels: Level) -> Float[Tensor, "N D C"]:
        reduced, values = self._reduce(levels)
        with autocast_off(values):  # scores go into exponentials, rows into squares
            if not self.training and self._is_attention:
                return self._attend(reduced, values).to(levels[-1].dtype)
            scores = self.level_scores(reduced)
            fused = self.fuse(scores)
            a, rows = fused.softmax(-1), unit_rows(fused)
            if self.training:
                self._hold_losses(a, rows, scores, values)
            pooled = (a if self.pool_with == "simplex" else rows) @ values
        return pooled.to(levels[-1].dtype)

    def _hold_losses(self, a: Rows, rows: Rows, scores: Sequence[Rows], values: Tensor) -> None:
        own = [y.softmax(-1) for y in scores]
        self.losses["interaction"] = interaction_loss(rows, values, self.loss).mean()
        self.losses["diversity"] = diversity_loss(a, own, self.loss).mean()

    def weightings(self, *levels: Level) -> tuple[Video, list[Video]]:
        """The fused softmax rows and each level's own, (N, D, T, H, W) on the reference's grid."""
        reduced, values = self._reduce(levels)
        with autocast_off(values):
            scores = self.level_scores(reduced)
            every = [y.softmax(-1).unflatten(2, grid_of(levels[-1])) for y in scores]
            return self.fuse(scores).softmax(-1).unflatten(2, grid_of(levels[-1])), every

    def to_video(self, tokens: Float[Tensor, "N D C"]) -> Video:
        """M as a feature map of the grid in `rows`; one frame where that has only two axes."""
        assert self.grid is not None, "rows is a number: there is no grid to lay M out on"
        frames, height, width = (1, *self.grid)[-3:]
        return from_tokens(tokens, (frames, height, width))

    def level_scores(self, reduced: Sequence[Level]) -> list[Rows]:
        """y_j of each level, (N, D, P)."""
        found = []
        for index, (x, linear) in enumerate(zip(reduced, self.scores, strict=True)):
            assert isinstance(linear, nn.Linear)
            bias = None if linear.bias is None else linear.bias.to(x.dtype)
            y = F.linear(to_tokens(x), linear.weight.to(x.dtype), bias).transpose(1, 2)
            if self.position is not None:
                prior = self.position[index].expand(self.checked(grid_of(x)))
                y = y + prior.flatten().to(x.dtype)
            found.append(y)
        return found

    def fuse(self, scores: Sequence[Rows]) -> Rows:
        stacked = torch.stack(list(scores))
        if self.fusion == "max":
            return stacked.amax(0)
        return (self._shares(stacked).view(-1, 1, 1, 1) * stacked).sum(0)

    def _shares(self, like: Tensor) -> Float[Tensor, " J"]:
        """The factor of each level in the fusions that are linear."""
        if self.fusion == "learned":
            return self.mixture.to(like.dtype).softmax(0)
        count = len(self.scores)
        return like.new_full((count,), 1 / count if self.fusion == "mean" else 1.0)

    def _reduce(self, levels: Sequence[Level]) -> tuple[list[Level], Float[Tensor, "N P C"]]:
        """Every level on the reference's grid, and X, all in float32 or wider."""
        wide = torch.promote_types(levels[-1].dtype, torch.float32)
        grid = grid_of(levels[-1])
        pool = F.adaptive_max_pool3d if self.down_sampling == "max" else F.adaptive_avg_pool3d
        reduced = [(x if grid_of(x) == grid else pool(x, grid)).to(wide) for x in levels]
        values = to_tokens(reduced[-1])
        if self.center == "channel_mean":
            values = values - values.mean(2, keepdim=True)
        return reduced, values

    @property
    def _is_attention(self) -> bool:
        """Whether M is softmax(q kᵀ) v with learned q. A bias per row cancels."""
        return self.pool_with == "simplex" and self.fusion != "max" and self.position is None

    def _attend(self, reduced: Sequence[Level], values: Tensor) -> Float[Tensor, "N D C"]:
        """A sum over levels is one product with their channels side by side."""
        keys = to_tokens(torch.cat(list(reduced), 1))
        weights = [linear.weight.to(keys.dtype) for linear in self.scores]
        shares = self._shares(keys)
        query = torch.cat(
            [share * weight for share, weight in zip(shares, weights, strict=True)], 1
        )
        return attend(query.expand(keys.shape[0], -1, -1), keys, values)

    def checked(self, grid: Grid) -> Grid:
        assert self.grid is not None
        if grid[-len(self.grid) :] != self.grid:
            raise ValueError(
                f"bias='position' was made for a grid of rows={list(self.grid)}, the last level's "
                f"features are {list(grid)} (frames, height, width); change rows, or bias"
            )
        return grid


def _grid_of_rows(rows: int | Sequence[int]) -> tuple[int, ...] | None:
    sizes = [rows] if isinstance(rows, int) else list(rows)
    if min(sizes, default=0) < 1 or (not isinstance(rows, int) and len(sizes) not in (2, 3)):
        raise ValueError(
            f"rows: got {rows}; need a number of 1 or more, or a grid [height, width] or [frames, "
            "height, width]"
        )
    return None if isinstance(rows, int) else tuple(sizes)
