"""Writes output files so that they are complete or absent, and never land outside their folder, and
reads arrays within limits.

A run folder may come from somebody else. Its links are not followed, and names that it supplies
(classes, videos) become file names only through `safe_file_name`.
"""

import csv
import errno
import math
import os
import re
import secrets
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO, StringIO
from pathlib import Path
from typing import IO, cast

import numpy as np


def safe_file_name(text: str) -> str:
    """Returns `text` as one path component: characters other than letters, digits, "-", "_" and
    "." become "_", and at most 100 bytes of UTF-8 are kept."""
    name = re.sub(r"[^\w.-]", "_", text).encode()[:100].decode(errors="ignore")
    return name if name.strip(".") else "_" * max(len(name), 1)


def spreadsheet_cell(value: object) -> object:
    """Returns a value, with a leading quote if it is text that a spreadsheet runs as a formula."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Returns rows as the text of a CSV file, with formulas quoted (`spreadsheet_cell`)."""
    text = StringIO(newline="")
    csv.writer(text).writerows([spreadsheet_cell(value) for value in row] for row in rows)
    return text.getvalue()


def file_url(path: str | Path) -> str:
    """Returns a path as a `file:` URL, because FFmpeg would read `day:1/x.mp4` as an address."""
    return f"file:{os.path.abspath(path)}"


def output_folder(folder: Path) -> Path:
    """Creates a folder for output, with its parents, and returns it.

    Raises:
        ValueError: If it is a symbolic link or a file. A link in a shared run may point anywhere.
    """
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link; remove it, or choose another output folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; remove it, or choose another output folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_empty(path: Path) -> None:
    """Raises a ValueError if a path exists, unless it is an empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} already exists; choose another name, or remove it")


def require_suffix(path: Path | None, suffix: str) -> None:
    """Raises a ValueError if the name of an output does not end in `suffix`, in any case, so that a
    mistyped name cannot replace a video. None is allowed."""
    if path is not None and path.suffix.lower() != suffix:
        raise ValueError(f"output: got {path}; need a file name that ends in {suffix}")


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write` with a new file and moves it to `path` when it is complete.

    The temporary file has an unpredictable name in the same folder. A link at `path` is replaced,
    not followed. After an error, the previous file is unchanged.

    Raises:
        OSError: If the file cannot be written; the message names `path`.
    """
    start = os.fsdecode(os.fsencode(path.name)[:100])
    partial = path.with_name(f".{start}.{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(partial, flags, 0o666), "wb") as raw:
            file = _ErrorKeeper(raw)
            try:
                write(cast(IO[bytes], file))
            except RuntimeError as error:
                # torch.save replaces the OSError of a full disk with a RuntimeError.
                raise file.error or error from error
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        kept = "the previous one is unchanged" if path.exists() else "nothing was written"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno, f"no space left to write {path}; {kept}; free some space"
            ) from error
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}; {kept}") from error
    finally:
        with suppress(OSError):  # it was renamed, or never created
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8; bytes of file names that are not UTF-8 are written as they are."""
    write_whole(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def read_arrays(
    path: Path, *, most: int, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads arrays from an .npz file without unpickling, and returns them by name.

    Checks sizes before memory is allocated: the unpacked sizes of members, and the array sizes in
    their headers.

    Args:
        most: Limit on the total size of these arrays in bytes, after decompression.
        names: The arrays to read, if they exist; all by default.

    Raises:
        ValueError: If the arrays exceed `most`, are damaged, or hold Python objects.
        zipfile.BadZipFile, zlib.error, EOFError: If the file is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        members = {item.filename: item for item in archive.infolist()}
        names = [name[:-4] for name in members if name.endswith(".npy")] if names is None else names
        found = {name: members[f"{name}.npy"] for name in names if f"{name}.npy" in members}
        if (total := sum(item.file_size for item in found.values())) > most:
            raise ValueError(f"it holds {total:,} bytes; the limit is {most:,}")
        return {name: _read_array(name, archive.read(item)) for name, item in found.items()}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Writes arrays to an .npz file. After an error, the previous file is unchanged."""
    content = BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(content, **arrays)  # type: ignore[arg-type]
    write_whole(path, lambda file: file.write(content.getbuffer()))


def _read_array(name: str, content: bytes) -> np.ndarray:
    """Returns the array in the content of a .npy file, in writable memory."""
    stream = BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in _NPY_HEADERS:
        raise ValueError(f"{name} has version {version} of NumPy's format; need 1.0 or 2.0")
    shape, is_fortran, dtype = _NPY_HEADERS[version](stream)
    data = bytearray(stream.getbuffer()[stream.tell() :])
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{name} is damaged: {dtype} {shape} in {len(data):,} bytes")
    return np.ndarray(shape, dtype, data, order="F" if is_fortran else "C")


_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Adds `path` to an OSError that names no file, such as one from writing to an open file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class _ErrorKeeper:
    """Wraps a file and remembers its first OSError."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _sync_folder(folder: Path) -> None:
    # Without it a power cut can undo the rename.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
