"""Saves and loads checkpoints, safetensors files, and folders to share.

Each write is all or nothing. Reading cannot run code: pickles are loaded with `weights_only=True`.
"""

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from videoattn._version import __version__
from videoattn.engine.bounds import MAX_JSON_BYTES, check_bounds
from videoattn.files import write_text, write_whole

FORMAT = "videoattn/1"
LAST = "checkpoint-last.pt"
"""The newest checkpoint in a run folder."""
WEIGHTS, ABOUT = "model.safetensors", "config.json"
"""The two files of a shared folder: weights and metadata, without code or pickles."""

State = dict[str, Tensor]
_PLAIN = (str, int, float, bool, type(None), torch.dtype)


class CheckpointMeta(TypedDict):
    """The metadata that prediction needs besides the weights; `config` is a recipe's settings."""

    config: dict[str, object]
    class_names: list[str]
    preprocessing: dict[str, object]
    provenance: NotRequired[dict[str, object]]
    """Authors and license of converted weights."""


class Checkpoint(CheckpointMeta):
    """A training checkpoint: tensors, strings, numbers, lists and dicts only."""

    format: str
    version: str
    model: State
    optimizer: dict[str, object]
    progress: dict[str, object]
    best: dict[str, object]
    ema: NotRequired[State]  # the average of the weights, for prediction


class CheckpointError(ValueError):
    """Raised for a file that cannot be used: not a checkpoint, damaged, or of another model."""


def save(path: Path, payload: Checkpoint) -> None:
    """Writes a checkpoint.

    Raises:
        ValueError: If it holds a value that `load` would refuse (an arbitrary object).
        OSError: If it cannot be written; the previous file at `path` is unchanged.
    """
    _check_plain(payload, "payload")
    write_whole(path, lambda file: torch.save(payload, file))


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU.

    Raises:
        CheckpointError: If the file is missing or damaged, or this package did not write it.
    """
    _check_is_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a damaged pickle's protocol
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds objects other than tensors and plain values, so it is not a checkpoint "
            "of this package; convert it first"
        ) from error
    except Exception as error:  # the errors that damage causes in torch share no base class
        why = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: is damaged ({why}); use an older checkpoint") from error
    if not isinstance(payload, dict) or "format" not in payload:
        keys = ", ".join(map(str, list(payload)[:5])) if isinstance(payload, dict) else "no dict"
        raise CheckpointError(
            f"{path}: was not written by this package (it holds {keys}, ...); convert it first"
        )
    _check_format(path, payload["format"])
    missing = sorted(Checkpoint.__required_keys__ - set(payload))
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}; use another checkpoint")
    return cast(Checkpoint, payload)


def save_weights(path: Path, model: State, meta: CheckpointMeta) -> None:
    """Writes weights as safetensors, with `meta` as JSON in the file's metadata."""
    metadata = {"format": FORMAT} | {key: json.dumps(value) for key, value in meta.items()}
    # Copies, because safetensors stores neither channels-last tensors nor shared memory.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.items()
    }
    data = to_safetensors(tensors, metadata=metadata)
    write_whole(path, lambda file: file.write(data))


def save_folder(folder: Path, model: State, meta: CheckpointMeta) -> None:
    """Writes the weights (model.safetensors) and metadata (config.json) to a folder to share."""
    save_weights(folder / WEIGHTS, model, meta)
    text = json.dumps({"format": FORMAT, "version": __version__, **meta}, indent=2) + "\n"
    write_text(folder / ABOUT, text)


def read(path: Path) -> tuple[Path, State, CheckpointMeta]:
    """Reads the weights of a run folder (its last checkpoint), a shared folder, or a single file.

    If a checkpoint has averaged weights, they are read. The config.json of a shared folder takes
    precedence over the metadata in model.safetensors, because users may edit it.

    Returns:
        The file that was read, its weights, and its metadata.

    Raises:
        CheckpointError: If a file is missing or damaged, or this package did not write it.
    """
    weights = path / WEIGHTS
    if path.is_dir() and not (path / LAST).exists():
        found = [file.name for file in (weights, path / ABOUT) if file.exists()]
        if len(found) == 1:
            raise CheckpointError(
                f"{path}: has only {found[0]}; a shared folder needs {WEIGHTS} and {ABOUT}"
            )
        if found:
            return weights, _read_weights(weights)[0], _read_meta(path / ABOUT)
    file = path / LAST if path.is_dir() else path
    if not file.exists():
        raise CheckpointError(
            f"{path}: need the folder of a run with {LAST}, a shared folder with {WEIGHTS} and "
            f"{ABOUT}, or a checkpoint"
        )
    if file.suffix == ".safetensors":
        return file, *load_weights(file)
    payload = load(file)
    return file, payload.get("ema", payload["model"]), _meta_of(file, payload)


