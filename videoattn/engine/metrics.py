"""Counts correct predictions."""

from jaxtyping import Bool, Float
from torch import Tensor

from videoattn.types import Labels


def in_top_k(scores: Float[Tensor, "N K"], labels: Labels, k: int) -> Bool[Tensor, " N"]:
    """Returns whether each label is among the `k` highest scores of its row.

    A row without a label (-1) is False. If there are fewer than `k` classes, all of them count.

    Raises:
        ValueError: If `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k: {k} is not at least 1")
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices  # (N, k)
    return (best == labels[:, None]).any(dim=1)


def fraction(count: int | float, total: int | float) -> float:
    """Returns `count` / `total`, or NaN if `total` is 0."""
    return count / total if total else float("nan")
