"""A video as a folder of pictures: `decode_each` and `count_frames` for those.

Frame i is the file `template.format(i + 1)`: published lists number frames from 1.
"""

from pathlib import Path

import numpy as np
import PIL.Image
from PIL import UnidentifiedImageError

from videoattn.data.decode.video import DecodeError, Image, Put, Wanted


def read_folder(path: str | Path, wanted: Wanted, put: Put, template: str) -> None:
    """Hands the wanted frames to `put`.

    Raises: DecodeError for a missing or damaged frame, and for frames that differ in size.
    """
    size: tuple[int, ...] | None = None
    for slot, index in enumerate(wanted.tolist()):
        image = _read(Path(path), index, template)
        size = size or image.shape
        if image.shape != size:
            sizes = [f"{width}x{height}" for height, width, _ in (image.shape, size)]
            name = template.format(index + 1)
            raise DecodeError(path, f"{name} is {sizes[0]}, but others are {sizes[1]}")
        put(slot, image)


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


def _read(folder: Path, index: int, template: str) -> Image:
    file = folder / template.format(index + 1)
    try:
        with PIL.Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DecodeError(folder, f"{file.name} is missing") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DecodeError(folder, f"{file.name} is damaged: {error}") from error
