"""Reads and writes the index of a data root, `videoattn_index.npz`.

With it, lists are checked and frames counted without opening videos. The file is an npz of flat
arrays with one row per video, sorted by path: `paths` (uint8: the paths relative to the root,
concatenated), `ends` (int64: the end of each path), `num_frames` (int64; 0 if unknown, for example
if a file does not decode), `fps` (float64, frames per second), `height` and `width` (int32, pixels,
after rotation), `key_frames` (int64, their number).

`file_bytes` (int64), `start_ends` (int64), `start_packets` and `start_frames` (int64) hold the
`GroupStarts` of videos without timestamps: the starts of row i end at `start_ends[i]`. An index
without these four arrays loads, and further arrays are ignored.

The numbers of frames that training found are in a file of the same kind, for the next run: `paths`
and `ends`, `num_frames` and `num_bytes` (int64), and `fps` (float64).
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import av
import numpy as np
from jaxtyping import Float64, Int32, Int64

from videoattn.data.decode.packets import GroupStarts, UnitFacts
from videoattn.data.decode.pyav import Video
from videoattn.data.decode.rgb import ToRGB
from videoattn.data.strings import PackedStrings
from videoattn.files import read_arrays, write_arrays

INDEX_NAME = "videoattn_index.npz"

MAX_INDEX_BYTES = 2**29
"""Largest index in memory, 512 MiB: some five million videos."""

_PATHS: dict[str, type] = {"paths": np.uint8, "ends": np.int64}
_COLUMNS: dict[str, type] = {
    "num_frames": np.int64,
    "fps": np.float64,
    "height": np.int32,
    "width": np.int32,
    "key_frames": np.int64,
}
_STARTS = ("file_bytes", "start_ends", "start_packets", "start_frames")


class GroupStartTable(NamedTuple):
    """The group starts of a data root, in flat arrays that workers share."""

    paths: PackedStrings
    file_bytes: Int64[np.ndarray, " N"]
    start_ends: Int64[np.ndarray, " N"]
    start_packets: Int64[np.ndarray, " G"]
    start_frames: Int64[np.ndarray, " G"]

    def get(self, path: str) -> GroupStarts | None:
        """Returns the starts of the video at a path relative to the root, or None."""
        row = bisect_left(self.paths, path)
        if row == len(self.paths) or self.paths[row] != path:
            return None
        some = slice(self.start_ends[row - 1] if row else 0, self.start_ends[row])
        packets, frames = self.start_packets[some], self.start_frames[some]
        return GroupStarts(int(self.file_bytes[row]), packets, frames) if len(frames) else None


class VideoIndex(NamedTuple):
    """The index of a data root, with one row per video.

    Args:
        starts: The packets at which decoding can start, by path; empty if there are none.
    """

    paths: PackedStrings
    num_frames: Int64[np.ndarray, " N"]
    fps: Float64[np.ndarray, " N"]
    height: Int32[np.ndarray, " N"]
    width: Int32[np.ndarray, " N"]
    key_frames: Int64[np.ndarray, " N"]
    starts: GroupStartTable | Mapping[str, GroupStarts] = MappingProxyType({})


def read_index(root: Path) -> VideoIndex | None:
    """Returns the index of a data root, or None if it has none.

    Raises:
        ValueError: If the file is not an index.
    """
    path = root / INDEX_NAME
    if not path.is_file():
        return None
    try:
        arrays = read_arrays(path, most=MAX_INDEX_BYTES, names=[*_PATHS, *_COLUMNS, *_STARTS])
        columns: dict[str, Any] = {
            name: arrays[name].astype(dtype, casting="safe", copy=False)
            for name, dtype in (_PATHS | _COLUMNS).items()
        }
        starts = [
            arrays[n].astype(np.int64, casting="safe", copy=False) for n in _STARTS if n in arrays
        ]
    except Exception as error:  # those of zipfile, zlib and NumPy share no base class
        raise ValueError(
            f"{path} is damaged or not an index ({error}); delete it, or index the folder again"
        ) from error
    data, ends = columns.pop("paths"), columns.pop("ends")
    agree = _are_ends(ends, data) and {c.shape for c in columns.values()} == {ends.shape}
    if has_starts := len(starts) == len(_STARTS):
        file_bytes, start_ends, packets, frames = starts
        agree &= file_bytes.shape == start_ends.shape == ends.shape
        agree &= packets.shape == frames.shape and _are_ends(start_ends, frames)
    if not agree:
        raise ValueError(
            f"{path} is damaged: its arrays disagree; delete it, or index the folder again"
        )
    index = VideoIndex(PackedStrings(data, ends), **columns)
    has_starts = has_starts and starts[-1].size > 0
    return index._replace(starts=GroupStartTable(index.paths, *starts)) if has_starts else index


def write_index(root: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Writes the index, complete or not at all, sorted by path, and returns the path of the file.

    Args:
        records: The `path` and the columns of each video; a column is 0 by default. `starts` are
            the pairs of `find_group_starts` for a file of `bytes`.
    """
    records = sorted(records, key=lambda record: record["path"])
    paths = PackedStrings.of(record["path"] for record in records)
    columns: dict[str, np.ndarray] = {
        name: np.array([record.get(name, 0) for record in records]).astype(dtype)
        for name, dtype in _COLUMNS.items()
    }
    starts = [record.get("starts") or [] for record in records]
    pairs = np.array([pair for some in starts for pair in some], np.int64).reshape(-1, 2)
    columns |= {
        "paths": paths.data,
        "ends": paths.ends,
        "file_bytes": np.array([r["bytes"] if r.get("starts") else 0 for r in records], np.int64),
        "start_ends": np.cumsum([len(some) for some in starts], dtype=np.int64),
        "start_packets": pairs[:, 0],
        "start_frames": pairs[:, 1],
    }
    write_arrays(root / INDEX_NAME, columns)
    return root / INDEX_NAME


