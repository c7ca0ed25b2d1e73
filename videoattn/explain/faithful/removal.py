"""Hides cells of a clip in the order of a map, and scores what is left.

A map has a grid (T', H', W'), and a cell of it covers a box of the clip: frame f lies in the cell
f T' // T, and rows and columns likewise, as in `to_input`. Whole cells are hidden, never single
pixels, because the order of the pixels in a cell would come from an interpolation.

x_k is the clip with the first k of n cells hidden, where cells are ordered by decreasing value, p
the probability of the class and y its logit.

| score         | definition                                                           | better |
| deletion      | area under p(x_k) over k / n                                         | low    |
| insertion     | the same, for the empty clip with the first k cells revealed         | high   |
| gap           | insertion - deletion                                                 | high   |
| relative      | (area of random orders - area) / (p(x) - p(empty)), of deletion      | high   |
| drop          | p(x) - p with a tenth of the cells hidden, minus that of random      | high   |
| sign          | share of groups whose removal moves y as the sign of their mean says | high   |
| SaCo          | agreement of the map with the effects of groups (arXiv 2404.01415)   | high   |
| time          | area under p when whole frames freeze, in the order of their means   | low    |

Groups are ten groups of (nearly) equal size, in the order of the map, each removed alone. SaCo
compares pairs of groups: with the mean s_i of the map in group i and its effect d_i on y per cell,
w_ij = |s_i - s_j|, negative if the order of s and d disagrees, SaCo = sum w / sum |w|. We use means
per cell where the paper has sums over equal groups, so that adding a constant to a map changes
nothing, even if n is not a multiple of ten.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from videoattn.errors import one_of
from videoattn.explain.post_hoc import FILLS, filled
from videoattn.types import Grid, Logits, Video

NUM_POINTS = 21
NUM_GROUPS = 10

Masks = Bool[Tensor, "M n"]
"""For each of M copies of a clip, which of its n cells, in the order T', H', W', are hidden."""


def softmax(logits: Logits) -> Tensor:
    return logits.softmax(1)


class Scores(NamedTuple):
    """The score y of a class (its logit) and its probability p, for each copy of a clip."""

    y: Float[Tensor, " M"]
    p: Float[Tensor, " M"]


def hide(
    video: Float[Tensor, "1 C T H W"], masks: Masks, grid: Grid, fill: str
) -> Float[Tensor, "M C T H W"]:
    """Returns copies (M, C, T, H, W) of a clip (1, C, T, H, W), each with its masked cells hidden.

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
        target: The index of the class.
        fill: See `hide`.
        probabilities: Function from logits (M, K) to the probabilities of the classes.
        against: Another class. The score is then the difference of the two logits, and the
            probability that of the class among the two: why this class, and not that one?
        batch_size: The most copies of the clip in a forward pass.
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


class Curves(NamedTuple):
    """Scores with the first k cells of an order hidden or revealed, for each k of `steps`."""

    deletion: Scores
    insertion: Scores


class Groups(NamedTuple):
    """For each group of cells, in the order of the map: the mean of the map, and the decrease of y
    per cell when the group is hidden."""

    means: Float[Tensor, " G"]
    effects: Float[Tensor, " G"]


def descending(values: Tensor, generator: torch.Generator) -> Int64[Tensor, " n"]:
    """Returns the indices of the cells by decreasing value; ties are in random order."""
    flat = values.flatten()
    mixed = torch.randperm(len(flat), generator=generator)
    return mixed[flat[mixed].argsort(descending=True, stable=True)]


def steps(num_cells: int, num_points: int = NUM_POINTS) -> list[int]:
    """Returns the numbers k of hidden cells, 0, 5, ..., 100 % of n, or all of 0 to n if fewer."""
    last = min(num_points - 1, num_cells)
    return [round(num_cells * index / last) for index in range(last + 1)]


def first_hidden(order: Int64[Tensor, " n"], counts: Sequence[int]) -> Bool[Tensor, "M n"]:
    """Returns a mask for each count: the first `count` cells of the order are hidden."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return rank < torch.tensor(counts).unsqueeze(1)


def removal_curves(hider: Hider, order: Tensor, num_points: int = NUM_POINTS) -> Curves:
    """Returns the scores with cells hidden, and with cells revealed, in `order` (n,)."""
    masks = first_hidden(order, steps(len(order), num_points))
    # The whole and the empty clip are the ends of both curves.
    found = hider(torch.cat([masks, ~masks[1:-1]]))
    points = len(masks)
    deletion = Scores(*(values[:points] for values in found))
    inner = Scores(*(values[points:] for values in found))
    ends = ((d[-1:], i, d[:1]) for d, i in zip(deletion, inner, strict=True))
    return Curves(deletion, Scores(*(torch.cat(parts) for parts in ends)))


def area(curve: Float[Tensor, "... points"], num_cells: int) -> Float[Tensor, "..."]:
    """Returns the area under a curve over k / n, by the trapezoidal rule."""
    at = torch.tensor(steps(num_cells, curve.shape[-1]), dtype=curve.dtype) / num_cells
    return torch.trapezoid(curve, at)


def remove_groups(hider: Hider, values: Tensor, order: Tensor) -> Groups:
    """Hides ten groups of `order` (n,), each alone; returns their mean values and effects."""
    parts = order.tensor_split(min(NUM_GROUPS, len(order)))
    masks = torch.zeros(len(parts) + 1, len(order), dtype=torch.bool)
    for mask, part in zip(masks[1:], parts, strict=True):
        mask[part] = True
    y = hider(masks).y
    sizes = torch.tensor([len(part) for part in parts])
    means = torch.stack([values.flatten()[part].mean() for part in parts])
    return Groups(means, (y[0] - y[1:]) / sizes)


def saco(groups: Groups) -> Float[Tensor, ""]:
    """Returns SaCo, -1 to 1; 0 if all groups have the same mean, as those of a constant map."""
    i, j = torch.triu_indices(len(groups.means), len(groups.means), 1)
    weight = groups.means[i] - groups.means[j]
    agree = (groups.effects[i] - groups.effects[j]) * weight >= 0
    total = weight.abs().sum()
    signed = torch.where(agree, weight.abs(), -weight.abs()).sum()
    return signed / total if total > 0 else torch.zeros_like(total)


def sign_agreement(groups: Groups, *, signed: bool) -> Float[Tensor, ""]:
    """Returns the share of groups, 0 to 1, whose removal changes y in the predicted direction.

    Removing a group with a positive mean should lower y; so should any group of an unsigned map.
    """
    expected = groups.means.sign() if signed else torch.ones_like(groups.means)
    return (groups.effects.sign() == expected).to(groups.means.dtype).mean()


def time_deletion(
    frozen: Hider, values: Float[Tensor, "t h w"], generator: torch.Generator
) -> Scores:
    """Returns the scores with 0, 1, ..., T' whole frames hidden, those with the largest mean of the
    map first. `frozen` is a hider whose fill is "freeze"."""
    order = descending(values.mean((1, 2)), generator)
    frames = first_hidden(order, range(len(order) + 1))
    return frozen(frames.repeat_interleave(values[0].numel(), dim=1))
