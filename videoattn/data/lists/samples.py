"""The table of a dataset's videos and labels, and the search for the videos that a list names."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64

from videoattn.data.decode.source import FrameFolder
from videoattn.data.lists.files import Found, ListError, all_videos, is_video, resolved
from videoattn.data.prepare.index import INDEX_NAME
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
        num_frames: Frame count of each video; 0 if it is not known before decoding.
        fps: Frames per second of each video; 0 if unknown.
        frame_template: If set, paths are folders of images, and this is the format of their names.
        frame_start: The number in the file name of frame 0.
        missing: The listed videos that do not exist. The reader either left them out or kept them.
        ignored: The number of files in class folders that are not videos, by extension.
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
        self.num_frames = np.zeros(len(labels), np.int64) if num_frames is None else num_frames
        self.fps = np.zeros(len(labels)) if fps is None else fps
        self.frame_template = frame_template
        self.frame_start = frame_start
        self.missing = tuple(missing)
        self.ignored = Counter(ignored)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        return self.root / self.paths[index]

    def source(self, index: int) -> Path | FrameFolder:
        """Returns the file or the folder of images of a video, as an argument of `decode`."""
        if self.frame_template is None:
            return self.path(index)
        return FrameFolder(self.path(index), self.frame_template, self.frame_start)

    def label(self, index: int) -> Label:
        return int(self.labels[index]) if self.label_sets is None else self.label_sets[index]

    def target(self, labels: Sequence[Label]) -> Target:
        """Returns labels as int64 (N,), or as float (N, K) of 1 and 0 if videos have several."""
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
        taken = copy(self)
        taken.paths, taken.labels = self.paths.take(rows), self.labels[rows]
        taken.label_sets = self.label_sets and self.label_sets.take(rows)
        taken.num_frames, taken.fps = self.num_frames[rows], self.fps[rows]
        taken.ignored = Counter()
        return taken


Missing = Literal["raise", "drop", "keep"]
"""The treatment of listed videos that do not exist. Decoding a kept video fails."""

Match = Literal["path", "stem", "name"]
"""How a listed name identifies a file. path: by its path. stem: by its path, with any extension.
name: by its file name without extension, in any folder."""


class Listed(NamedTuple):
    """The content of a list: paths or names, labels, class names, reliable frame counts if any."""

    names: Sequence[str]
    labels: Sequence[int] | LabelSets
    class_names: tuple[str, ...]
    num_frames: Sequence[int] | None = None


def find_videos(
    root: Path,
    folder: str,
    listed: Listed,
    *,
    match: Match,
    missing: Missing,
    frame_template: str | None = None,
) -> Samples:
    """Returns the listed videos. Their names are relative to `root/folder` (see `all_videos`).

    With `frame_template`, the names are folders of images, which the index does not contain.

    Raises:
        ListError: If all videos are missing, or if `missing` is "raise" and any video is missing.
    """
    indexed = frame_template is None and (root / INDEX_NAME).is_file()
    if match == "name" or indexed:
        found = all_videos(root, folder)
    else:
        found = _in_listed_folders(root, folder, listed.names)
    rows = _matching_rows(listed.names, [path[len(folder) :] for path in found.paths], match)
    _check_each_once(root, listed.names, found.paths, rows)
    lost = [name for name, row in zip(listed.names, rows, strict=True) if row < 0]
    if lost and (missing == "raise" or len(lost) == len(rows)):
        raise ListError(_missing_message(root, folder, lost, len(rows), indexed))
    num_frames, fps = (np.append(facts, 0)[rows] for facts in (found.num_frames, found.fps))
    pairs = zip(listed.names, rows, strict=True)
    samples = Samples(
        root,
        paths=[found.paths[row] if row >= 0 else folder + name for name, row in pairs],
        labels=listed.labels,
        class_names=listed.class_names,
        num_frames=num_frames if listed.num_frames is None else np.array(listed.num_frames),
        fps=fps,
        frame_template=frame_template,
        missing=lost,
    )
    return (
        samples.take(np.flatnonzero(np.array(rows) >= 0)) if lost and missing == "drop" else samples
    )


def _matching_rows(names: Sequence[str], paths: Sequence[str], match: Match) -> list[int]:
    """Returns the row in `paths` of the file that each name identifies, or -1."""
    if match == "name":
        by_name = _first_rows(_stem(path.rpartition("/")[2]) for path in paths)
        return [by_name.get(name, -1) for name in names]
    by_path = _first_rows(paths)
    rows = [by_path.get(name, -1) for name in names]
    if match == "stem" and -1 in rows:
        by_stem = _first_rows(_stem(path) if is_video(path) else "" for path in paths)
        rows = [by_stem.get(_stem(n), -1) if r < 0 else r for n, r in zip(names, rows, strict=True)]
    return rows


def _first_rows(names: Iterable[str]) -> dict[str, int]:
    return {name: row for row, name in reversed([*enumerate(names)])}


def _stem(path: str) -> str:
    stem, dot, suffix = path.rpartition(".")
    return stem if dot and "/" not in suffix else path


def _in_listed_folders(root: Path, folder: str, names: Sequence[str]) -> Found:
    """Returns the content of the folders of all names; each folder is listed once."""
    paths = []
    for parent in {name.rpartition("/")[0] for name in names}:
        inside = f"{folder}{parent}/" if parent else folder
        if (root / inside).is_dir():
            paths += [inside + name for name in os.listdir(root / inside)]
    return Found.of(sorted(paths))


def _check_each_once(
    root: Path, names: Sequence[str], paths: Sequence[str], rows: Sequence[int]
) -> None:
    """Raises a ListError if a list names a file twice, possibly with different spellings."""
    listed = [(name, paths[row]) for name, row in zip(names, rows, strict=True) if row >= 0]
    first: dict[str, str] = {}
    files = resolved(root, [path for _, path in listed])
    for (name, path), file in zip(listed, files, strict=True):
        other = first.setdefault(file, name)
        if other is not name:
            raise ListError(f"{other} and {name} are one file, {path}; list each video once")


def _missing_message(root: Path, folder: str, lost: list[str], total: int, indexed: bool) -> str:
    remedy = "remove them from the list, correct the root, or leave them out (on_error=skip)"
    if len(lost) == total:
        remedy = "set root to the folder that the list's paths start from"
        if any("\\" in name for name in lost):
            remedy = "write / instead of \\ in the list"
        elif any(name.startswith('"') for name in lost):
            remedy = "remove the quotes from the list"
    where = f"do not exist under {root / folder}"
    if indexed:
        where = f"are not in {root / INDEX_NAME}"
        remedy += "; if files were added since it was made, delete it or make a new one"
    return f"{len(lost)} of {total} listed videos {where}: {first_few(lost)}; {remedy}"
