"""Checkpoints that are either whole or absent, and loading that says what is wrong.

A file is written under a temporary name, synced, and renamed: the last good one stays until the new
one is whole. Files are read with `weights_only=True`: they cannot run code.
"""

import errno
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NotRequired, TypedDict, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from videoattn import __version__

FORMAT = "videoattn/1"
LAST = "checkpoint-last.pt"
"""The newest checkpoint in a run's folder."""
WEIGHTS, ABOUT = "model.safetensors", "config.json"
"""What a folder to share holds: no code, nothing pickled."""

State = dict[str, Tensor]


class CheckpointMeta(TypedDict):
    """What a checkpoint must know beside its weights, so that predicting needs nothing else."""

    config: dict[str, object]
    class_names: list[str]
    preprocessing: dict[str, object]
    provenance: NotRequired[dict[str, object]]
    """Of converted weights: whose they are, their licence."""


class Checkpoint(CheckpointMeta):
    """A checkpoint. Everything but the tensors is plain: strings, numbers, lists, dicts."""

    format: str
    version: str
    model: State
    optimizer: dict[str, object]
    progress: dict[str, object]
    best: dict[str, object]


class CheckpointError(ValueError):
    """A file that is not the checkpoint that was asked for."""


def save(path: Path, payload: Checkpoint) -> None:
    """Writes `payload`, whole or not at all.

    Raises:
        ValueError: for a value that loading would refuse (not plain, not a tensor).
        OSError: when it cannot be written; what was at `path` is still there.
    """
    _check_plain(payload, "payload")
    _write_whole(path, lambda file: torch.save(payload, file))


def load(path: Path, *, class_names: Sequence[str] | None = None) -> Checkpoint:
    """Reads a checkpoint onto the CPU, checked against `class_names` where they are given.

    Raises:
        CheckpointError: for a missing, truncated or foreign file, and for other classes.
    """
    _check_is_zip(path)
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds objects other than tensors and plain values, so it is not a checkpoint "
            "of this package; convert a foreign one with `videoattn convert`"
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path}: is damaged ({str(error).splitlines()[0]}); use an older checkpoint"
        ) from error
    _check_format(path, payload)
    if class_names is not None:
        check_classes(path, payload["class_names"], class_names)
    return cast(Checkpoint, payload)


def save_weights(path: Path, model: State, about: CheckpointMeta) -> None:
    """Writes weights as safetensors, `about` as JSON in its metadata; whole or not at all."""
    metadata = {"format": FORMAT} | {key: json.dumps(value) for key, value in about.items()}
    # Copies: safetensors holds neither channels-last tensors nor two names for one memory.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.items()
    }
    data = to_safetensors(tensors, metadata=metadata)
    _write_whole(path, lambda file: file.write(data))


def save_folder(folder: Path, model: State, about: CheckpointMeta) -> None:
    """Writes a folder to share: weights, and a config.json that says what their metadata say."""
    save_weights(folder / WEIGHTS, model, about)
    text = json.dumps({"format": FORMAT, "version": __version__, **about}, indent=2) + "\n"
    _write_whole(folder / ABOUT, lambda file: file.write(text.encode()))


def read(path: Path) -> tuple[Path, State, CheckpointMeta]:
    """The file, weights and description in a run's folder (its last checkpoint), in a folder to
    share, or in a .pt or .safetensors file of ours. A shared folder's config.json may have been
    edited: what it says counts.

    Raises:
        CheckpointError: for what is none of these, and for a missing, damaged or foreign file.
    """
    weights = path / WEIGHTS
    if path.is_dir() and not (path / LAST).exists():
        there = [file.name for file in (weights, path / ABOUT) if file.exists()]
        if len(there) == 1:
            raise CheckpointError(
                f"{path}: has {there[0]} alone; a shared folder holds {WEIGHTS} and {ABOUT}"
            )
        if there:
            return weights, _read_weights(weights)[0], _read_about(path / ABOUT)
    file = path / LAST if path.is_dir() else path
    if not file.exists():
        raise CheckpointError(
            f"{path} is neither a run's folder with a {LAST}, nor a shared one with {WEIGHTS} and "
            f"{ABOUT}, nor a checkpoint; videoattn train writes one to runs/<name>"
        )
    if file.suffix == ".safetensors":
        return file, *load_weights(file)
    payload = load(file)
    return file, payload["model"], _about(payload)


def load_weights(
    path: Path, *, class_names: Sequence[str] | None = None
) -> tuple[State, CheckpointMeta]:
    """Reads what `save_weights` wrote, checked against `class_names` where they are given.

    Raises:
        CheckpointError: for a missing, truncated or foreign file, and for other classes.
    """
    state, metadata = _read_weights(path)
    missing = sorted(({"format"} | CheckpointMeta.__required_keys__) - set(metadata))
    if missing:
        raise CheckpointError(
            f"{path}: its metadata lack {', '.join(missing)}, so it was not written by this "
            "package; convert a foreign one with `videoattn convert`"
        )
    about = _about({key: json.loads(text) for key, text in metadata.items() if key != "format"})
    if class_names is not None:
        check_classes(path, about["class_names"], class_names)
    return state, about


