"""Balances classes of unequal size: with sampling frequencies or loss weights."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64

BETA = 0.999
"""The constant of the effective number of samples."""


def epoch_counts(counts: Int64[np.ndarray, " K"], exponent: float) -> Int64[np.ndarray, " K"]:
    """Returns how many clips of each class an epoch has; their sum is that of `counts`.

    The share of a class with n videos is proportional to n ** (1 - exponent). An exponent of 0
    keeps the shares of the dataset, 1 makes them equal, and 0.5 is square-root sampling (Mahajan et
    al., ECCV 2018). Largest remainders round the counts.
    """
    shares = np.where(counts > 0, np.maximum(counts, 1) ** (1.0 - exponent), 0.0)
    exact = counts.sum() * shares / shares.sum()
    whole = np.floor(exact).astype(np.int64)
    largest = np.argsort(whole - exact, kind="stable")[: counts.sum() - whole.sum()]
    whole[largest] += 1
    return whole


def balanced_order(
    labels: Int64[np.ndarray, " N"], exponent: float, generator: torch.Generator
) -> Int64[torch.Tensor, " N"]:
    """Draws the N clips of an epoch with `epoch_counts` of each class, in random order.

    If a class has more clips than videos, each video is repeated equally often, and a random subset
    once more. If it has fewer clips, a random subset of its videos is drawn.

    Returns:
        Numbers r * N + i: the repetition r, from 0, of sample i.
    """
    counts = np.bincount(labels)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    parts = []
    for members, count in zip(by_class, epoch_counts(counts, exponent).tolist(), strict=True):
        if not count:
            continue
        repeats, rest = divmod(count, len(members))
        drawn = torch.from_numpy(members)[torch.randperm(len(members), generator=generator)]
        parts += [drawn + r * len(labels) for r in range(repeats)]
        parts.append(drawn[:rest] + repeats * len(labels))
    numbers = torch.cat(parts)
    return numbers[torch.randperm(len(numbers), generator=generator)]


def check_balance(labels: Int64[np.ndarray, " N"], exponent: float) -> None:
    """Raises a ValueError if an exponent is out of range or, unless it is 0, a label unknown."""
    if not 0 <= exponent <= 1:
        raise ValueError(f"balance: got {exponent}; need 0 (as they are) to 1 (equal classes)")
    if exponent and not (labels >= 0).all():
        raise ValueError("balance: needs one known label for every video; use 0")


def class_weights(
    counts: Int64[np.ndarray, " K"], method: Literal["inverse", "effective"]
) -> Float64[np.ndarray, " K"]:
    """Returns loss weights of classes, whose mean over the videos is 1; 0 for an empty class.

    With n videos in a class, "inverse" weights are proportional to 1 / n, and "effective" ones to
    (1 - `BETA`) / (1 - `BETA` ** n), the inverse of the effective number of samples (Cui et al.,
    CVPR 2019). The paper scales the mean over classes to 1. Here the mean over videos is 1, so the
    scale of the loss and the learning rate stay valid.
    """
    sizes = np.maximum(counts, 1).astype(np.float64)
    effective = sizes if method == "inverse" else (1 - BETA**sizes) / (1 - BETA)
    weights = np.where(counts > 0, 1 / effective, 0.0)
    return np.asarray(weights * counts.sum() / (weights * counts).sum())
