"""Decodes frames with decord or torchcodec: the same frames as PyAV for the same indices.

Both seek by packets. This is exact for MP4 and Matroska if the packets determine the number of each
frame. Every other file is refused with a DecodeError: in AVI, for example, dropped frames and
B-frames make seeks return other frames without an error. Neither library reports a damaged frame,
and its concealment depends on the frame at which decoding starts. So PyAV decodes the same packets
first, and a damaged file is refused.
"""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import NoReturn

import numpy as np
from jaxtyping import Float64

from videoattn.data.decode.packets import PacketIndex
from videoattn.data.decode.pyav import Video
from videoattn.data.decode.source import DecodeError, FrameIndices, Images, as_file, too_few_frames

_MODULES = {"decord": "decord", "torchcodec": "torchcodec.decoders"}


def read_decord(video: Video, indices: FrameIndices) -> Images:
    """Yields the position in `indices` and the image of each frame."""
    decord = import_decoder("decord")
    times = _listed_times(video, indices, "decord")
    if (count := len(video.container.streams.video)) > 1:
        _refuse(video, "decord", f"takes one of {count} video streams, any of them")
    with _decoder_errors(video, "decord"):
        # Without this tolerance, decord replaces a frame that it cannot decode by a neighbor.
        reader = decord.VideoReader(as_file(video.source), num_threads=1, fault_tol=1e-9)
        count = len(reader)
    if count != len(times):
        _refuse(video, "decord", f"counts {count} frames where {len(times)} are listed")
    with _decoder_errors(video, "decord"):
        images = reader.get_batch(indices.tolist()).asnumpy()
    yield from enumerate(images)


def read_torchcodec(video: Video, indices: FrameIndices) -> Images:
    """Yields what `read_decord` does, but decodes frame by frame, which fragments memory less."""
    decoders = import_decoder("torchcodec")
    times = _listed_times(video, indices, "torchcodec")
    file = as_file(video.source)
    with _decoder_errors(video, "torchcodec"):
        reader = decoders.VideoDecoder(
            file, stream_index=video.stream.index, dimension_order="NHWC", num_ffmpeg_threads=1
        )
    for slot, index in enumerate(indices.tolist()):
        with _decoder_errors(video, "torchcodec"):
            frame = reader.get_frame_at(index)
        # If damage swallows a frame, the next one takes its place; the time reveals it.
        if abs(frame.pts_seconds - times[index]) > 1e-6:
            _refuse(video, "torchcodec", "gives frames of other times")
        yield slot, frame.data.numpy()


@cache
def import_decoder(decoder: str) -> ModuleType:
    """Imports decord or torchcodec.

    Raises:
        ImportError: If it is not installed, or cannot be loaded.
    """
    try:
        module = importlib.import_module(_MODULES[decoder])
    except ModuleNotFoundError as error:
        raise ImportError(
            f"decoder {decoder} is not installed; install the extra: "
            f"pip install 'videoattn[{decoder}]', or choose decoder pyav"
        ) from error
    except RuntimeError as error:  # raised by torchcodec if it finds no FFmpeg
        raise ImportError(
            f"decoder {decoder} finds no FFmpeg; install its shared libraries "
            "(apt-get install ffmpeg), or choose decoder pyav"
        ) from error
    if decoder == "decord":
        module.logging.set_level(module.logging.QUIET)
    return module


def _listed_times(video: Video, indices: FrameIndices, decoder: str) -> Float64[np.ndarray, " N"]:
    """Returns the times of all frames in seconds. Raises a DecodeError if seeks are not exact."""
    if not video.timed:
        kind = video.container.format.name
        _refuse(video, decoder, f"is not exact in files of the kind {kind}")
    index = video.packet_index
    if index is None:
        _refuse(video, decoder, "needs packets that determine the number of each frame")
    if not index.closed:
        _refuse(video, decoder, "is not exact if frames stored after a key frame precede it")
    if len(index.keys) != len(index.flagged_keys):
        _refuse(video, decoder, "is not exact if decoding cannot start at a marked key frame")
    if indices[-1] >= len(index.times):
        raise too_few_frames(video.source, int(indices[-1]), len(index.times))
    for run in index.plan(indices):
        if not _is_sound(video, index, run):
            _refuse(video, decoder, "does not report the damage in this file")
    return np.sort(index.times) * float(video.stream.time_base or 0)


def _is_sound(video: Video, index: PacketIndex, run: list[int]) -> bool:
    """Returns whether each packet of a run, from a key frame on, decodes without damage."""
    video.flush()
    video.last_error = None
    frames = video.frames(index.packets[number] for number in run)
    times = [None if frame.is_corrupt else frame.pts for frame in frames]
    return video.last_error is None and times == np.sort(index.times[run]).tolist()


def _refuse(video: Video, decoder: str, why: str) -> NoReturn:
    raise DecodeError(video.source, f"decoder {decoder} {why}; choose decoder pyav")


@contextmanager
def _decoder_errors(video: Video, decoder: str) -> Iterator[None]:
    """Raises any error of the library as a DecodeError. Its errors share no base class."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines()
        # decord's messages begin with a time and a source line.
        why = re.sub(r"^\[[\d:]+\] \S+ ", "", lines[0])[:300] if lines else type(error).__name__
        message = f"decoder {decoder} fails ({why}); choose decoder pyav"
        raise DecodeError(video.source, message) from error


READERS = {"decord": read_decord, "torchcodec": read_torchcodec}