class FrameCount(NamedTuple):
    """The number of frames of a file of this size, and its frame rate."""

    num_frames: int
    fps: float
    num_bytes: int


def write_counts(path: Path, counts: Mapping[str, FrameCount]) -> None:
    """Writes the counts of videos, by their paths; the file is complete or not written at all."""
    paths = PackedStrings.of(counts)
    columns = {
        name: np.array([getattr(count, name) for count in counts.values()], kind)
        for name, kind in FrameCount.__annotations__.items()
    }
    write_arrays(path, {"paths": paths.data, "ends": paths.ends, **columns})


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


def _are_ends(ends: np.ndarray, data: np.ndarray) -> bool:
    """Returns whether the ends divide the data into consecutive parts."""
    flat = ends.ndim == data.ndim == 1 and len(data) == ends.max(initial=0)
    return bool(flat and (np.diff(ends, prepend=0) >= 0).all())


def find_group_starts(path: Path) -> list[tuple[int, int]]:
    """Returns pairs (packet, frame): decoding from the packet gives the frames from `frame` on.

    Tries every key packet after the first, and keeps it if decoding from it gives the same frames
    as decoding the whole file, up to the second key packet after it. Returns an empty list for
    damaged files, because the concealment of damage depends on earlier frames.
    """
    with Video(path) as video:
        video.stream.codec_context.copy_opaque = True
        packets = list(video.packets())
        for number, packet in enumerate(packets):
            packet.opaque = number
        to_rgb = ToRGB()
        digests: list[bytes] = []
        first_frame: dict[int, int] = {}
        for frame in video.frames(packets):
            if frame.is_corrupt:
                return []
            if frame.key_frame and isinstance(frame.opaque, int):
                first_frame.setdefault(frame.opaque, len(digests))
            digests.append(_digest(frame, to_rgb))
        if video.last_error:
            return []
        units = UnitFacts.of(video.stream.codec_context, packets)
    starts = np.flatnonzero(units.starts).tolist() if units else []
    keys = [n for n in starts if n in first_frame]
    ends = [first_frame[key] for key in keys[2:]] + [len(digests)] * 2
    return [
        (key, first_frame[key])
        for key, end in zip(keys, ends, strict=False)
        if key and _reproduces(path, packets[key:], digests[first_frame[key] : end])
    ]


def _reproduces(path: Path, packets: list[av.Packet], digests: list[bytes]) -> bool:
    """Returns whether the first frames from a new decoder have exactly these digests."""
    found, to_rgb = 0, ToRGB()
    with Video(path) as video:
        for frame in video.frames(packets):
            if found == len(digests):
                return True
            if frame.is_corrupt or _digest(frame, to_rgb) != digests[found]:
                return False
            found += 1
    return found == len(digests) and not video.last_error


def _digest(frame: av.VideoFrame, to_rgb: ToRGB) -> bytes:
    return hashlib.blake2b(to_rgb(frame).tobytes(), digest_size=8).digest()