def load_weights(path: Path) -> tuple[State, CheckpointMeta]:
    """Reads the weights and the metadata from a file that `save_weights` wrote.

    Raises:
        CheckpointError: If the file is missing or damaged, or this package did not write it.
    """
    state, metadata = _read_weights(path)
    missing = sorted(({"format"} | CheckpointMeta.__required_keys__) - set(metadata))
    if missing:
        raise CheckpointError(
            f"{path}: its metadata lacks {', '.join(missing)}, so it was not written by this "
            "package; convert it first"
        )
    meta = {key: _from_json(path, text) for key, text in metadata.items() if key != "format"}
    return state, _meta_of(path, meta)


def restore(model: nn.Module, state: Mapping[str, Tensor], *, path: Path) -> None:
    """Loads the weights `state` into a model with exactly the same names and shapes.

    Raises:
        CheckpointError: As in `check_fit`; the model is then unchanged.
    """
    check_fit(model, state, path=path)
    model.load_state_dict(dict(state))


def check_fit(model: nn.Module, state: Mapping[str, Tensor], *, path: Path) -> None:
    """Checks that weights have exactly the model's names and shapes.

    Raises:
        CheckpointError: If they differ. The message has `path` and the first tensors that differ.
    """
    own = model.state_dict()
    problems = [f"lacks {name}" for name in own if name not in state]
    problems += [f"has {name}, which the model lacks" for name in state if name not in own]
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
    """Checks that `theirs`, the classes of the checkpoint at `path`, are `ours` in the same order.

    Raises:
        CheckpointError: If the number of classes differs, or a name does.
    """
    if len(theirs) != len(ours):
        raise CheckpointError(
            f"{path}: was trained on {len(theirs)} classes, but the data has {len(ours)}; "
            "use the data that it was trained on, or train a new classifier from its weights"
        )
    for number, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        if their != our:
            raise CheckpointError(
                f"{path}: class {number} is '{their}', but '{our}' in the data; "
                "the classes must be the same, in the same order"
            )


def _read_weights(path: Path) -> tuple[State, dict[str, str]]:
    _check_exists(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: is truncated or not a safetensors file ({error}); copy it again"
        ) from error


def _read_meta(path: Path) -> CheckpointMeta:
    with path.open("rb") as file:
        meta = _from_json(path, file.read(MAX_JSON_BYTES + 1))
    _check_format(path, meta.get("format") if isinstance(meta, dict) else None)
    if missing := sorted(CheckpointMeta.__required_keys__ - set(meta)):
        raise CheckpointError(f"{path}: is damaged: it lacks {', '.join(missing)}; copy it again")
    return _meta_of(path, meta)


def _from_json(path: Path, text: str | bytes) -> Any:
    if len(text) > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: metadata exceeds the limit of {MAX_JSON_BYTES:,} bytes")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged: not JSON ({error}); copy it again") from error


def _meta_of(path: Path, values: Mapping[str, object]) -> CheckpointMeta:
    names = values["class_names"]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: class_names: need a list of strings, one per class")
    meta = {key: values[key] for key in CheckpointMeta.__annotations__ if key in values}
    check_bounds(meta, f"{path}: the metadata")
    return cast(CheckpointMeta, meta)


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: does not exist; give a checkpoint, or the folder of a run")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: is empty (0 bytes); use an older checkpoint")


def _check_is_zip(path: Path) -> None:
    _check_exists(path)
    with suppress(zipfile.BadZipFile, ValueError):  # the directory of the zip file is damaged
        if zipfile.is_zipfile(path):
            return
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise CheckpointError(
                f"{path}: is truncated after {path.stat().st_size} bytes; copy it "
                "again or use an older checkpoint"
            )
    raise CheckpointError(f"{path}: is not a PyTorch checkpoint; give a checkpoint-*.pt file")


def _check_format(path: Path, found: object) -> None:
    if found != FORMAT:
        raise CheckpointError(f"{path}: has format {found}; need {FORMAT}; update the package")


def _check_plain(value: object, name: str) -> None:
    """Checks that `weights_only` loading accepts the value, so that a later resume cannot fail."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{name}[{number}]")
    elif not isinstance(value, Tensor) and type(value) not in _PLAIN:
        raise ValueError(
            f"{name} is a {type(value).__name__}; a checkpoint holds tensors, strings, numbers, "
            "lists and dicts only"
        )
