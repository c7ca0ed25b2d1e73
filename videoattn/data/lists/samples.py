"""The table of a dataset's videos and labels."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from videoattn.data.strings import PackedStrings
from videoattn.errors import first_few


class Samples:
    """The paths, labels and class names of a dataset, in flat arrays that workers share.

    Attributes:
        num_frames: Frame count of each video, or None if no count is known before decoding. A 0
            marks a video with an unknown count.
        fps: Frames per second of each video, with the same meaning of None and 0.
        frame_template: If set, paths are folders of images, and `frame_template.format(1)` is the
            file name of frame 0.
        missing: The listed videos that do not exist. The reader either left them out or kept them.
        ignored: The extensions of files in class folders that are not videos, with their numbers.
    """

    def __init__(
        self,
        root: Path,
        *,
        paths: Iterable[str] | PackedStrings,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        num_frames: Int64[np.ndarray, " N"] | None = None,
        fps: Float64[np.ndarray, " N"] | None = None,
        frame_template: str | None = None,
        missing: Sequence[str] = (),
        ignored: Iterable[str] = (),
    ) -> None:
        """Creates the table; `paths` are relative to `root`, or absolute."""
        self.root = root
        self.paths = paths if isinstance(paths, PackedStrings) else PackedStrings.of(paths)
        self.labels: Int64[np.ndarray, " N"] = np.array(labels, dtype=np.int64)
        self.class_names = tuple(class_names)
        self.num_frames = num_frames
        self.fps = fps
        self.frame_template = frame_template
        self.missing = tuple(missing)
        self.ignored = Counter(ignored)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        return self.root / self.paths[index]

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def class_counts(self) -> Int64[np.ndarray, " K"]:
        """Returns the number of videos of each class."""
        labels = self.labels[self.labels >= 0]
        return np.bincount(labels, minlength=len(self.class_names)).astype(np.int64)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Samples":
        """Returns the videos in the given rows."""
        rows = np.asarray(rows, np.int64)
        return Samples(
            self.root,
            paths=self.paths.take(rows),
            labels=self.labels[rows],
            class_names=self.class_names,
            num_frames=None if self.num_frames is None else self.num_frames[rows],
            fps=None if self.fps is None else self.fps[rows],
            frame_template=self.frame_template,
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
    if (samples.labels < 0).any():
        return []  # shards hold their labels themselves
    notes = []
    counts = samples.class_counts()
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
