"""Reads and writes the numbers of frames that training found, for the next run.

The file is an npz with one row per video: `paths` and `ends` as in the index, `num_frames` and
`num_bytes` (int64), and `fps` (float64).
"""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from videoattn.data.prepare.index import MAX_INDEX_BYTES
from videoattn.data.strings import PackedStrings
from videoattn.files import read_arrays, write_whole


class FrameCount(NamedTuple):
    """The number of frames of a file of this size, and its frame rate."""

    num_frames: int
    fps: float
    num_bytes: int


def write_counts(path: Path, counts: Mapping[str, FrameCount]) -> None:
    """Writes the counts of videos, by their paths; the file is complete or not written at all."""
    names = PackedStrings.of(counts)
    content = BytesIO()
    np.savez(
        content,
        paths=names.data,
        ends=names.ends,
        num_frames=np.array([count.num_frames for count in counts.values()], np.int64),
        num_bytes=np.array([count.num_bytes for count in counts.values()], np.int64),
        fps=np.array([count.fps for count in counts.values()], np.float64),
    )
    write_whole(path, lambda file: file.write(content.getbuffer()))


def read_counts(path: Path) -> dict[str, FrameCount]:
    """Returns the counts in a file, or none if it does not exist.

    Raises:
        ValueError: If the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        arrays = read_arrays(path, most=MAX_INDEX_BYTES)
        names = PackedStrings(arrays["paths"], arrays["ends"])
        columns = [arrays[name].tolist() for name in FrameCount._fields]
        return {
            name: FrameCount(*row)
            for name, row in zip(names, zip(*columns, strict=True), strict=True)
        }
    except Exception as error:  # those of zipfile, zlib and NumPy share no base class
        raise ValueError(f"{path} is damaged ({error}); delete it") from error