def restore(model: nn.Module, state: Mapping[str, Tensor], *, path: Path) -> None:
    """Loads weights into a model of exactly the same names and shapes.

    Raises:
        CheckpointError: that names the first tensors that differ; the model is unchanged.
    """
    check_fit(model, state, path=path)
    model.load_state_dict(dict(state))


def check_fit(model: nn.Module, state: Mapping[str, Tensor], *, path: Path) -> None:
    """Checks that weights have exactly the model's names and shapes.

    Raises:
        CheckpointError: If they differ; the message names the first tensors that do.
    """
    own = model.state_dict()
    problems = [f"lacks {name}" for name in own if name not in state]
    problems += [f"has {name}, which the model has not" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        rest = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{path}: is of another model: {'; '.join(problems[:5])}{rest}; "
            "build the model from the checkpoint's own config"
        )


def check_classes(path: Path, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Whether a checkpoint was trained on these classes, in this order.

    Raises:
        CheckpointError: that says how many there are on either side, or which one differs.
    """
    if len(theirs) != len(ours):
        raise CheckpointError(
            f"{path}: was trained on {len(theirs)} classes, the data have {len(ours)}; "
            "use the data that it was trained on, or train a new classifier from its weights"
        )
    for number, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        if their != our:
            raise CheckpointError(
                f"{path}: class {number} is '{their}', in the data it is '{our}'; "
                "the classes must be the same, in the same order"
            )


def _read_weights(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    _check_exists(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: is truncated or not a safetensors file ({error})"
        ) from error


def _read_about(path: Path) -> CheckpointMeta:
    """What a shared folder's config.json says."""
    try:
        about = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged, not JSON ({error}); copy it again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        got = about.get("format") if isinstance(about, dict) else None
        raise CheckpointError(f"{path}: is of format {got}, this version reads {FORMAT}")
    missing = [key for key in sorted(CheckpointMeta.__required_keys__) if key not in about]
    if missing:
        raise CheckpointError(f"{path}: is damaged, it lacks {', '.join(missing)}; copy it again")
    names = about["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: its class_names are no list of names, one a class")
    return _about(about)


def _about(values: Mapping[str, object]) -> CheckpointMeta:
    return cast(
        CheckpointMeta,
        {key: values[key] for key in CheckpointMeta.__annotations__ if key in values},
    )


def _write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as raw:
            file = _Remembering(raw)
            try:
                write(cast(IO[bytes], file))
            except RuntimeError as error:
                # torch's writer turns a full disk into an error of its own.
                raise file.error or error from error
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        kept = "the previous one is unchanged" if path.exists() else "nothing was written"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno, f"no space left to write {path}; {kept}. Free some and use --resume"
            ) from error
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}; {kept}") from error
    finally:
        partial.unlink(missing_ok=True)


class _Remembering:
    """A file that keeps the error of its first failed write, whatever the caller makes of it."""

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


def _sync_folder(folder: Path) -> None:
    # Without it a power cut can undo the rename.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: is empty (0 bytes); use an older checkpoint")


def _check_is_zip(path: Path) -> None:
    _check_exists(path)
    if zipfile.is_zipfile(path):
        return
    with open(path, "rb") as file:
        begins_as_one = file.read(4) == b"PK\x03\x04"
    if begins_as_one:
        raise CheckpointError(
            f"{path}: is truncated ({path.stat().st_size} bytes, its end is missing); copy it "
            "again or use an older checkpoint"
        )
    raise CheckpointError(f"{path}: is not a PyTorch checkpoint; give a checkpoint-*.pt file")


def _check_format(path: Path, payload: object) -> None:
    if not isinstance(payload, dict) or "format" not in payload:
        keys = ", ".join(map(str, list(payload)[:5])) if isinstance(payload, dict) else "no dict"
        raise CheckpointError(
            f"{path}: was not written by this package (it holds {keys}, ...); convert a foreign "
            "one with `videoattn convert`"
        )
    if payload["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: is of format {payload['format']}, this version reads {FORMAT}"
        )
    missing = [key for key in sorted(Checkpoint.__required_keys__) if key not in payload]
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}; it cannot be used")


def _check_plain(value: object, place: str) -> None:
    """Whether `weights_only` loading will take it back: better known now than at the resume."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{place}[{number}]")
    elif type(value) not in (str, int, float, bool, type(None), torch.dtype) and not isinstance(
        value, Tensor
    ):
        raise ValueError(
            f"{place} is a {type(value).__name__}; a checkpoint holds tensors, strings, numbers, "
            "lists and dicts only"
        )
