"""Mirrors clips, and swaps the labels of classes such as moves_left and moves_right."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int64

from videoattn.data.transforms.augment import chance
from videoattn.errors import did_you_mean

_MIRRORED = {
    "left": "right",
    "leftward": "rightward",
    "leftwards": "rightwards",
    "clockwise": "counterclockwise",
}
_MIRRORED |= {right: left for left, right in _MIRRORED.items()}


class Mirror:
    """Decides whether to mirror a sample, and maps its label.

    Args:
        probability: Probability of mirroring a sample.
        flip_labels: Pairs of classes whose labels are swapped. A class paired with itself keeps
            its label.

    Raises:
        ValueError: If the probability is not in 0 - 1, a pair names an unknown class, a class is in
            two pairs, or class names contain directions (`direction_pairs`) without a pair.
    """

    def __init__(
        self,
        probability: float,
        class_names: Sequence[str],
        flip_labels: Mapping[str, str] | None = None,
    ) -> None:
        flip_labels = flip_labels or {}
        if not 0 <= probability <= 1:
            raise ValueError(f"flip: got {probability}; need a probability, 0 to 1")
        self.probability = probability
        self.labels = _mirrored_labels(class_names, flip_labels)
        unpaired = direction_pairs(class_names, without=flip_labels)
        if unpaired and probability:
            a, b = unpaired[0]
            count = f"{len(unpaired)} such pairs" if len(unpaired) > 1 else "the only such pair"
            raise ValueError(
                f"flip: a mirrored clip of {a!r} is one of {b!r} ({count}); set flip to false, or "
                f"flip_labels to the pairs: {{{a}: {b}, ...}}"
            )

    def draw(self, generator: torch.Generator) -> bool:
        """Draws whether to mirror a sample."""
        return chance(self.probability, generator)

    def label(self, label: int | tuple[int, ...]) -> int | tuple[int, ...]:
        """Returns the label or labels of a mirrored sample; -1 (no label) stays -1."""
        if isinstance(label, tuple):
            return tuple(self.labels[list(label)].tolist())
        return int(self.labels[label]) if label >= 0 else label


def direction_pairs(
    class_names: Sequence[str], without: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """Returns pairs of classes whose names are each other's mirror image.

    Their names differ only in left and right, or in clockwise and counterclockwise. Names such as
    "Pulling something from left to right", moves_left and TurnLeft are recognized. A name without a
    counterpart, such as "left hook", is not a direction.

    Args:
        without: Pairs of classes to leave out.
    """
    known = {name for pair in (without or {}).items() for name in pair}
    by_words = {_words(name): name for name in class_names if name not in known}
    pairs = []
    for words, name in by_words.items():
        mirrored = tuple(_MIRRORED.get(word, word) for word in words)
        if words < mirrored and mirrored in by_words:
            pairs.append((name, by_words[mirrored]))
    return pairs


def _words(name: str) -> tuple[str, ...]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = " ".join(re.split(r"[\W_]+", spaced))
    return tuple(re.sub(r"\b(counter|anti) ?clockwise\b", "counterclockwise", words).split())


def _mirrored_labels(
    class_names: Sequence[str], flip_labels: Mapping[str, str]
) -> Int64[np.ndarray, " K"]:
    labels = np.arange(len(class_names))
    label_of = {name: label for label, name in enumerate(class_names)}
    seen: set[str] = set()
    for pair in flip_labels.items():
        for name in sorted(set(pair)):
            if name not in label_of:
                hint = did_you_mean(name, class_names)
                raise ValueError(
                    f"flip_labels: {name!r} is not a class{hint}; the {len(class_names)} classes "
                    f"begin with {', '.join(class_names[:3])}"
                )
            if name in seen:
                raise ValueError(f"flip_labels: {name!r} is in two pairs; name each pair once")
            seen.add(name)
        a, b = (label_of[name] for name in pair)
        labels[a], labels[b] = b, a
    return labels
