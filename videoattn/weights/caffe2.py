"""Reads arrays from Caffe2's pickles without running code.

A pickle is a program that may call any function it names. `read_blobs` allows only the names that
stored arrays use, and replaces each by a class or function of this module that only holds numbers.
NumPy's own functions are not used, because the state of an array or a dtype can be forged. Any
other name is refused before anything is called.

Files come from Python 2 (bytes are `str`, read as latin-1) or Python 3, at any protocol.
"""

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

_NUMBERS = "fiub"  # allowed kinds of dtype; objects, text and records are refused


class _DType:
    """Replaces `numpy.dtype`, which is stored as its code, then its byte order."""

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
    """Replaces an array, which is created empty, then gets its shape, dtype and bytes."""

    def __init__(self, *_: object) -> None:
        self.value = np.empty(0, np.float32)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C").value


class _Function:
    """A function that a pickle can call, but whose attributes it cannot set."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *args: object) -> object:
        return self._call(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a function with a state")


def _array(data: object, dtype: _DType, shape: tuple[int, ...], order: str = "C") -> _Array:
    """Creates an array from `data`: bytes, or the `str` that Python 2 stored for them."""
    real = dtype.real()
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, bytes | bytearray):
        raise pickle.UnpicklingError(f"an array whose numbers are a {type(raw).__name__}")
    array = _Array()
    array.value = np.frombuffer(raw, real).reshape(shape, order="F" if order == "F" else "C")
    return array


_STAND_INS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": OrderedDict,
    # How Python 3 stores bytes at protocols 0 to 2. The encoding is always latin-1.
    "_codecs.encode": _Function(lambda text, encoding: text.encode("latin1")),
    "__builtin__.bytes": _Function(lambda: b""),
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    **{
        f"numpy.{core}.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (
            ("multiarray._reconstruct", _Array),
            ("multiarray.scalar", _Function(lambda dtype, data: _array(data, dtype, ()))),
            ("numeric._frombuffer", _Function(_array)),
        )
    },
}


class RefusedGlobalError(Exception):
    """Raised for a pickle that names anything but arrays and plain containers."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., object]:
        full_name = f"{module}.{name}"
        if full_name not in _STAND_INS:
            raise RefusedGlobalError(full_name)
        return _STAND_INS[full_name]


def read_blobs(path: Path) -> object:
    """Returns the content of a Caffe2 pickle, with arrays and numbers as tensors on the CPU.

    Raises:
        ValueError: If the pickle names anything but NumPy arrays and plain containers, is damaged,
            or is too large.
    """
    try:
        with path.open("rb") as file:
            _check_memo(file)
            return _to_tensors(_Unpickler(file, encoding="latin1").load(), {})
    except RefusedGlobalError as error:
        raise ValueError(
            f"{path}: refused without running it: the pickle needs {error}; a Caffe2 file holds "
            "only NumPy arrays and plain containers"
        ) from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: the pickle is damaged or too large; fetch it again") from error
    # A truncated pickle, or bytes that are not a pickle, raise any of these.
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        raise ValueError(
            f"{path}: the pickle is cut short or damaged ({error}); fetch it again"
        ) from error


def _check_memo(file: BinaryIO) -> None:
    """Checks that no memo number exceeds the count of opcodes before it, then rewinds the file.

    Python's unpickler allocates memory for all numbers up to the largest, so that a file of nine
    bytes could allocate gigabytes.
    """
    for count, (opcode, number, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (number or 0) > count:
            raise pickle.UnpicklingError(f"memo number {number} is too large")
    file.seek(0)


def _to_tensors(value: object, done: dict[int, object]) -> object:
    """Converts arrays and numbers; `done` maps the id of a mapping to its converted copy. Without
    it, a mapping that is shared n times at every level takes exponential time."""
    if isinstance(value, Mapping):
        if id(value) not in done:
            converted: dict[object, object] = {}
            done[id(value)] = converted  # before its items: it may contain itself
            converted.update((key, _to_tensors(item, done)) for key, item in value.items())
        return done[id(value)]
    if isinstance(value, _Array):
        native = value.value.astype(value.value.dtype.newbyteorder("="))  # a copy that is writable
        return torch.from_numpy(native) if native.ndim else torch.tensor(native.item())
    if isinstance(value, int | float):
        return torch.tensor(value)
    return value
