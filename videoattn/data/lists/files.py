"""Lists the videos in a folder: from its index, or by walking through it."""

import codecs
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float64, Int64

from videoattn.data.prepare.index import read_index

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ts .webm .wmv".split()  # noqa: SIM905
)
_ENDINGS = tuple(VIDEO_SUFFIXES)

MAX_VISITS = 100
"""How often `walk` may visit a folder: links between a few folders can make very many paths."""


class ListError(ValueError):
    """An error in a list file, or in the files that it names. The message names the file."""


class Found(NamedTuple):
    """Existing files: sorted paths relative to the root, and facts from the index.

    Args:
        num_frames: The number of frames of each file; 0 if unknown, as without an index.
        fps: Frames per second of each file; 0 if unknown.
        others: Files that do not have a video's extension; an index does not contain them.
    """

    paths: list[str]
    num_frames: Int64[np.ndarray, " N"]
    fps: Float64[np.ndarray, " N"]
    others: Sequence[str] = ()

    @classmethod
    def of(cls, paths: list[str], others: Sequence[str] = ()) -> "Found":
        return cls(paths, np.zeros(len(paths), np.int64), np.zeros(len(paths)), others)


def all_videos(root: Path, folder: str = "") -> Found:
    """Returns every video in `root/folder` and below; `folder` ends in a slash, or is empty."""
    if (index := read_index(root)) is None:
        files = sorted(walk(root / folder, folder))
        others = [path for path in files if not is_video(path)]
        return Found.of([path for path in files if is_video(path)], others)
    # Earlier versions indexed hidden files. Valid paths do not lead outside the root.
    paths = list(index.paths)
    rows = [
        row
        for row, path in enumerate(paths)
        if path.startswith(folder) and not path.startswith(("/", ".")) and "/." not in path
    ]
    return Found([paths[row] for row in rows], index.num_frames[rows], index.fps[rows])


def walk(folder: Path | str, prefix: str = "") -> Iterator[str]:
    """Yields the path of every file in a folder and below, except for hidden files and folders.

    Follows links to folders, except links to a folder that contains them, which would never end.

    Args:
        prefix: Text to put before each path, which is relative to `folder`.

    Raises:
        ValueError: If links lead to one folder in more than `MAX_VISITS` ways.
    """
    top = Path(folder)
    visits: Counter[tuple[int, int]] = Counter()
    for path, folders, names in os.walk(top, followlinks=True, onerror=_raise_unless_closed):
        here = Path(path)
        above = here.parents[: len(here.parts) - len(top.parts)]
        if any(map(here.samefile, above)):
            name = repr(path)[1:-1]  # control characters are escaped
            warnings.warn(f"{name} links to a folder above it and is skipped", stacklevel=2)
            folders.clear()
            continue
        state = here.stat()
        visits[state.st_dev, state.st_ino] += 1
        if visits[state.st_dev, state.st_ino] > MAX_VISITS:
            raise ValueError(
                f"{path}: links lead to it in more than {MAX_VISITS} ways; remove some"
            )
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = "".join(f"{name}/" for name in here.parts[len(top.parts) :])
        yield from (f"{prefix}{inside}{name}" for name in names if not name.startswith("."))


def _raise_unless_closed(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | PermissionError):  # such as lost+found
        raise error


def _raise(error: OSError) -> NoReturn:
    raise error


def folders_in(folder: Path) -> list[str]:
    _, folders, _ = next(os.walk(folder, onerror=_raise))
    return sorted(name for name in folders if not name.startswith("."))


def resolved(root: Path, paths: Iterable[str]) -> Iterator[str]:
    """Yields each path with the links in its folder resolved, but not a link to the file itself."""

    @cache  # resolving every path takes nine times as long
    def resolve(folder: str) -> str:
        return os.path.join(os.path.realpath(root / folder), "")

    for path in paths:
        folder, _, name = path.rpartition("/")
        yield resolve(folder) + name


def outside(root: Path, paths: Sequence[str]) -> set[str]:
    """Returns the paths whose files are outside of the root, because a link leads there.

    The root itself may be a link.
    """
    top = os.path.join(os.path.realpath(root), "")
    files = (
        os.path.realpath(file) if os.path.islink(file) else file for file in resolved(root, paths)
    )
    return {path for path, file in zip(paths, files, strict=True) if not file.startswith(top)}


def existing_root(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"root: {root} does not exist; need the folder of the videos")
    return root


def first_folder(root: Path, names: Sequence[str]) -> str:
    """Returns the first existing folder, ending in a slash, or "" (the root) if none exists."""
    return next((f"{name}/" for name in names if (root / name).is_dir()), "")


def first_file(root: Path, folders: Iterable[str], names: Sequence[str], description: str) -> Path:
    """Returns the first file with one of the names in one of the folders, which end in a slash."""
    tried = [root / f"{folder}{name}" for folder in folders for name in names]
    for path in tried:
        if path.is_file():
            return path
    raise ListError(f"{description} was not found; looked for {', '.join(map(str, tried))}")


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file without its byte order mark.

    Bytes that are not UTF-8, as in some file names, are decoded as `os.fsdecode` does.

    Raises:
        ListError: If the text is UTF-16, or its first line has NUL bytes or lone CR line endings.
    """
    data = path.read_bytes()
    first_line = data[: data.find(b"\n") + 1 or len(data)]
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ListError(f"{path} is UTF-16 text; save it as UTF-8")
    if b"\0" in first_line:
        raise ListError(f"{path} has NUL bytes, as UTF-16 text has; save it as UTF-8")
    if b"\r" in first_line.rstrip(b"\r\n"):
        raise ListError(f"{path} has lines that end in CR; save it as UTF-8 with LF line endings")
    return os.fsdecode(data.removeprefix(codecs.BOM_UTF8))


def is_video(name: str) -> bool:
    return name.lower().endswith(_ENDINGS)
