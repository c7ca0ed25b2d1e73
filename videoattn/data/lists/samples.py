"""The table of a dataset's videos and labels."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64

from videoattn.data.decode.source import FrameFolder
from videoattn.data.strings import PackedStrings
from videoattn.errors import first_few
from videoattn.types import Target

Label = int | tuple[int, ...]
"""The label of a video, -1 if unknown; or all its labels, perhaps none, if it may have several."""


@dataclass(frozen=True, eq=False)
class LabelSets:
    """A read-only sequence of sets of labels. Set i ends before `values[ends[i]]`."""

    values: Int64[np.ndarray, " L"]
    ends: Int64[np.ndarray, " N"]

    @classmethod
    def of(cls, sets: Iterable[Sequence[int]]) -> "LabelSets":
        sets = list(sets)
        ends = np.cumsum([len(labels) for labels in sets], dtype=np.int64)
        return cls(np.array([k for labels in sets for k in labels], np.int64), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int | np.integer) -> tuple[int, ...]:
        start = self.ends[index - 1] if index else 0
        return tuple(self.values[start : self.ends[index]].tolist())

    def take(self, rows: Sequence[int] | np.ndarray) -> "LabelSets":
        return LabelSets.of(self[row] for row in rows)


class Samples:
    """The paths, labels and class names of a dataset, in flat arrays that workers share.

    Attributes:
        labels: The label of each video; -1 if it is unknown, or if `label_sets` has the labels.
        label_sets: If videos may have several labels, those of each video; else None.
        num_frames: Frame count of each video, or None if no count is known before decoding. A 0
            marks a video with an unknown count.
        fps: Frames per second of each video, with the same meaning of None and 0.
        frame_template: If set, paths are folders of images with these file names.
        frame_start: The number in the file name of frame 0.
        missing: The listed videos that do not exist. The reader either left them out or kept them.
        ignored: The extensions of files in class folders that are not videos, with their numbers.
    """

    def __init__(
        self,
        root: Path,
        *,
        paths: Iterable[str] | PackedStrings,
        labels: Sequence[int] | np.ndarray | LabelSets,
        class_names: Sequence[str],
        num_frames: Int64[np.ndarray, " N"] | None = None,
        fps: Float64[np.ndarray, " N"] | None = None,
        frame_template: str | None = None,
        frame_start: int = 1,
        missing: Sequence[str] = (),
        ignored: Iterable[str] = (),
    ) -> None:
        """Creates the table; `paths` are relative to `root`, or absolute."""
        self.root = root
        self.paths = paths if isinstance(paths, PackedStrings) else PackedStrings.of(paths)
        self.label_sets = labels if isinstance(labels, LabelSets) else None
        single = [-1] * len(labels) if isinstance(labels, LabelSets) else labels
        self.labels: Int64[np.ndarray, " N"] = np.array(single, dtype=np.int64)
        self.class_names = tuple(class_names)
        self.num_frames = num_frames
        self.fps = fps
        self.frame_template = frame_template
        self.frame_start = frame_start
        self.missing = tuple(missing)
        self.ignored = Counter(ignored)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        return self.root / self.paths[index]

    def source(self, index: int) -> Path | FrameFolder:
        """Returns a video as `decode` takes it."""
        if self.frame_template is None:
            return self.path(index)
        return FrameFolder(self.path(index), self.frame_template, self.frame_start)

    def label(self, index: int) -> Label:
        return int(self.labels[index]) if self.label_sets is None else self.label_sets[index]

    def target(self, labels: Sequence[Label]) -> Target:
        """Returns the labels of a batch: (n,), or (n, K) of 1 and 0 if videos have several."""
        if self.label_sets is None:
            return torch.tensor(labels, dtype=torch.int64)
        target = torch.zeros(len(labels), len(self.class_names))
        for row, classes in enumerate(labels):
            target[row, torch.tensor(classes, dtype=torch.int64)] = 1.0
        return target

    def class_counts(self) -> Int64[np.ndarray, " K"]:
        """Returns the number of videos of each class."""
        labels = (
            self.labels[self.labels >= 0] if self.label_sets is None else self.label_sets.values
        )
        return np.bincount(labels, minlength=len(self.class_names)).astype(np.int64)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Samples":
        """Returns the videos in the given rows."""
        rows = np.asarray(rows, np.int64)
        return Samples(
            self.root,
            paths=self.paths.take(rows),
            labels=self.labels[rows] if self.label_sets is None else self.label_sets.take(rows),
            class_names=self.class_names,
            num_frames=None if self.num_frames is None else self.num_frames[rows],
            fps=None if self.fps is None else self.fps[rows],
            frame_template=self.frame_template,
            frame_start=self.frame_start,
            missing=self.missing,
        )


def class_sizes(samples: Samples) -> list[str]:
    """Returns a line with the number of videos of each class, or with the least and the most."""
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
        numbered: Whether the labels are numbers that somebody wrote into a list.
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
