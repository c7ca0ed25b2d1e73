"""Mirrored clips, and the classes that a mirror turns into others: moves_left, moves_right."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int64

from videoattn.data.transforms.augment import chance
from videoattn.errors import did_you_mean

Pair = tuple[str, str]

_MIRRORED = {
    "left": "right",
    "leftward": "rightward",
    "leftwards": "rightwards",
    "clockwise": "counterclockwise",
}
_MIRRORED |= {right: left for left, right in _MIRRORED.items()}


class Mirror:
    """Decides whether a sample is mirrored, and which label it then has.

    probability: of being mirrored. flip_labels: names of classes that become each other; a class
        that is paired with itself stays what it is.

    Raises:
        ValueError: a probability that is none; a pair with a class that does not exist or is in
            two pairs; class names that tell directions (`direction_pairs`) and are in no pair.
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
            raise ValueError(
                f"flip: a mirrored clip of {a!r} is one of {b!r} ({_count(unpaired)}); set flip to "
                f"false, or flip_labels to the pairs: {{{a}: {b}, ...}}"
            )

    def draw(self, generator: torch.Generator) -> bool:
        """Whether a sample is mirrored."""
        return chance(self.probability, generator)

    def label(self, label: int) -> int:
        """What a sample of this label is when mirrored; -1, no label, stays."""
        return int(self.labels[label]) if label >= 0 else label


def direction_pairs(
    class_names: Sequence[str], without: Mapping[str, str] | None = None
) -> list[Pair]:
    """Classes whose names differ in left and right, or in clockwise and counterclockwise: one is
    what the other looks like in a mirror. Classes that `without` names are left out.

    Names such as "Pulling something from left to right", moves_left and TurnLeft are all read. One
    that says left and has no partner tells no direction: "left hook".
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
    place = {name: index for index, name in enumerate(class_names)}
    seen: set[str] = set()
    for pair in flip_labels.items():
        for name in sorted(set(pair)):
            if name not in place:
                hint = did_you_mean(name, class_names)
                raise ValueError(
                    f"flip_labels: {name!r} is no class{hint}; the {len(class_names)} classes "
                    f"begin with {', '.join(class_names[:3])}"
                )
            if name in seen:
                raise ValueError(f"flip_labels: {name!r} is in two pairs; name each pair once")
            seen.add(name)
        a, b = (place[name] for name in pair)
        labels[a], labels[b] = b, a
    return labels


def _count(pairs: Sequence[Pair]) -> str:
    return f"{len(pairs)} such pairs" if len(pairs) > 1 else "the only such pair"
