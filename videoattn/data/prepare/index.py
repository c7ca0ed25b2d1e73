"""`videoattn_index.npz` in a data root: which videos are there, and how long they are.

With it, a list is checked and frames are counted without a look at any video. The file is a plain
npz of flat arrays, in the order of the paths: `paths` (uint8: the paths relative to the root, one
after the other), `ends` (int64: where each path ends), `num_frames` (int64; 0: not known, as of a
file that does not decode), `fps` (float64, frames a second), `height` and `width` (int32, pixels,
after rotation), `key_frames` (int64: how many). It may hold more arrays; nothing here reads them.
"""

from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float64, Int32, Int64

from videoattn.data.strings import PackedStrings

INDEX_NAME = "videoattn_index.npz"

_COLUMNS = {
    "paths": np.uint8,
    "ends": np.int64,
    "num_frames": np.int64,
    "fps": np.float64,
    "height": np.int32,
    "width": np.int32,
    "key_frames": np.int64,
}


class VideoIndex(NamedTuple):
    """One row per video of a data root."""

    paths: PackedStrings
    num_frames: Int64[np.ndarray, " N"]
    fps: Float64[np.ndarray, " N"]
    height: Int32[np.ndarray, " N"]
    width: Int32[np.ndarray, " N"]
    key_frames: Int64[np.ndarray, " N"]


def read_index(root: Path) -> VideoIndex | None:
    """None where the root has none.

    Raises: ValueError for a file that is not such an index.
    """
    path = root / INDEX_NAME
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            columns = [
                arrays[name].astype(dtype, casting="safe", copy=False)
                for name, dtype in _COLUMNS.items()
            ]
    except (KeyError, ValueError, TypeError, BadZipFile, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or no index ({error}); delete it, or write it anew with "
            "`videoattn prepare index`"
        ) from error
    data, ends, *rest = columns
    sizes = {array.shape for array in (ends, *rest)}
    if sizes != {(len(ends),)} or len(data) != ends.max(initial=0) or (np.diff(ends) < 0).any():
        raise ValueError(
            f"{path} is damaged: its arrays disagree; write it anew with `videoattn prepare index`"
        )
    return VideoIndex(PackedStrings(data, ends), *rest)


def write_index(root: Path, index: VideoIndex) -> Path:
    """Written whole or not at all; the rows are put in the order of their paths."""
    order = np.array(sorted(range(len(index.paths)), key=list(index.paths).__getitem__), np.int64)
    paths = index.paths.take(order)
    columns = {name: getattr(index, name)[order] for name in VideoIndex._fields[1:]}
    path = root / INDEX_NAME
    unfinished = path.with_suffix(".unfinished.npz")
    np.savez(unfinished, paths=paths.data, ends=paths.ends, **columns)
    unfinished.replace(path)
    return path
