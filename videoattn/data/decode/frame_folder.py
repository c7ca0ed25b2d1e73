"""Reads videos that are stored as folders of images."""

import warnings
from pathlib import Path

import numpy as np
import PIL.Image

from videoattn.data.decode.container import MAX_PIXELS, check_pixels
from videoattn.data.decode.source import DecodeError, FrameFolder, FrameIndices, Image, Images

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""The formats that are read, as Pillow names them. It has others, such as EPS, which runs a
program."""


def read_folder(source: FrameFolder, indices: FrameIndices) -> Images:
    """Yields the position in `indices` and the image of each frame.

    Raises:
        DecodeError: If a frame is missing, damaged, or differs in size.
    """
    size: tuple[int, ...] | None = None
    for slot, index in enumerate(indices.tolist()):
        name = source.name(index)
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
    while source.name(count) in names:
        count += 1
    if count == 0:
        raise DecodeError(source, f"no frame {source.name(0)} in the folder")
    return count


def _read(folder: Path, name: str) -> Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its metadata and size; the latter is checked
            with PIL.Image.open(folder / name, formats=FORMATS) as image:
                check_pixels(folder / name, *image.size)
                return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DecodeError(folder, f"{name} is missing") from error
    except PIL.Image.DecompressionBombError as error:
        raise DecodeError(folder, f"{name} exceeds the limit of {MAX_PIXELS:,} pixels") from error
    except DecodeError:
        raise
    except Exception as error:  # the formats' errors share no base class
        raise DecodeError(folder, f"{name} is damaged: {error}") from error
