"""Which of the listed videos are there: by the root's index, or by listing folders, never by
looking at each file."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from videoattn.data.lists.samples import Samples
from videoattn.data.lists.spans import Spans
from videoattn.data.prepare.index import INDEX_NAME, read_index
from videoattn.errors import first_few

# fmt: off
VIDEO_SUFFIXES = frozenset(
    [".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts",
     ".webm", ".wmv"]
)
# fmt: on

Missing = Literal["raise", "drop", "keep"]
"""What to do about listed videos that are not there. Those that are kept fail when decoded."""

Match = Literal["path", "stem", "name"]
"""path: the listed path. stem: that, or another extension. name: a file of that name, without its
extension, in any folder."""


class Listed(NamedTuple):
    """What a list says: paths or names, labels from 0, the classes; frame counts to rely on."""

    names: Spans
    labels: Int64[np.ndarray, " N"]
    class_names: tuple[str, ...]
    num_frames: Int64[np.ndarray, " N"] | None = None


class Found(NamedTuple):
    """The videos that are there, sorted: paths relative to the root, and what the index knows."""

    paths: Spans
    num_frames: Int64[np.ndarray, " N"] | None = None
    fps: Float64[np.ndarray, " N"] | None = None

    def take(self, which: np.ndarray) -> "Found":
        paths = self.paths.take(which)
        if self.num_frames is None or self.fps is None:
            return Found(paths)
        return Found(paths, self.num_frames[which], self.fps[which])

    def followed_by(self, paths: Iterable[str]) -> "Found":
        """More of which nothing is known."""
        more = Spans.of(paths)
        all_paths, nothing = self.paths.followed_by(more), np.zeros(len(more), np.int64)
        if self.num_frames is None or self.fps is None:
            return Found(all_paths)
        return Found(all_paths, np.append(self.num_frames, nothing), np.append(self.fps, nothing))


def all_videos(root: Path, folder: str = "") -> Found:
    """Every video in `root/folder` and below; `folder` ends in a slash, or is empty."""
    if (index := read_index(root)) is not None:
        there = Found(index.paths, index.num_frames, index.fps)
        return there.take(np.flatnonzero(index.paths.startswith(folder)))
    top, paths = str(root / folder), []
    for parent, folders, files in os.walk(top, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = folder + ("" if parent == top else os.path.relpath(parent, top) + "/")
        paths += [inside + name for name in files if is_video(name)]
    return Found(Spans.of(sorted(paths)))


def find_videos(
    root: Path, folder: str, listed: Listed, *, match: Match, missing: Missing
) -> Samples:
    """The listed videos, their names relative to `root/folder` (see `all_videos`).

    Raises: ValueError when some are missing and that is to be an error, or all are.
    """
    if match == "name" or (root / INDEX_NAME).is_file():
        there = all_videos(root, folder)
    else:
        there = _in_listed_folders(root, folder, listed.names)
    inside = _without(folder, there.paths)
    if match == "name":
        place = listed.names.find(inside.names().stems())
    else:
        place = listed.names.find(inside)
        if match == "stem" and (place < 0).any():
            videos = np.flatnonzero(are_videos(inside))
            by_stem = listed.names.stems().find(inside.take(videos).stems())
            place = np.where(place < 0, np.append(videos, -1)[by_stem], place)
    return _samples(root, folder, listed, there, place, missing)


def find_folders(
    root: Path, folder: str, listed: Listed, *, frame_template: str, missing: Missing
) -> Samples:
    """The same for folders of pictures."""
    there = _in_listed_folders(root, folder, listed.names)
    place = listed.names.find(_without(folder, there.paths))
    return _samples(root, folder, listed, there, place, missing, frame_template)


def existing_root(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"data root {root} does not exist; set data.root to the folder of videos")
    return root


def first_folder(root: Path, names: Sequence[str]) -> str:
    """The first that exists, with a slash; the root itself is the empty string."""
    return next((f"{name}/" for name in names if (root / name).is_dir()), "")


def first_file(root: Path, names: Iterable[str], what: str) -> Path:
    tried = [root / name for name in names]
    for path in tried:
        if path.is_file():
            return path
    raise ValueError(f"{what} was not found; looked for {', '.join(map(str, tried))}")


def folders_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def are_videos(paths: Spans) -> Bool[np.ndarray, " N"]:
    suffixes, which = paths.rsplit(".")[1].unique()
    return np.array([is_video(f"x.{suffix}") for suffix in suffixes], bool)[which]


def _in_listed_folders(root: Path, folder: str, names: Spans) -> Found:
    """All that is in the folders that the names mention: one call per folder, not one per file."""
    paths = []
    for parent in names.rsplit("/")[0].unique()[0]:
        inside = f"{folder}{parent}/" if parent else folder
        if (root / inside).is_dir():
            paths += [inside + name for name in os.listdir(root / inside)]
    return Found(Spans.of(sorted(paths)))


def _samples(
    root: Path, folder: str, listed: Listed, there: Found, place: Int64[np.ndarray, " N"],
    missing: Missing, frame_template: str | None = None,
) -> Samples:  # fmt: skip
    lost = np.flatnonzero(place < 0)
    names = [listed.names[i] for i in lost]
    if names and (missing == "raise" or len(names) == len(place)):
        raise ValueError(_missing_message(root, folder, names, len(place), there))
    if names and missing == "keep":
        place = place.copy()
        place[lost] = len(there.paths) + np.arange(len(lost))
        there = there.followed_by(folder + name for name in names)
    rows = np.flatnonzero(place >= 0)
    there = there.take(place[rows])
    return Samples(
        root,
        paths=there.paths,
        labels=listed.labels[rows],
        class_names=listed.class_names,
        num_frames=there.num_frames if listed.num_frames is None else listed.num_frames[rows],
        fps=there.fps,
        frame_template=frame_template,
        missing=names,
    )


def _missing_message(root: Path, folder: str, names: list[str], total: int, there: Found) -> str:
    remedy = "take them out of the list, set data.root, or go on without them by data.on_error=skip"
    if len(names) == total:
        remedy = "set data.root to the folder that the list's paths start from"
    where = f"do not exist under {root / folder}"
    if there.num_frames is not None:
        where = f"are not in {root / INDEX_NAME}"
        remedy += "; `videoattn prepare index` makes it anew, if files were added since"
    return f"{len(names)} of {total} listed videos {where}: {first_few(names)}; {remedy}"


def _without(folder: str, paths: Spans) -> Spans:
    """Paths that all start with a folder, from there on."""
    return Spans(paths.data, paths.starts + len(os.fsencode(folder)), paths.ends)
