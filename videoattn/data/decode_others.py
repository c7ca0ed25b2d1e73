"""Frames by decord or torchcodec: the same as PyAV's for the same indices, or DecodeError.

Both index a video by its packets and seek by that index, which is right where packets tell which
frame is which: MP4 and Matroska whose packets are whole, as many as PyAV counts. In AVI and GIF
(B-frames, dropped frames, packets that give no frame) their seeks land on other frames, silently,
and where pictures behind a key frame in the file are shown before it, seeks go wrong too; but
reading on from the first frame is right. So they read on, and their first frame is held against
PyAV's. Other containers, and whatever does not add up, are refused.
"""

import re
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float64, UInt8

from videoattn.data.decode_pyav import read_first
from videoattn.data.video import (
    DecodeError,
    Image,
    PacketIndex,
    Source,
    Video,
    Wanted,
    file_of,
    too_few,
)

Images = UInt8[np.ndarray, "T H W C"]

_READ_ON = ("avi", "gif")


class _Known(NamedTuple):
    """What PyAV knows of a video. Exactly one of the last two is there."""

    stream: int
    num_streams: int
    times: Float64[np.ndarray, " N"] | None
    """Seconds of each frame, where the packets tell which frame is which."""
    first: Image | None
    """The first frame, where frames can be counted in the decoder's output alone."""


def read_decord(path: Source, wanted: Wanted) -> Images:
    """The wanted frames."""
    decord = import_decord()
    known = _known(path, wanted, "decord")
    if known.num_streams > 1:
        _refuse(path, "decord", f"takes one of {known.num_streams} video streams, any of them")
    try:
        # A frame that decord could not decode it replaces by its neighbour; more than none: error.
        reader = decord.VideoReader(file_of(path), num_threads=1, fault_tol=1e-9)
        if known.first is not None:
            return _read_on(path, "decord", wanted, known.first, lambda _: reader.next().asnumpy())
        _same_count(path, "decord", len(reader), known.times)
        frames: Images = reader.get_batch(wanted.tolist()).asnumpy()
    except DecodeError:
        raise
    except Exception as error:  # whatever it raises: its errors have no common base
        _failed(path, "decord", error)
    return frames


def read_torchcodec(path: Source, wanted: Wanted) -> Images:
    """The wanted frames."""
    decoders = import_torchcodec()
    known = _known(path, wanted, "torchcodec")
    try:
        reader = decoders.VideoDecoder(
            file_of(path), stream_index=known.stream, dimension_order="NHWC", num_ffmpeg_threads=1
        )
        if known.first is not None:
            return _read_on(
                path, "torchcodec", wanted, known.first,
                lambda i: reader.get_frame_at(i).data.numpy(),
            )  # fmt: skip
        _same_count(path, "torchcodec", len(reader), known.times)
        batch = reader.get_frames_at(wanted.tolist())
    except DecodeError:
        raise
    except Exception as error:
        _failed(path, "torchcodec", error)
    assert known.times is not None
    # Where damage swallows a frame, the next one takes its place: its time tells.
    if np.abs(batch.pts_seconds.numpy() - known.times[wanted]).max() > 1e-6:
        _refuse(path, "torchcodec", "gives frames of other times")
    frames: Images = batch.data.numpy()
    return frames


@cache
def import_decord() -> ModuleType:
    try:
        import decord
    except ImportError as error:
        raise ImportError(
            "decoder decord is not installed; install the extra: "
            "pip install 'videoattn[decord]', or choose decoder pyav"
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    module: ModuleType = decord
    return module


@cache
def import_torchcodec() -> ModuleType:
    try:
        from torchcodec import decoders
    except ModuleNotFoundError as error:
        raise ImportError(
            "decoder torchcodec is not installed; install the extra: "
            "pip install 'videoattn[torchcodec]', or choose decoder pyav"
        ) from error
    except RuntimeError as error:  # what torchcodec raises where it finds no FFmpeg
        raise ImportError(
            "decoder torchcodec finds no FFmpeg; install its shared libraries "
            "(apt-get install ffmpeg), or choose decoder pyav"
        ) from error
    module: ModuleType = decoders
    return module


def _known(path: Source, wanted: Wanted, decoder: str) -> _Known:
    with Video(path) as video:
        streams = video.stream.index, len(video.container.streams.video)
        container = video.container.format.name
        if video.timed:
            index = PacketIndex.of(video, list(video.packets()))
            if index is None:
                _refuse(path, decoder, "needs packets that tell which frame is which")
            if wanted[-1] >= len(index.times):
                raise too_few(path, int(wanted[-1]), len(index.times))
            if not index.closed:
                return _Known(*streams, None, read_first(path))
            seconds = np.sort(index.times) * float(video.stream.time_base or 0)
            return _Known(*streams, seconds, None)
        if container not in _READ_ON:
            _refuse(path, decoder, f"is not exact in files of the kind {container}")
    return _Known(*streams, None, read_first(path))


def _read_on(
    path: Source, decoder: str, wanted: Wanted, first: Image, next_frame: Callable[[int], Image]
) -> Images:
    """Frame by frame from the first to the last wanted one."""
    frames = np.empty((len(wanted), *first.shape), np.uint8)
    slot = 0
    for index in range(int(wanted[-1]) + 1):
        image = next_frame(index)
        if image.shape != first.shape or (index == 0 and not _alike(image, first)):
            _refuse(path, decoder, "gives a first frame that is not PyAV's, or changes size")
        if index == wanted[slot]:
            frames[slot] = image
            slot += 1
    return frames


def _alike(image: Image, other: Image) -> bool:
    """One frame: what is left is colour conversion and concealed damage."""
    return float(np.abs(image.astype(np.int16) - other).mean()) < 4


def _same_count(path: Source, decoder: str, count: int, times: np.ndarray | None) -> None:
    assert times is not None
    if count != len(times):
        _refuse(path, decoder, f"counts {count} frames where {len(times)} are listed")


def _refuse(path: Source, decoder: str, why: str) -> NoReturn:
    raise DecodeError(path, f"decoder {decoder} {why}; choose decoder pyav")


def _failed(path: Source, decoder: str, error: Exception) -> NoReturn:
    lines = str(error).strip().splitlines()
    # decord's begin with the time and a place in its sources, and may name the file.
    why = re.sub(r"^\[[\d:]+\] \S+ ", "", lines[0])[:300] if lines else type(error).__name__
    why = why.replace(f"[{path}]", "").strip()
    raise DecodeError(path, f"decoder {decoder} fails ({why}); choose decoder pyav") from error
