"""Reads checkpoint files safely: tensors only, never code. Errors name the cause.

Projects wrap their weights differently: mmaction2 in "state_dict", PySlowFast and pytorchvideo in
"model_state", torchvision's training script and this project in "model", Caffe2 in "blobs".
DistributedDataParallel puts "module." before every key, and the TSN and TSM authors' code
"base_model.", with "new_fc." for the classifier. `read_state_dict` removes all of them.
"""

import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from videoattn.errors import first_few
from videoattn.weights.caffe2 import read_blobs

WRAPPERS = ("state_dict", "model_state", "model", "blobs")
"""Keys under which a checkpoint may hold its weights."""

_LFS_POINTER = b"version https://git-lfs"
_HTML = (b"<!doctype html", b"<html", b"<?xml")
_ZIP = b"PK\x03\x04"  # of torch.save since PyTorch 1.6
_BEFORE_ZIP = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch's magic number
_PICKLE = b"\x80"  # at protocol 2 and later
_DAMAGED = "{}: the checkpoint is cut short or damaged; fetch it again"


class _LeftOut:
    """Replaces objects of training logs in a file: accepts any arguments and does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# Training scripts save these with the weights: mmengine its history of losses, torchvision its
# command line. Their classes are neither needed nor called.
_LOG_OBJECTS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "argparse.Namespace",
    "builtins.getattr",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{c}.multiarray.{n}" for c in ("core", "_core") for n in ("_reconstruct", "scalar")),
)


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Returns the weights in a .pth, .pyth, .pt, .safetensors or Caffe2 .pkl file, on the CPU.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a checkpoint, is truncated or too large, would run code, or
            wraps its weights in an unknown way.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    check_first_bytes(path)
    if path.suffix == ".safetensors":
        try:
            return _unwrap(load_file(path), path)
        except SafetensorError as error:
            raise ValueError(
                f"{path}: not a whole safetensors file ({error}); fetch it again"
            ) from error
    return _unwrap(_load(path), path)


def check_first_bytes(path: Path) -> None:
    """Raises a ValueError for failed downloads, which it recognizes by their first bytes."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if not start:
        raise ValueError(f"{path}: the file is empty; fetch it again")
    if start.startswith(_LFS_POINTER):
        raise ValueError(
            f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its repository"
        )
    if start.startswith(_HTML):
        raise ValueError(
            f"{path}: a web page, not weights: probably a login or error page; download the file "
            "again"
        )


def _load(path: Path) -> object:
    with path.open("rb") as file:
        start = file.read(len(_BEFORE_ZIP))
    if start.startswith(_ZIP) or _BEFORE_ZIP.startswith(start[:4]):
        return _torch_load(path)
    if path.suffix == ".pkl" or start.startswith(_PICKLE):
        return read_blobs(path)
    raise ValueError(
        f"{path}: not a PyTorch checkpoint; expected .pth, .pyth, .pt, .safetensors or .pkl"
    )


def _torch_load(path: Path) -> object:
    inert: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
        (_LeftOut, name) for name in _LOG_OBJECTS
    ]
    try:
        with torch.serialization.safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript, and a damaged pickle's protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise ValueError(
                f"{path}: holds Python objects besides tensors ({refused[1]}), which could run "
                "code when read; if you trust the file, save only its state dict with torch.save"
            ) from error
        raise ValueError(_DAMAGED.format(path)) from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(
            f"{path}: the checkpoint is damaged or too large; fetch it again"
        ) from error
    except Exception as error:  # the errors that damage causes in torch share no base class
        raise ValueError(_DAMAGED.format(path)) from error


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    """Returns the mapping of names to tensors inside a checkpoint."""
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"{path}: holds a {type(loaded).__name__}; need a mapping of names to tensors"
        )
    found = loaded
    if not _is_state_dict(found):
        inside = [key for key in WRAPPERS if _is_state_dict(loaded.get(key))]
        if not inside:
            raise ValueError(
                f"{path}: found no weights; its keys are {first_few(map(str, loaded))}; weights "
                f"may be at the top or under {', '.join(WRAPPERS)}"
            )
        found = loaded[inside[0]]
    if all(key.startswith("module.") for key in found):
        found = {key.removeprefix("module."): value for key, value in found.items()}
    if all(key.startswith(("base_model.", "new_fc.")) for key in found):
        short = {key: key.removeprefix("base_model.") for key in found}
        found = {re.sub(r"^new_fc\.", "fc.", short[key]): value for key, value in found.items()}
    return dict(found)


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )
