"""Locks and prepares the folder of a run, and remembers the run's data.

Only files that training wrote are ever erased, and only with `overwrite`.
"""

import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import LAST, Checkpoint
from videoattn.engine.parallel import Parallel
from videoattn.files import output_folder, write_text
from videoattn.recipe.config import Config
from videoattn.recipe.console import show
from videoattn.recipe.load import comparable, read_yaml, to_dict, to_yaml

RUNS = Path("runs")
CONFIG = "config.yaml"
LOCK = ".lock"

_WRITTEN = re.compile(
    r"config\.yaml|checkpoint-(last|epoch-\d+)\.pt|best\.safetensors|metrics\.jsonl|skipped\.jsonl"
    r"|missing_(training|test)\.txt|result\.json|\.lock|\..*\.partial"
    r"|tensorboard/events\.out\.tfevents\..*"
    r"|test/(report\.json|(predictions|per_class|confusion)\.csv|confusion\.png)"
    r"|explorer\.html|test/errors\.html|test/explorers/\d+_[^/]*\.html"
)
"""Files that training and testing write, relative to the run's folder."""
_START = re.compile(
    r"config\.yaml|\.lock|\..*\.partial|metrics\.jsonl|missing_\w+\.txt|tensorboard/.*"
)
"""Files that a run interrupted before its first step leaves."""

# Settings that may change when a run is resumed: they do not change its numbers.
_FREE = (
    "data.root",
    "data.num_workers",
    "data.max_failures",
    "data.decode_timeout_seconds",
    "train.save_every_steps",
    "train.keep_epochs",
)


@contextmanager
def claim(
    folder: Path, config: Config, parallel: Parallel, *, resume: bool, overwrite: bool
) -> Iterator[Checkpoint | None]:
    """Locks the run's folder for this job, and prepares it for training.

    The main process holds a lock on a file in the folder. The system releases it when the process
    ends, even after a crash.

    Yields:
        The checkpoint to resume from, or None for a run that starts in an empty folder.

    Raises:
        ValueError: If another process trains in the folder, if it holds a run or other files, or if
            there is nothing to resume.
    """
    problem, lock = "", None
    if parallel.is_main:  # the other ranks learn of a refusal through gather
        try:
            _check_usable(folder, resume=resume, overwrite=overwrite)
            lock = _lock(folder)
            _check_usable(folder, resume=resume, overwrite=overwrite)
        except (ValueError, OSError) as error:
            problem = str(error)
    problem = parallel.gather(problem)[0]
    try:
        if problem:
            raise ValueError(problem)
        if resume:
            yield _resumed(folder, config)
        else:
            _start(folder, config, parallel)
            yield None
    finally:
        if lock is not None:
            _unlock(folder, lock)


def remember_data(folder: Path, config: Config) -> None:
    """Records the data section of a run that this user trains, outside of the run's folder.

    `test` uses the record, so that it does not have to trust the config in the folder.
    """
    record = {"folder": str(folder.resolve()), "data": to_dict(config)["data"]}
    write_text(_record_of(folder), json.dumps(record, indent=2) + "\n")


def remembered_data(folder: Path) -> dict[str, Any] | None:
    """Returns the data section of a run that this user trained in this folder, or None."""
    path = _record_of(folder)
    if not path.is_file():
        return None
    data: dict[str, Any] = json.loads(path.read_text())["data"]
    return data


def _record_of(folder: Path) -> Path:
    home = os.environ.get("VIDEOATTN_HOME")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    state = Path(home) if home else Path(base, "videoattn")
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return state / "runs" / f"{digest[:32]}.json"


def _lock(folder: Path) -> int:
    """Returns a descriptor that locks the folder until it is closed or the process ends."""
    path = output_folder(folder) / LOCK
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(lock, 200).decode("utf-8", "replace").strip() or "another process"
        os.close(lock)
        raise ValueError(
            f"{folder} is in use by {holder}; wait for it to end, or choose another name=..."
        ) from error
    except OSError as error:  # some network file systems have no locks
        show(
            f"note: {folder} cannot be locked ({error.strerror}): make sure that no other process "
            "trains in it"
        )
    if not path.exists() or path.stat().st_ino != os.fstat(lock).st_ino:
        os.close(lock)  # the previous holder removed this file after we opened it
        return _lock(folder)
    os.ftruncate(lock, 0)
    os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return lock


def _unlock(folder: Path, lock: int) -> None:
    (folder / LOCK).unlink(missing_ok=True)  # while it is held
    os.close(lock)


def _check_usable(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Checks that a run can be resumed or started in the folder.

    Raises:
        ValueError: If there is nothing to resume, or a new run would erase or mix with other files.
    """
    if resume:
        if not (folder / LAST).exists():
            raise ValueError(
                f"nothing to resume: {folder / LAST} does not exist; leave out --resume"
            )
        return
    if not folder.is_dir() or folder.is_symlink():
        return  # absent, or refused when it is created
    for name in ("tensorboard", "test"):
        if (folder / name).is_symlink():
            raise ValueError(f"{folder / name} is a link; remove it, or choose another name=...")
    names = [name for name in _files(folder) if name != LOCK]
    if not names:
        return
    if not _is_config(folder / CONFIG):
        raise ValueError(f"{folder} holds files that are not a run; choose another name=...")
    if all(_START.fullmatch(name) for name in names) and not _has_steps(folder):
        return
    if not overwrite:
        advice = "continue it with --resume, " if (folder / LAST).exists() else ""
        raise ValueError(
            f"{folder} holds a run: {advice}start again with --overwrite, or choose another "
            "name=..."
        )


def _has_steps(folder: Path) -> bool:
    log = folder / "metrics.jsonl"
    return log.exists() and log.stat().st_size > 0


def _is_config(path: Path) -> bool:
    """Returns whether the file is a config of ours: its keys are those of a recipe."""
    try:
        values = read_yaml(path)
        return isinstance(values, dict) and "name" in values and bool(comparable(values))
    except ValueError:
        return False


def _files(folder: Path) -> list[str]:
    """Returns all files and links below the folder, relative to it; links are not followed."""
    return [
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, folders, files in os.walk(folder)
        for name in [*files, *(n for n in folders if os.path.islink(os.path.join(parent, n)))]
    ]


def _start(folder: Path, config: Config, parallel: Parallel) -> None:
    if parallel.is_main:
        for name in _files(folder):
            if _WRITTEN.fullmatch(name) and name != LOCK:
                (folder / name).unlink()
        write_text(folder / CONFIG, to_yaml(config))
        try:
            remember_data(folder, config)
        except OSError as error:
            show(f"note: `videoattn test {folder}` will ask for its data: {error}")
    parallel.barrier()


def _resumed(folder: Path, config: Config) -> Checkpoint:
    path = folder / LAST
    stored = checkpoint.load(path)
    _check_same(comparable(stored["config"]), to_dict(config), path)
    for leftover in folder.glob(".*.partial"):
        leftover.unlink(missing_ok=True)
    return stored


def _check_same(theirs: dict[str, Any], ours: dict[str, Any], path: Path) -> None:
    before, now = _flat(theirs), _flat(ours)
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key) and key not in _FREE
    ]
    if changed:
        raise ValueError(
            f"{path} was trained with another config: {'; '.join(changed[:5])}. Resume with "
            f"{path.with_name(CONFIG)}, or train under another name=..."
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
