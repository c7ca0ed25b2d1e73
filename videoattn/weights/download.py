"""Downloads the published files of public models once, and checks them at each use.

A file is kept as published, in `cache_folder()/weights/HOST/PATH` of its address. Its SHA-256 must
start with the digits in the table of public models. If the table has no digits, the SHA-256 of the
first download is stored next to the file, and checked at each later use.

The addresses are those of the table. VIDEOATTN_OFFLINE=1 forbids downloads, and
VIDEOATTN_MIRROR=http://host:port replaces the scheme and the host of every address.
VIDEOATTN_NONCOMMERCIAL=1 states that you accept licenses that forbid commercial use. Otherwise
files under such licenses are not downloaded.
"""

import fcntl
import hashlib
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

import torch
from rich.console import Console

from videoattn.files import write_text
from videoattn.weights.public import PUBLIC
from videoattn.weights.read import check_first_bytes, read_state_dict
from videoattn.weights.row import PublicModel

STALLED_SECONDS = 30
"""A download fails if nothing arrives for this time."""


class DownloadError(ValueError):
    """Raised if a model's file cannot be downloaded, or differs from the published one.

    `problem` is the message without its last part, the advice for Python.
    """

    def __init__(self, name: str, problem: str) -> None:
        self.problem = f"{name}: {problem}"
        super().__init__(f"{self.problem}; if you have the file: load_public({name!r}, FILE)")


def cache_folder() -> Path:
    """Returns the folder of downloads: $VIDEOATTN_HOME, else $XDG_CACHE_HOME/videoattn, else
    ~/.cache/videoattn."""
    if home := os.environ.get("VIDEOATTN_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videoattn"


def cached_file(row: PublicModel) -> Path:
    """Returns the path of a public model's file in our cache or torch.hub's; it may not exist."""
    assert row.url is not None
    address = urlsplit(row.url)
    file = cache_folder() / "weights" / address.netloc / address.path.lstrip("/")
    of_torch = Path(torch.hub.get_dir(), "checkpoints", file.name)
    # Files of two models may have the same name, unless the name has the hash.
    named_by_hash = row.file.sha256 and row.file.sha256 in file.name
    return of_torch if named_by_hash and of_torch.is_file() and not file.is_file() else file


def fetch(name: str) -> Path:
    """Returns the path of a public model's file, which is downloaded if it is not in the cache.

    If several processes need a file, one downloads it and the others wait.

    Raises:
        DownloadError: If no file is published, it cannot be downloaded, or its SHA-256 is wrong.
    """
    row = PUBLIC[name]
    if row.url is None:
        raise DownloadError(name, f"no file is published: {row.file.absent}")
    file = cached_file(row)
    if not file.is_file():
        _check_allowed(name, row, file)
        try:
            with _locked(file) as is_locked:
                if not file.is_file():  # while this process waited
                    _download(name, row, file, clean=is_locked)
        except OSError as error:
            raise DownloadError(
                name,
                f"{row.url} cannot be kept in {file.parent}: {error.strerror or error}; free some "
                "space, or set VIDEOATTN_HOME to another folder",
            ) from error
    digest = _digest(file)
    try:
        _check_digest(digest, row, file)
    except ValueError as error:
        advice = "delete it (and FILE.sha256 beside it, if any), and it is downloaded again"
        raise DownloadError(name, f"{error}; {advice}") from error
    if not row.file.sha256 and not _record(file).is_file() and os.access(file.parent, os.W_OK):
        write_text(_record(file), f"{digest}\n")  # of a file that the user put there
    return file


def _check_allowed(name: str, row: PublicModel, file: Path) -> None:
    if os.environ.get("VIDEOATTN_OFFLINE", "0") not in ("", "0"):
        raise DownloadError(
            name,
            f"{row.url} is not in the cache ({file}), and VIDEOATTN_OFFLINE forbids to download it",
        )
    if row.is_noncommercial and os.environ.get("VIDEOATTN_NONCOMMERCIAL", "0") in ("", "0"):
        raise DownloadError(
            name,
            f"its license, {row.license}, forbids commercial use; if you accept it, set "
            f"VIDEOATTN_NONCOMMERCIAL=1 to download {row.url}",
        )


@contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Holds a lock on the download of a file, after waiting for other processes that hold it.

    The system releases the lock when its holder ends, even after a crash. Yields False on file
    systems without locks, where several processes may download the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    path = file.with_name(f".{file.name}.lock")
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        yield _lock(lock, file)
    finally:
        os.close(lock)


def _lock(descriptor: int, file: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _note(f"waiting for another process that downloads {file}")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _download(name: str, row: PublicModel, file: Path, *, clean: bool) -> None:
    """Downloads the file under a temporary name, checks it, and renames it.

    Args:
        clean: Remove the remains of interrupted downloads.
    """
    for pattern in (f".*.partial.{file.name}*", f".{file.name}.*.partial") if clean else ():
        for leftover in file.parent.glob(pattern):
            leftover.unlink(missing_ok=True)
    # The temporary name has the file's suffix, which determines the format to read.
    partial = file.with_name(f".{secrets.token_hex(8)}.partial.{file.name}")
    url = _mirrored(row.url or "")
    _note(f"{name}: downloading {url} (license: {row.license})")
    try:
        _request(name, url, partial)
        digest = _digest(partial)
        try:
            check_first_bytes(partial)
            _check_digest(digest, row, file)
            read_state_dict(partial)
        except ValueError as error:
            reason = str(error).removeprefix(f"{partial}: ")
            raise DownloadError(name, f"{url} is not the published file: {reason}") from error
        if not row.file.sha256:
            write_text(_record(file), f"{digest}\n")
        os.replace(partial, file)
        _note(f"{name}: {file.stat().st_size / 1e6:.1f} MB in {file}")
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def _note(text: str) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print(text)


def _mirrored(url: str) -> str:
    """Returns the address with the scheme and the host of VIDEOATTN_MIRROR, if it is set."""
    mirror = os.environ.get("VIDEOATTN_MIRROR", "")
    if not mirror:
        return url
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"VIDEOATTN_MIRROR: got {mirror!r}; need http://HOST or https://HOST")
    return mirror.rstrip("/") + urlsplit(url).path


def _request(name: str, url: str, partial: Path) -> None:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout or STALLED_SECONDS)  # torch.hub sets none
    try:
        torch.hub.download_url_to_file(url, str(partial), progress=sys.stderr.isatty())
    except HTTPError as error:
        reason = f"{error.code} {error.reason}"
        raise DownloadError(name, f"{url} could not be downloaded ({reason})") from error
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        raise DownloadError(name, f"{url} could not be downloaded ({reason})") from error
    finally:
        socket.setdefaulttimeout(timeout)


def _check_digest(digest: str, row: PublicModel, file: Path) -> None:
    """Checks a SHA-256 against the published one, or against that of the first download."""
    record = _record(file)
    expected, since = row.file.sha256, "is not the published one"
    if not expected and record.is_file():
        expected, since = record.read_text().strip(), "changed since it was first downloaded"
    if not digest.startswith(expected):
        shown = expected[:16]
        raise ValueError(
            f"{file}: {since}: its SHA-256 starts with {digest[: len(shown)]}, not {shown}"
        )


def _record(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
