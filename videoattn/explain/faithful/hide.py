"""Hides cells of a clip, and scores what is left.

A map has a grid (T', H', W'), and a cell of it covers a box of the clip: frame f lies in the cell
f T' // T, and rows and columns likewise, as in `to_input`. Whole cells are hidden, never single
pixels, because the order of the pixels in a cell would come from an interpolation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from videoattn.errors import one_of
from videoattn.explain.post_hoc import FILLS, filled
from videoattn.types import Grid, Logits, Video

Masks = Bool[Tensor, "M n"]
"""For each of M copies of a clip, the hidden ones of the n cells, in the order T', H', W'."""


def softmax(logits: Logits) -> Tensor:
    return logits.softmax(1)


class Scores(NamedTuple):
    """The score y of a class, a logit, and its probability p, for each copy of a clip."""

    y: Float[Tensor, " M"]
    p: Float[Tensor, " M"]


def hide(
    video: Float[Tensor, "1 C T H W"], masks: Masks, grid: Grid, fill: str
) -> Float[Tensor, "M C T H W"]:
    """Returns copies (M, C, T, H, W) of a clip (1, C, T, H, W), each with its cells hidden.

    Args:
        fill: What a hidden cell shows: the clip's "mean" color, "zero", "blur", or "freeze", the
            last frame in which the cell is visible (else the first frame), which hides only motion.

    Raises:
        ValueError: If the fill is unknown, or the grid has more cells than the clip has positions.
    """
    one_of("fill", fill, FILLS)
    size = tuple(video.shape[2:])
    if any(cells > count for cells, count in zip(grid, size, strict=True)):
        raise ValueError(f"grid: got {grid} for a clip of {size}; need at most one cell a position")
    t, y, x = (
        torch.arange(count, device=video.device) * cells // count
        for cells, count in zip(grid, size, strict=True)
    )
    hidden = masks.to(video.device).view(-1, *grid)[:, t][:, :, y][:, :, :, x].unsqueeze(1)
    if fill != "freeze":
        return torch.where(hidden, filled(video, fill), video)
    frames = torch.arange(size[0], device=video.device).view(1, 1, -1, 1, 1)
    shown = torch.where(hidden, 0, frames).cummax(2).values
    copies = video.expand(len(masks), -1, -1, -1, -1)
    return copies.gather(2, shown.expand_as(copies))


@dataclass(frozen=True)
class Hider:
    """Scores a clip with some of its cells hidden.

    Args:
        model: A network in eval mode.
        video: One clip (1, C, T, H, W).
        grid: The grid of the cells.
        target: The class.
        fill: See `hide`.
        probabilities: Function from logits (M, K) to the probabilities of the classes.
        against: Another class. The score is then the difference of the two logits, and the
            probability that of the class among the two: why this class, and not that one?
        batch_size: Copies in a forward pass.
    """

    model: nn.Module
    video: Video
    grid: Grid
    target: int
    fill: str = "mean"
    probabilities: Callable[[Logits], Tensor] = softmax
    against: int | None = None
    batch_size: int = 32

    @property
    def num_cells(self) -> int:
        return prod(self.grid)

    @torch.no_grad()
    def __call__(self, masks: Masks) -> Scores:
        """Returns the scores of a copy of the clip for each mask."""
        found = []
        for part in masks.split(self.batch_size):
            logits = self.model(hide(self.video, part, self.grid, self.fill))
            y, p = logits[:, self.target], self.probabilities(logits)[:, self.target]
            if self.against is not None:
                y = y - logits[:, self.against]
                p = y.sigmoid()
            found.append(Scores(y.cpu(), p.cpu()))
        return Scores(torch.cat([s.y for s in found]), torch.cat([s.p for s in found]))
