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
from typing import IO, TypedDict, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

FORMAT = "videoattn/1"

State = dict[str, Tensor]


class About(TypedDict):
    """What a checkpoint must know beside its weights, so that predicting needs nothing else."""

    config: dict[str, object]
    class_names: list[str]
    preprocessing: dict[str, object]


class Payload(About):
    """A checkpoint. Everything but the tensors is plain: strings, numbers, lists, dicts."""

    format: str
    version: str
    model: State
    optimizer: dict[str, object]
    progress: dict[str, object]
    best: dict[str, object]


class CheckpointError(ValueError):
    """A file that is not the checkpoint that was asked for."""


def save(path: Path, payload: Payload) -> None:
    """Writes `payload`, whole or not at all.

    Raises:
        ValueError: for a value that loading would refuse (not plain, not a tensor).
        OSError: when it cannot be written; what was at `path` is still there.
    """
    _check_plain(payload, "payload")
    _write_whole(path, lambda file: torch.save(payload, file))


def load(path: Path, *, class_names: Sequence[str] | None = None) -> Payload:
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
    return cast(Payload, payload)


def save_weights(path: Path, model: State, about: About) -> None:
    """Writes weights as safetensors, `about` as JSON in its metadata; whole or not at all."""
    metadata = {"format": FORMAT} | {key: json.dumps(value) for key, value in about.items()}
    # Copies: safetensors holds neither channels-last tensors nor two names for one memory.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.items()
    }
    data = to_safetensors(tensors, metadata=metadata)
    _write_whole(path, lambda file: file.write(data))


def load_weights(path: Path, *, class_names: Sequence[str] | None = None) -> tuple[State, About]:
    """Reads what `save_weights` wrote, checked against `class_names` where they are given.

    Raises:
        CheckpointError: for a missing, truncated or foreign file, and for other classes.
    """
    _check_exists(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: is truncated or not a safetensors file ({error})"
        ) from error
    missing = sorted(({"format"} | set(About.__annotations__)) - set(metadata))
    if missing:
        raise CheckpointError(
            f"{path}: its metadata lack {', '.join(missing)}, so it was not written by this "
            "package; convert a foreign one with `videoattn convert`"
        )
    about = {key: json.loads(metadata[key]) for key in About.__annotations__}
    if class_names is not None:
        check_classes(path, about["class_names"], class_names)
    return state, cast(About, about)


def restore(model: nn.Module, state: Mapping[str, Tensor], *, path: Path) -> None:
    """Loads weights into a model of exactly the same names and shapes.

    Raises:
        CheckpointError: that names the first tensors that differ; the model is unchanged.
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
    model.load_state_dict(dict(state))


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
    missing = [key for key in Payload.__annotations__ if key not in payload]
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
