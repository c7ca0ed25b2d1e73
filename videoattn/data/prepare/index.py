"""Reads and writes the index of a data root, `videoattn_index.npz`.

The index replaces opening videos to check lists and count frames. The file is an npz of flat
arrays with one row per video, sorted by path: `paths` (uint8: the paths relative to the root,
concatenated), `ends` (int64: the end of each path), `num_frames` (int64; 0 if unknown, for example
if a file does not decode), `fps` (float64, frames per second), `height` and `width` (int32, pixels,
after rotation), `key_frames` (int64, their number).

`file_bytes` (int64), `start_ends` (int64), `start_packets` and `start_frames` (int64) hold the
`GroupStarts` of videos without timestamps: the starts of row i end at `start_ends[i]`. An index
without these four arrays loads, and further arrays are ignored.
"""

from bisect import bisect_left
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from videoattn.data.decode.packets import GroupStarts
from videoattn.data.strings import PackedStrings
from videoattn.files import read_arrays, write_whole

INDEX_NAME = "videoattn_index.npz"

MAX_INDEX_BYTES = 2**29
"""Largest index in memory, 512 MiB: some five million videos."""

_COLUMNS: dict[str, type] = {
    "paths": np.uint8,
    "ends": np.int64,
    "num_frames": np.int64,
    "fps": np.float64,
    "height": np.int32,
    "width": np.int32,
    "key_frames": np.int64,
}
_START_COLUMNS: dict[str, type] = {
    "file_bytes": np.int64,
    "start_ends": np.int64,
    "start_packets": np.int64,
    "start_frames": np.int64,
}


class VideoIndex(NamedTuple):
    """The index of a data root, with one row per video.

    Args:
        starts: The packets at which decoding can start, by path.
    """

    paths: PackedStrings
    num_frames: Int64[np.ndarray, " N"]
    fps: Float64[np.ndarray, " N"]
    height: Int32[np.ndarray, " N"]
    width: Int32[np.ndarray, " N"]
    key_frames: Int64[np.ndarray, " N"]
    starts: Mapping[str, GroupStarts] = MappingProxyType({})


class GroupStartTable(NamedTuple):
    """The group starts of a data root, in flat arrays that workers share."""

    paths: PackedStrings
    file_bytes: Int64[np.ndarray, " N"]
    ends: Int64[np.ndarray, " N"]
    packets: Int64[np.ndarray, " G"]
    frames: Int64[np.ndarray, " G"]

    def of(self, path: str) -> GroupStarts | None:
        """Returns the starts of the video at a path relative to the root, or None."""
        row = bisect_left(self.paths, path)
        if row == len(self.paths) or self.paths[row] != path:
            return None
        some = slice(self.ends[row - 1] if row else 0, self.ends[row])
        starts = GroupStarts(int(self.file_bytes[row]), self.packets[some], self.frames[some])
        return starts if len(starts.frames) else None


def read_index(root: Path) -> VideoIndex | None:
    """Returns the index of a data root, or None if it has none. Does not read the group starts.

    Raises:
        ValueError: If the file is not an index.
    """
    columns = _read_columns(root, _COLUMNS)
    if columns is None:
        return None
    data, ends, counts, fps, height, width, keys = columns
    if {array.shape for array in columns[2:]} != {ends.shape}:
        raise _disagree(root)
    return VideoIndex(_paths(root, data, ends), counts, fps, height, width, keys)


def read_group_starts(root: Path) -> GroupStartTable | None:
    """Returns the group starts in the index of a data root, or None if there are none.

    Raises:
        ValueError: If the file is not an index.
    """
    starts = _read_columns(root, _START_COLUMNS, optional=True)
    columns = _read_columns(root, _COLUMNS) if starts and starts[-1].size else None
    if starts is None or columns is None:
        return None
    file_bytes, start_ends, packets, frames = starts
    data, ends, *_ = columns
    same_length = file_bytes.shape == start_ends.shape == ends.shape
    if not (same_length and packets.shape == frames.shape and _are_ends(start_ends, frames)):
        raise _disagree(root)
    return GroupStartTable(_paths(root, data, ends), file_bytes, start_ends, packets, frames)


def write_index(root: Path, index: VideoIndex) -> Path:
    """Writes the index, complete or not at all, with rows sorted by path."""
    names = list(index.paths)
    order = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    paths = index.paths.take(order)
    columns = {name: getattr(index, name)[order] for name in VideoIndex._fields[1:-1]}
    none = GroupStarts(0, np.zeros(0, np.int64), np.zeros(0, np.int64))
    starts = [index.starts.get(names[row], none) for row in order]
    columns |= {
        "file_bytes": np.array([some.num_bytes for some in starts], np.int64),
        "start_ends": np.cumsum([len(some.frames) for some in starts], dtype=np.int64),
        "start_packets": np.concatenate([none.packets, *(some.packets for some in starts)]),
        "start_frames": np.concatenate([none.frames, *(some.frames for some in starts)]),
    }
    content = BytesIO()
    np.savez(content, paths=paths.data, ends=paths.ends, **columns)
    write_whole(root / INDEX_NAME, lambda file: file.write(content.getbuffer()))
    return root / INDEX_NAME


def _read_columns(
    root: Path, columns: Mapping[str, type], *, optional: bool = False
) -> list[np.ndarray] | None:
    path = root / INDEX_NAME
    if not path.is_file():
        return None
    try:
        arrays = read_arrays(path, most=MAX_INDEX_BYTES, names=columns)
        if optional and not set(columns) <= set(arrays):
            return None
        return [
            arrays[name].astype(dtype, casting="safe", copy=False)
            for name, dtype in columns.items()
        ]
    except Exception as error:  # those of zipfile, zlib and NumPy share no base class
        raise ValueError(
            f"{path} is damaged or not an index ({error}); delete it, or index the folder again"
        ) from error


def _paths(root: Path, data: np.ndarray, ends: np.ndarray) -> PackedStrings:
    if not _are_ends(ends, data):
        raise _disagree(root)
    return PackedStrings(data, ends)


def _are_ends(ends: np.ndarray, data: np.ndarray) -> bool:
    """Returns whether the ends divide the data into consecutive parts."""
    flat = ends.ndim == data.ndim == 1 and len(data) == ends.max(initial=0)
    return bool(flat and (np.diff(ends, prepend=0) >= 0).all())


def _disagree(root: Path) -> ValueError:
    return ValueError(
        f"{root / INDEX_NAME} is damaged: its arrays disagree; delete it, or index the folder again"
    )
