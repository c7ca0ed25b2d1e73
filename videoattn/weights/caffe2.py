"""Reading Caffe2's pickles: arrays by name, and nothing that a pickle could run.

A pickle is a program that may call any function it names. `read_blobs` answers the few names that
an array is stored by with stand-ins of its own, which do nothing but keep numbers; NumPy itself is
not handed over, because the state of an array or a dtype can be forged. Every other name is
refused before anything is called.

Files are of Python 2 (bytes are `str`, read as latin-1), or of Python 3, at any protocol.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

_NUMBERS = "fiub"  # kinds of dtype that an array may have; objects, text and records are refused


class _DType:
    """What `numpy.dtype(code)` is stored by: its code, then its byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code
        self.order = "|"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = str(state[1])

    def real(self) -> np.dtype:
        dtype = np.dtype(str(self.code))
        if dtype.kind not in _NUMBERS:
            raise pickle.UnpicklingError(f"an array of {dtype}, not of numbers")
        return dtype.newbyteorder(">") if self.order == ">" else dtype


class _Array:
    """What an array is stored by: it is made empty, then given its shape, dtype and bytes."""

    def __init__(self, *_: object) -> None:
        self.value = np.empty(0, np.float32)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C").value


def _array(data: object, dtype: _DType, shape: tuple[int, ...], order: str = "C") -> _Array:
    """data: bytes, or what Python 2 took for them."""
    real = dtype.real()
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, bytes | bytearray):
        raise pickle.UnpicklingError(f"an array whose numbers are a {type(raw).__name__}")
    array = _Array()
    array.value = np.frombuffer(raw, real).reshape(shape, order="F" if order == "F" else "C")
    return array


def _scalar(dtype: _DType, data: object) -> _Array:
    return _array(data, dtype, ())


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 stores bytes at protocols 0 to 2; the encoding is always latin-1."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How it stores none."""
    return b""


_STAND_INS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    **{
        f"numpy.{core}.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (
            ("multiarray._reconstruct", _Array),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _array),
        )
    },
}


class RefusedGlobalError(Exception):
    """A pickle named something else than arrays and plain containers."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., object]:
        full_name = f"{module}.{name}"
        if full_name not in _STAND_INS:
            raise RefusedGlobalError(full_name)
        return _STAND_INS[full_name]


def read_blobs(path: Path) -> object:
    """What a Caffe2 pickle holds, its arrays and numbers as tensors on the CPU.

    Raises:
        ValueError: the pickle names anything but NumPy arrays and plain containers, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _to_tensors(_Unpickler(file, encoding="latin1").load())
    except RefusedGlobalError as error:
        raise ValueError(
            f"{path}: refused, nothing in it was run: the pickle asks for {error}, and a Caffe2 "
            "file holds NumPy arrays and plain containers only"
        ) from error
    # What a pickle cut anywhere, or bytes that are none, raise.
    except (
        pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError,
        AttributeError, MemoryError, OverflowError, UnicodeDecodeError,
    ) as error:  # fmt: skip
        raise ValueError(
            f"{path}: the pickle is cut short or damaged ({error}); fetch it again"
        ) from error


def _to_tensors(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _to_tensors(item) for key, item in value.items()}
    if isinstance(value, _Array):
        native = value.value.astype(value.value.dtype.newbyteorder("="))  # a copy that is writable
        return torch.from_numpy(native) if native.ndim else torch.tensor(native.item())
    if isinstance(value, int | float):
        return torch.tensor(value)
    return value
