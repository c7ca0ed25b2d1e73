"""Safe reading of checkpoint files: tensors only, never code, and an error that names the cause.

Projects wrap their weights differently: mmaction2 in "state_dict", PySlowFast and pytorchvideo in
"model_state", torchvision's training script and this project in "model"; DistributedDataParallel
puts "module." before every key. `read_state_dict` takes all of that off.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WRAPPERS = ("state_dict", "model_state", "model")
"""Keys under which a checkpoint may hold its weights."""

_LFS_POINTER = b"version https://git-lfs"
_HTML = (b"<!doctype html", b"<html", b"<?xml")
_ZIP = b"PK\x03\x04"  # since PyTorch 1.6
_PICKLE = b"\x80"  # before
_DAMAGED = "{}: the checkpoint is cut short or damaged; fetch it again"


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The weights in a .pth, .pyth, .pt or .safetensors file, on the CPU, without wrappers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a checkpoint, is cut short, needs code to be read, or wraps
            its weights in a way that is not known.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    _check_first_bytes(path)
    if path.suffix == ".safetensors":
        try:
            return _unwrap(load_file(path), path)
        except SafetensorError as error:
            raise ValueError(
                f"{path}: not a whole safetensors file ({error}); fetch it again"
            ) from error
    return _unwrap(_torch_load(path), path)


def _check_first_bytes(path: Path) -> None:
    """Downloads that went wrong are recognised by how they begin."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if not start:
        raise ValueError(f"{path}: the file is empty; fetch it again")
    if start.startswith(_LFS_POINTER):
        raise ValueError(
            f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` where it came from"
        )
    if start.startswith(_HTML):
        raise ValueError(
            f"{path}: a web page, not weights; the download was answered by a login or error page"
        )


def _torch_load(path: Path) -> object:
    with path.open("rb") as file:
        start = file.read(4)
    if start != _ZIP and not start.startswith(_PICKLE):
        raise ValueError(
            f"{path}: not a PyTorch checkpoint; expected .pth, .pyth, .pt or .safetensors"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise ValueError(
                f"{path}: holds Python objects beside its tensors, which could run code when "
                "read; where you trust the file, save its state dict alone with torch.save"
            ) from error
        raise ValueError(_DAMAGED.format(path)) from error
    # What a zip without its directory, a short file and a pickle cut inside an opcode raise.
    except (RuntimeError, OSError, EOFError, KeyError, IndexError) as error:
        raise ValueError(_DAMAGED.format(path)) from error


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    """The mapping of names to tensors inside a checkpoint."""
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"{path}: holds a {type(loaded).__name__}, not a mapping of names to tensors"
        )
    found = loaded
    if not _is_state_dict(found):
        inside = [key for key in WRAPPERS if _is_state_dict(loaded.get(key))]
        if not inside:
            raise ValueError(
                f"{path}: found no weights; its keys are {_first(loaded)}; weights are looked for "
                f"at the top and under {', '.join(WRAPPERS)}"
            )
        found = loaded[inside[0]]
    if all(key.startswith("module.") for key in found):
        found = {key.removeprefix("module."): value for key, value in found.items()}
    return dict(found)


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _first(keys: Mapping[object, object]) -> str:
    shown = ", ".join(str(key) for key in list(keys)[:5])
    return f"{shown}, ..." if len(keys) > 5 else shown or "none"
