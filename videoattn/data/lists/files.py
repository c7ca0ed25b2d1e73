"""Finds listed videos in the root's index, or in its folders, without opening any file."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from videoattn.data.lists.lines import ListError
from videoattn.data.lists.samples import LabelSets, Samples
from videoattn.data.prepare.index import INDEX_NAME, read_index
from videoattn.errors import first_few

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ts .webm .wmv".split()  # noqa: SIM905
)
_ENDINGS = tuple(VIDEO_SUFFIXES)

MAX_VISITS = 100
"""How often a folder may be listed: links between a few folders make a huge number of paths."""

Missing = Literal["raise", "drop", "keep"]
"""The treatment of listed videos that do not exist. Decoding a kept video fails."""

Match = Literal["path", "stem", "name"]
"""path: the listed path. stem: that path, with any extension. name: a file of that name, with any
extension, in any folder."""


class Listed(NamedTuple):
    """The content of a list: paths or names, labels, class names, reliable frame counts if any."""

    names: Sequence[str]
    labels: Sequence[int] | LabelSets
    class_names: tuple[str, ...]
    num_frames: Sequence[int] | None = None


class Found(NamedTuple):
    """Existing files: sorted paths relative to the root, and the columns of the index if any.

    `others` are files without the ending of a video; an index does not contain them.
    """

    paths: list[str]
    num_frames: Int64[np.ndarray, " N"] | None = None
    fps: Float64[np.ndarray, " N"] | None = None
    others: Sequence[str] = ()

    def take(self, rows: Sequence[int]) -> "Found":
        paths = [self.paths[row] for row in rows]
        if self.num_frames is None or self.fps is None:
            return Found(paths)
        return Found(paths, self.num_frames[rows], self.fps[rows])


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
    inside = [path[len(folder) :] for path in found.paths]
    if match == "name":
        by_name = _first_rows(_stem(path.rpartition("/")[2]) for path in inside)
        rows = [by_name.get(name, -1) for name in listed.names]
    else:
        by_path = _first_rows(inside)
        rows = [by_path.get(name, -1) for name in listed.names]
    if match == "stem" and -1 in rows:
        by_stem = _first_rows(_stem(path) if is_video(path) else "" for path in inside)
        for i, name in enumerate(listed.names):
            if rows[i] < 0:
                rows[i] = by_stem.get(_stem(name), -1)
    _check_each_once(root, listed.names, found.paths, rows)
    return _to_samples(root, folder, listed, found, rows, missing, frame_template)


def all_videos(root: Path, folder: str = "") -> Found:
    """Returns every video in `root/folder` and below; `folder` ends in a slash, or is empty."""
    if (index := read_index(root)) is None:
        files = sorted(walk(root / folder, folder))
        others = [path for path in files if not is_video(path)]
        return Found([path for path in files if is_video(path)], others=others)
    # Rows of hidden files come from earlier versions; no index has rows outside of its root.
    paths = list(index.paths)
    rows = [row for row, path in enumerate(paths) if path.startswith(folder) and _is_inside(path)]
    return Found(paths, index.num_frames, index.fps).take(rows)


def walk(
    folder: Path | str,
    prefix: str = "",
    above: frozenset[tuple[int, int]] = frozenset(),
    visits: Counter[tuple[int, int]] | None = None,
) -> Iterator[str]:
    """Yields the path of every file in a folder and below, except for hidden files and folders.

    Follows links to folders, except links to a folder that contains them: these never end.

    Args:
        folder: Folder to list.
        prefix: Text before each path, which is relative to `folder`.
        above: Device and inode of the folders on the way to this one.
        visits: How often each folder has been listed.

    Raises:
        ValueError: If links lead to one folder in more than `MAX_VISITS` ways.
    """
    visits = Counter() if visits is None else visits
    try:
        state, entries = os.stat(folder), list(os.scandir(folder))
    except (FileNotFoundError, PermissionError):  # such as lost+found
        return
    here = (state.st_dev, state.st_ino)
    if here in above:
        name = repr(str(folder))[1:-1]  # control characters are escaped
        warnings.warn(f"{name} links to a folder above it and is skipped", stacklevel=2)
        return
    visits[here] += 1
    if visits[here] > MAX_VISITS:
        raise ValueError(f"{folder}: links lead to it in more than {MAX_VISITS} ways; remove some")
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from walk(entry.path, f"{prefix}{entry.name}/", above | {here}, visits)
        else:
            yield prefix + entry.name


def outside(root: Path, paths: Iterable[str]) -> set[str]:
    """Returns the paths whose files are outside of the root, because a link leads there.

    The root itself may be a link.
    """
    top = os.path.join(os.path.realpath(root), "")
    folders: dict[str, str] = {}
    found = set()
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in folders:
            folders[folder] = os.path.realpath(root / folder)
        file = os.path.join(folders[folder], name)
        if not (os.path.realpath(file) if os.path.islink(file) else file).startswith(top):
            found.add(path)
    return found


def existing_root(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"root: {root} does not exist; need the folder of the videos")
    return root


def first_folder(root: Path, names: Sequence[str]) -> str:
    """Returns the first existing folder, ending in a slash, or "" (the root) if none exists."""
    return next((f"{name}/" for name in names if (root / name).is_dir()), "")


def first_file(root: Path, names: Iterable[str], description: str) -> Path:
    tried = [root / name for name in names]
    for path in tried:
        if path.is_file():
            return path
    raise ListError(f"{description} was not found; looked for {', '.join(map(str, tried))}")


def folders_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if _is_folder(e) and not e.name.startswith("."))


def is_video(name: str) -> bool:
    return name.lower().endswith(_ENDINGS)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # entry.is_dir() alone raises OSError for a link to itself.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))


def _is_inside(path: str) -> bool:
    return not path.startswith(("/", ".")) and "/." not in path


def _first_rows(names: Iterable[str]) -> dict[str, int]:
    """Returns the first row of each name."""
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, row)
    return rows


def _stem(path: str) -> str:
    stem, dot, suffix = path.rpartition(".")
    return stem if dot and "/" not in suffix else path


def _in_listed_folders(root: Path, folder: str, names: Sequence[str]) -> Found:
    """Returns the content of all folders that the names mention, with one call per folder."""
    paths = []
    for parent in {name.rpartition("/")[0] for name in names}:
        inside = f"{folder}{parent}/" if parent else folder
        if (root / inside).is_dir():
            paths += [inside + name for name in os.listdir(root / inside)]
    return Found(sorted(paths))


def _check_each_once(
    root: Path, names: Sequence[str], paths: Sequence[str], rows: Sequence[int]
) -> None:
    """Checks that a list does not name the same file twice, possibly with different spellings."""
    folders: dict[str, str] = {}
    first: dict[tuple[str, str], str] = {}
    for name, row in zip(names, rows, strict=True):
        if row < 0:
            continue
        folder, _, file = paths[row].rpartition("/")
        if folder not in folders:
            folders[folder] = os.path.realpath(root / folder)
        other = first.setdefault((folders[folder], file), name)
        if other is not name:
            raise ListError(f"{other} and {name} are one file, {paths[row]}; list each video once")


def _to_samples(
    root: Path,
    folder: str,
    listed: Listed,
    found: Found,
    rows: list[int],
    missing: Missing,
    frame_template: str | None,
) -> Samples:
    """Joins a list and the existing files; `rows` maps listed names to `found`, -1 if missing."""
    lost = [name for name, row in zip(listed.names, rows, strict=True) if row < 0]
    if lost and (missing == "raise" or len(lost) == len(rows)):
        raise ListError(_missing_message(root, folder, lost, len(rows), found))
    kept = [i for i, row in enumerate(rows) if row >= 0 or missing == "keep"]
    taken = [rows[i] for i in kept]
    labels = listed.labels
    num_frames, fps = found.num_frames, found.fps
    if num_frames is not None and fps is not None:  # row -1 becomes 0, an unknown value
        num_frames, fps = np.append(num_frames, 0)[taken], np.append(fps, 0)[taken]
    if listed.num_frames is not None:
        num_frames = np.array([listed.num_frames[i] for i in kept], np.int64)
    return Samples(
        root,
        paths=[found.paths[rows[i]] if rows[i] >= 0 else folder + listed.names[i] for i in kept],
        labels=labels.take(kept) if isinstance(labels, LabelSets) else [labels[i] for i in kept],
        class_names=listed.class_names,
        num_frames=num_frames,
        fps=fps,
        frame_template=frame_template,
        missing=lost,
    )


def _missing_message(root: Path, folder: str, lost: list[str], total: int, found: Found) -> str:
    remedy = "remove them from the list, correct the root, or leave them out (on_error=skip)"
    if len(lost) == total:
        remedy = "set root to the folder that the list's paths start from"
        if any("\\" in name for name in lost):
            remedy = "write / instead of \\ in the list"
        elif any(name.startswith('"') for name in lost):
            remedy = "remove the quotes from the list"
    where = f"do not exist under {root / folder}"
    if found.num_frames is not None:
        where = f"are not in {root / INDEX_NAME}"
        remedy += "; if files were added since it was made, delete it or make a new one"
    return f"{len(lost)} of {total} listed videos {where}: {first_few(lost)}; {remedy}"
