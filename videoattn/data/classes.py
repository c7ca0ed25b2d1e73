"""The classes of a training split: their sizes, balanced sampling and weights, and wrong labels."""

import hashlib
import struct
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64

from videoattn.data.lists.samples import Samples
from videoattn.errors import first_few

BETA = 0.999
"""The constant of the effective number of samples."""


def epoch_counts(counts: Int64[np.ndarray, " K"], exponent: float) -> Int64[np.ndarray, " K"]:
    """Returns how many clips of each class an epoch has; their sum is that of `counts`.

    The share of a class with n videos is proportional to n ** (1 - exponent). An exponent of 0
    keeps the shares of the dataset, 1 makes them equal, and 0.5 is square-root sampling (Mahajan et
    al., ECCV 2018). Counts are rounded by largest remainder.
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
    """Returns the N clips of an epoch in random order; class counts are those of `epoch_counts`.

    If a class has more clips than videos, each video is repeated equally often, and a random subset
    once more. If it has fewer clips, a random subset of its videos is drawn.

    Returns:
        Numbers r * N + i: repetition r, from 0, of video i.
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
    """Raises a ValueError if the exponent is not in 0 - 1, or above 0 with an unknown label."""
    if not 0 <= exponent <= 1:
        raise ValueError(f"balance: got {exponent}; need 0 (as in the data) to 1 (equal classes)")
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


class LabelNoise:
    """Replaces the labels of random samples by wrong labels.

    A sample's label is wrong with probability `share`, independently of the others. The wrong label
    is any other class with equal probability. Both are functions of the seed and the sample only,
    so that a sample keeps its label in all epochs, processes and resumed runs. If the share grows,
    wrong labels stay as they are, and further labels become wrong.

    Args:
        share: Expected share of wrong labels, 0 to 1.
        seed: The seed of the run.

    Raises:
        ValueError: If the share is out of range, or above 0 with only one class.
    """

    def __init__(self, share: float, num_classes: int, seed: int) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"label_noise: got {share}; need a share of the labels, 0 to 1")
        if share and num_classes < 2:
            raise ValueError("label_noise: got one class; need another class, or no noise")
        self.share = share
        self.num_classes = num_classes
        self.seed = seed

    def label(self, label: int, index: int) -> int:
        """Returns the label to use for sample `index`, whose true label is `label`; -1 stays -1."""
        chance, step = self._draw(index)
        if label < 0 or chance >= self.share:
            return label
        return (label + step) % self.num_classes

    def count(self, num_samples: int) -> int:
        """Returns how many of the first `num_samples` samples have a wrong label."""
        return sum(self._draw(index)[0] < self.share for index in range(num_samples))

    def _draw(self, index: int) -> tuple[float, int]:
        """Returns a uniform number in [0, 1), and the number to add to the label, modulo K."""
        packed = struct.pack("<2q", self.seed, index)
        digest = hashlib.blake2b(packed, digest_size=16, person=b"label noise").digest()
        first, second = struct.unpack("<2Q", digest)
        # 53 bits are exact in a float, so the quotient is below 1.
        return (first >> 11) / 2**53, 1 + second % max(self.num_classes - 1, 1)


def class_sizes(samples: Samples) -> list[str]:
    """Returns a line with the sizes of all classes, or of the largest and smallest of many."""
    counts = samples.class_counts()
    if not counts.any():
        return []  # shards hold their labels themselves
    order = [*np.argsort(-counts, kind="stable")]
    sizes = [f"{samples.class_names[k]} {counts[k]:,}" for k in order]
    if len(sizes) > 12:
        return [
            f"videos per class: median {np.median(counts):,g}; most: {', '.join(sizes[:3])}; "
            f"least: {', '.join(sizes[-3:])}"
        ]
    return [f"videos per class: {', '.join(sizes)}"]


def class_notes(samples: Samples, *, numbered: bool = False) -> list[str]:
    """Returns notes about classes without training videos, a single class and ignored files.

    Args:
        numbered: Whether the labels are numbers in a list file.
    """
    counts = samples.class_counts()
    if not counts.any():
        return []  # shards hold their labels themselves
    notes = []
    names = samples.class_names
    if empty := [names[k] for k in np.flatnonzero(counts == 0)]:
        least, most = counts[counts > 0].min(), counts.max()
        notes.append(
            f"classes without a training video: {len(empty):,} of {len(names):,}, "
            f"{first_few(empty)}; the others have {least:,} to {most:,}"
        )
    if numbered and not counts[0]:
        first = int(np.flatnonzero(counts)[0])
        notes.append(f"the labels start at {first}, not 0: class 0 has no video")
    if np.count_nonzero(counts) == 1:
        only = names[int(counts.argmax())]
        notes.append(f"all training videos are of one class, {only}: there is nothing to learn")
    if samples.ignored:
        extensions = [f"{n:,} {end or 'without one'}" for end, n in samples.ignored.most_common()]
        notes.append(f"files ignored because of their extensions: {first_few(extensions)}")
    return notes
