"""Lists the videos in a folder: from its index, or by walking through it."""

import codecs
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from videoattn.data.prepare.index import read_index

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ts .webm .wmv".split()  # noqa: SIM905
)
_ENDINGS = tuple(VIDEO_SUFFIXES)

MAX_VISITS = 100
"""How often a folder may be listed: links between a few folders make a huge number of paths."""


class ListError(ValueError):
    """An error in a list file, or in the files that it names. The message names the file."""


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


def all_videos(root: Path, folder: str = "") -> Found:
    """Returns every video in `root/folder` and below; `folder` ends in a slash, or is empty."""
    if (index := read_index(root)) is None:
        files = sorted(walk(root / folder, folder))
        others = [path for path in files if not is_video(path)]
        return Found([path for path in files if is_video(path)], others=others)
    # Rows of hidden files come from earlier versions; no index has rows outside of its root.
    paths = list(index.paths)
    rows = [
        row
        for row, path in enumerate(paths)
        if path.startswith(folder) and not path.startswith(("/", ".")) and "/." not in path
    ]
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
        if folder not in folders:  # resolving every path takes nine times as long
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


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file without its byte order mark.

    File names in another encoding survive, as in `os.fsdecode`.

    Raises:
        ListError: If the text is UTF-16, or its first line has NUL bytes or lone CR line ends.
    """
    data = path.read_bytes()
    first_line = data[: data.find(b"\n") + 1 or len(data)]
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ListError(f"{path} is UTF-16 text; save it as UTF-8")
    if b"\0" in first_line:
        raise ListError(f"{path} has NUL bytes, as UTF-16 text has; save it as UTF-8")
    if b"\r" in first_line.rstrip(b"\r\n"):
        raise ListError(f"{path} has lines that end in CR; save it as UTF-8 with LF line ends")
    return os.fsdecode(data.removeprefix(codecs.BOM_UTF8))


def is_video(name: str) -> bool:
    return name.lower().endswith(_ENDINGS)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # entry.is_dir() alone raises OSError for a link to itself.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))
