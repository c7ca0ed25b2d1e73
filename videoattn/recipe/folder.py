"""Locks and prepares the folder of a run.

Only files that training wrote are ever erased, and only with `overwrite`.
"""

import fcntl
import io
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import register_after_fork
from pathlib import Path
from typing import Any, Literal

from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import LAST, Checkpoint
from videoattn.engine.parallel import Parallel
from videoattn.engine.trackers import read_records
from videoattn.files import output_folder, write_text
from videoattn.recipe.config import Config
from videoattn.recipe.console import show
from videoattn.recipe.load import comparable, read_yaml, to_dict, to_yaml
from videoattn.recipe.memory import remember_data
from videoattn.recipe.stored import with_earlier

Resume = bool | Literal["auto"]
"""Whether a run continues from its last checkpoint; "auto": only if there is one."""

RUNS = Path("runs")
CONFIG = "config.yaml"
LOCK = ".lock"
TRACKERS = "trackers.json"
"""The file with the identifiers of the run in MLflow and Weights & Biases."""

_WRITTEN = re.compile(
    r"config\.yaml|checkpoint-(last|epoch-\d+)\.pt|best(-stage-\d+)?\.safetensors"
    r"|(metrics|skipped)\.jsonl|missing_(training|test)\.txt|result\.json|trackers\.json|\.lock"
    r"|\..*\.partial"
    r"|tensorboard/events\.out\.tfevents\..*"
    r"|test/(report\.json|(predictions|per_class|confusion)\.csv|confusion\.png)"
    r"|explorer\.html|test/errors\.html|test/explorers/\d+_[^/]*\.html"
)
"""Files that training and testing write, relative to the run's folder."""
_START = re.compile(
    r"config\.yaml|\.lock|\..*\.partial|(metrics|skipped)\.jsonl|missing_\w+\.txt"
    r"|trackers\.json|tensorboard/.*"
)
"""Files that a run leaves if it is interrupted before its first checkpoint."""

# Settings that may change when a run is resumed: they do not change its numbers.
_FREE = (
    "data.root",
    "data.num_workers",
    "data.max_failures",
    "data.decode_timeout_seconds",
    "train.save_every_steps",
    "train.keep_epochs",
    "train.patience",
    "train.trackers",
)


@contextmanager
def claim(
    folder: Path, config: Config, parallel: Parallel, *, resume: Resume, overwrite: bool
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
            _check_usable(folder, config, resume=resume, overwrite=overwrite)
            lock = _lock(folder)
            _check_usable(folder, config, resume=resume, overwrite=overwrite)
        except (ValueError, OSError) as error:
            problem = str(error)
    problem, resumes = parallel.gather((problem, resume is True or (folder / LAST).exists()))[0]
    try:
        if problem:
            raise ValueError(problem)
        if resume and resumes:
            yield _resumed(folder, config, parallel)
        else:
            if parallel.is_main:
                for name in _files(folder):
                    if _WRITTEN.fullmatch(name) and name != LOCK:
                        (folder / name).unlink()
                write_text(folder / CONFIG, to_yaml(config))
                remember_data(folder, config)
            parallel.barrier()
            yield None
    finally:
        if lock is not None:
            (folder / LOCK).unlink(missing_ok=True)  # while the lock is held
            lock.close()


def folder_of(recipe: object, config: Config, resume: Resume) -> Path:
    """Returns the folder of a run: runs/<name>, or the folder of the config.yaml to resume, even if
    it was moved."""
    if resume and isinstance(recipe, str | Path) and Path(recipe).name == CONFIG:
        folder = Path(recipe).parent
        if (folder / LAST).exists() and read_yaml(Path(recipe)).get("name") == config.name:
            return folder
    return RUNS / config.name


def _lock(folder: Path) -> io.FileIO:
    """Returns a file that locks the folder until it is closed or the process ends."""
    path = output_folder(folder) / LOCK
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = io.FileIO(os.open(path, flags, 0o666), "r+")
    # A loader process would hold the lock for some seconds after this process ends.
    register_after_fork(lock, io.FileIO.close)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = lock.read(200).decode("utf-8", "replace").strip() or "another process"
        lock.close()
        raise ValueError(
            f"{folder} is in use by {holder}; wait for it to end, or choose another name=..."
        ) from error
    except OSError as error:  # some network file systems have no locks
        show(
            f"note: {folder} cannot be locked ({error.strerror}): make sure that no other process "
            "trains in it"
        )
    if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
        lock.close()  # the previous holder removed this file after we opened it
        return _lock(folder)
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return lock


def _check_usable(folder: Path, config: Config, *, resume: Resume, overwrite: bool) -> None:
    """Raises a ValueError if there is nothing to resume, or a new run would erase or mix with other
    files."""
    if resume and (folder / LAST).exists():
        return
    if resume is True:
        raise ValueError(f"nothing to resume: {folder / LAST} does not exist; leave out --resume")
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
    log = folder / "metrics.jsonl"
    has_steps = log.exists() and log.stat().st_size > 0
    is_start = all(_START.fullmatch(name) for name in names)
    if is_start and (not has_steps or (resume and _repeats_log(folder, config))):
        return
    if not overwrite:
        advice = "continue it with --resume, " if (folder / LAST).exists() else ""
        raise ValueError(
            f"{folder} holds a run: {advice}start again with --overwrite, or choose another "
            "name=..."
        )


def _repeats_log(folder: Path, config: Config) -> bool:
    """Returns whether a new run may overwrite the log in the folder: the log of a run with the same
    config that ended before its first checkpoint, in its first epoch."""
    records = read_records(folder / "metrics.jsonl", kind=str, epoch=int)
    is_first_epoch = all((r["kind"], r["epoch"]) == ("train", 1) for r in records)
    return is_first_epoch and not _changes(comparable(read_yaml(folder / CONFIG)), to_dict(config))


def earlier_settings(folder: Path) -> list[str]:
    """Returns the settings that the version of the run used but did not store in config.yaml, as
    key=value words. A resumed run keeps these settings."""
    path = folder / CONFIG
    values = read_yaml(path) if path.is_file() else None
    if not isinstance(values, dict):
        return []
    stored = flat(values)
    return [
        f"{key}={json.dumps(value)}"
        for key, value in flat(with_earlier(values)).items()
        if key not in stored
    ]


def _is_config(path: Path) -> bool:
    """Returns whether the file is a config of this package: its keys are those of a recipe."""
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


def _resumed(folder: Path, config: Config, parallel: Parallel) -> Checkpoint:
    path = folder / LAST
    stored = checkpoint.load(path)
    if changed := _changes(comparable(stored["config"]), to_dict(config)):
        raise ValueError(
            f"{path} was trained with another config: {'; '.join(changed[:5])}. Resume with "
            f"{path.with_name(CONFIG)}, or train under another name=..."
        )
    if parallel.is_main:
        for leftover in folder.glob(".*.partial"):
            leftover.unlink(missing_ok=True)
        remember_data(folder, config)
    return stored


def _changes(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Returns the settings that differ and change the numbers of a run."""
    before, now = flat(theirs), flat(ours)
    return [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key) and key not in _FREE
    ]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings as one dictionary with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found
