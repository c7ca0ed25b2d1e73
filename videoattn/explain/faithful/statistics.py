"""Rank correlation, and intervals over clips."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

NUM_RESAMPLES = 1000
FLAT = 1e-9  # a mean difference of scores below this counts as that of a constant network


class Interval(NamedTuple):
    """A mean over clips with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return "{:z.2f} ({:z.2f} to {:z.2f})".format(*self)


def bootstrap(
    values: Float[Tensor, " N"], seed: int = 0, *, over: Float[Tensor, " N"] | None = None
) -> Interval:
    """Returns the mean of a score over clips, with its 95 % interval over resamples of the clips.

    For a paired difference, pass the differences.

    Args:
        over: Divide the mean by the mean of these values in each resample, for a score relative to
            score(x) - score(empty).

    Raises:
        ValueError: If the mean of `over` is between -1e-9 and 1e-9: hiding everything changes
            nothing.
    """
    if over is not None and abs(float(over.mean())) < FLAT:
        raise ValueError(
            "the score of the whole clip is that of the empty one, so that nothing can be relative "
            "to the difference; the network ignores what this fill hides: choose another fill"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (NUM_RESAMPLES, len(values)), generator=generator)
    means, mean = values[drawn].mean(1), values.mean()
    if over is not None:
        means, mean = means / over[drawn].mean(1), mean / over.mean()
    return Interval(float(mean), *middle(means))


def middle(values: Float[Tensor, " R"]) -> tuple[float, float]:
    """Returns the 2.5 % and the 97.5 % quantile of resampled values."""
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def spearman(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> float:
    """Returns Spearman's rank correlation of two maps, -1 to 1, or 0 if one of them is constant.
    Equal values share their mean rank."""
    ranks = torch.stack([_ranks(a.flatten()), _ranks(b.flatten())])
    ranks -= ranks.mean(1, keepdim=True)
    norms = ranks.norm(dim=1).prod()
    return float((ranks[0] * ranks[1]).sum() / norms) if norms > 0 else 0.0


def _ranks(values: Tensor) -> Float[Tensor, " n"]:
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[places]
