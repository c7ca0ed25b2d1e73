"""Reads videos that are stored as folders of images."""

from pathlib import Path

import numpy as np
import PIL.Image
from PIL import UnidentifiedImageError

from videoattn.data.decode.source import DecodeError, FrameFolder, FrameIndices, Image, Images


def read_folder(source: FrameFolder, indices: FrameIndices) -> Images:
    """Yields the position in `indices` and the image of each frame.

    Raises:
        DecodeError: If a frame is missing, damaged, or differs in size.
    """
    size: tuple[int, ...] | None = None
    for slot, index in enumerate(indices.tolist()):
        name = source.template.format(index + 1)
        image = _read(source.path, name)
        size = size or image.shape
        if image.shape != size:
            sizes = [f"{width}x{height}" for height, width, _ in (image.shape, size)]
            raise DecodeError(source, f"{name} is {sizes[0]}, but others are {sizes[1]}")
        yield slot, image


def count_folder(source: FrameFolder) -> int:
    """Returns the number of frames before the first missing one.

    Raises:
        DecodeError: If the folder or its first frame is missing.
    """
    try:
        names = {entry.name for entry in source.path.iterdir()}
    except OSError as error:
        raise DecodeError(source, str(error.strerror or error)) from error
    count = 0
    while source.template.format(count + 1) in names:
        count += 1
    if count == 0:
        raise DecodeError(source, f"no frame {source.template.format(1)} in the folder")
    return count


def _read(folder: Path, name: str) -> Image:
    try:
        with PIL.Image.open(folder / name) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DecodeError(folder, f"{name} is missing") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DecodeError(folder, f"{name} is damaged: {error}") from error
