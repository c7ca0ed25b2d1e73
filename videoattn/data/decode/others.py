"""Frames by decord or torchcodec: the same as PyAV's for the same indices, or DecodeError.

Both index a video by its packets and seek by that index, which is right where packets tell which
frame is which: MP4 and Matroska whose packets are whole, as many as PyAV counts. In AVI and GIF
(B-frames, dropped frames, packets that give no frame) their seeks land on other frames, silently,
and where pictures behind a key frame in the file are shown before it, seeks go wrong too; but
reading on from the first frame is right. So they read on, and their first frame is held against
PyAV's. Other containers, and whatever does not add up, are refused.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float64

from videoattn.data.decode.pyav import read_first
from videoattn.data.decode.video import (
    DecodeError,
    Image,
    PacketIndex,
    Put,
    Source,
    Video,
    Wanted,
    file_of,
    too_few,
)

_READ_ON = ("avi", "gif")


class _Known(NamedTuple):
    """What PyAV knows of a video. Exactly one of the last two is there."""

    stream: int
    num_streams: int
    times: Float64[np.ndarray, " N"] | None
    """Seconds of each frame, where the packets tell which frame is which."""
    first: Image | None
    """The first frame, where frames can be counted in the decoder's output alone."""


def read_decord(path: Source, wanted: Wanted, put: Put) -> None:
    """Puts the wanted frames."""
    decord = import_decord()
    known = _known(path, wanted, "decord")
    if known.num_streams > 1:
        _refuse(path, "decord", f"takes one of {known.num_streams} video streams, any of them")
    with _told(path, "decord"):
        # A frame that decord could not decode it replaces by its neighbour; more than none: error.
        reader = decord.VideoReader(file_of(path), num_threads=1, fault_tol=1e-9)
        count = len(reader)
    if known.first is not None:
        _read_on(path, "decord", wanted, put, known.first, lambda _: reader.next().asnumpy())
        return
    assert known.times is not None
    if count != len(known.times):
        _refuse(path, "decord", f"counts {count} frames where {len(known.times)} are listed")
    with _told(path, "decord"):
        images = reader.get_batch(wanted.tolist()).asnumpy()
    for slot, image in enumerate(images):
        put(slot, image)


def read_torchcodec(path: Source, wanted: Wanted, put: Put) -> None:
    """Puts the wanted frames.

    By the operators that torchcodec's VideoDecoder is made of. That class asks for a file's
    metadata as text, and torchcodec never frees the texts that its operators return (1.3 kB of each
    decoder, which adds up in loader processes that live as long as the training). Frames are asked
    for one by one: around the little that it still keeps, blocks of many would leave holes.
    """
    ops = import_torchcodec()
    known = _known(path, wanted, "torchcodec")
    file = file_of(path)
    with _told(path, "torchcodec"):
        create = ops.create_from_file if isinstance(file, str) else ops.create_from_file_like
        reader = create(file, "exact")
        ops.add_video_stream(
            reader, num_threads=1, dimension_order="NHWC", stream_index=known.stream
        )

    def frame(index: int) -> tuple[Image, float]:
        data, seconds, _ = ops.get_frame_at_index(reader, frame_index=index)
        return data.numpy(), float(seconds)

    if known.first is not None:
        _read_on(path, "torchcodec", wanted, put, known.first, lambda index: frame(index)[0])
        return
    assert known.times is not None
    for slot, index in enumerate(wanted.tolist()):
        with _told(path, "torchcodec"):
            image, seconds = frame(index)
        # Where damage swallows a frame, the next one takes its place: its time tells.
        if abs(seconds - known.times[index]) > 1e-6:
            _refuse(path, "torchcodec", "gives frames of other times")
        put(slot, image)


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
    """Its operators, the same in the versions that the extra allows."""
    try:
        torchcodec = importlib.import_module("torchcodec")
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
    module: ModuleType = torchcodec._core.ops
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
    path: Source, decoder: str, wanted: Wanted, put: Put, first: Image,
    next_frame: Callable[[int], Image],
) -> None:  # fmt: skip
    """Frame by frame from the first to the last wanted one."""
    slot = 0
    for index in range(int(wanted[-1]) + 1):
        with _told(path, decoder):
            image = next_frame(index)
        if image.shape != first.shape or (index == 0 and not _alike(image, first)):
            _refuse(path, decoder, "gives a first frame that is not PyAV's, or changes size")
        if index == wanted[slot]:
            put(slot, image)
            slot += 1


def _alike(image: Image, other: Image) -> bool:
    """One frame: what is left is colour conversion and concealed damage."""
    return float(np.abs(image.astype(np.int16) - other).mean()) < 4


def _refuse(path: Source, decoder: str, why: str) -> NoReturn:
    raise DecodeError(path, f"decoder {decoder} {why}; choose decoder pyav")


@contextmanager
def _told(path: Source, decoder: str) -> Iterator[None]:
    """Whatever the library raises, as DecodeError: its errors have no common base."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines()
        # decord's begin with the time and a place in its sources, and may name the file.
        why = re.sub(r"^\[[\d:]+\] \S+ ", "", lines[0])[:300] if lines else type(error).__name__
        why = why.replace(f"[{path}]", "").strip()
        message = f"decoder {decoder} fails ({why}); choose decoder pyav"
        raise DecodeError(path, message) from error
