"""Counting right answers."""

from jaxtyping import Bool, Float
from torch import Tensor

from videoattn.types import Labels


def in_top_k(scores: Float[Tensor, "N K"], labels: Labels, k: int) -> Bool[Tensor, " N"]:
    """Whether each label is among its row's `k` highest scores (all of them where K < k).

    A label of -1 (none is known) is in no row's.
    """
    if k < 1:
        raise ValueError(f"k: {k} is not at least 1")
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices  # (N, k)
    return (best == labels[:, None]).any(dim=1)


def share(count: int | float, total: int | float) -> float:
    """`count` / `total`; not a number where there is nothing to count."""
    return count / total if total else float("nan")
