"""A video as a folder of pictures: `decode` and `count_frames` for those.

Frame i is the file `template.format(i + 1)`: published lists number frames from 1.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from videoattn.data.decode import DecodeError
from videoattn.types import Frames


def decode_folder(path: str | Path, indices: Sequence[int] | np.ndarray, template: str) -> Frames:
    """The asked frames, RGB, in the asked order (any order, repeats allowed).

    Raises: DecodeError for a missing or damaged frame, and for frames that differ in size;
    ValueError for a negative index or no index at all.
    """
    asked = np.asarray(indices, dtype=np.int64)
    if asked.size == 0 or asked.min() < 0:
        raise ValueError(f"indices: got {asked.tolist()}; need one or more, none negative")
    wanted, places = np.unique(asked, return_inverse=True)
    frames = [_read(Path(path), int(index), template) for index in wanted]
    for index, frame in zip(wanted, frames, strict=True):
        if frame.shape != frames[0].shape:
            sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (frame, frames[0])]
            name = template.format(index + 1)
            raise DecodeError(path, f"{name} is {sizes[0]}, but others are {sizes[1]}")
    return torch.from_numpy(np.stack(frames)[places.reshape(-1)]).permute(0, 3, 1, 2)


def count_folder(path: str | Path, template: str) -> tuple[int, float]:
    """(how many frames there are from the first on without a gap, 0.0: no rate is known).

    Raises: DecodeError for a folder that is missing or has no first frame.
    """
    try:
        there = {entry.name for entry in Path(path).iterdir()}
    except OSError as error:
        raise DecodeError(path, str(error.strerror or error)) from error
    count = 0
    while template.format(count + 1) in there:
        count += 1
    if count == 0:
        raise DecodeError(path, f"no frame {template.format(1)} in the folder")
    return count, 0.0


def _read(folder: Path, index: int, template: str) -> UInt8[np.ndarray, "H W C"]:
    file = folder / template.format(index + 1)
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DecodeError(folder, f"{file.name} is missing") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DecodeError(folder, f"{file.name} is damaged: {error}") from error
