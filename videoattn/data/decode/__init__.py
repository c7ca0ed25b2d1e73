"""decode(path, indices) -> frames: index i is the i-th frame that the decoder puts out.

Header frame counts, frame rates and seek tables lie, so none is used. The default decoder is PyAV,
which is exact in every file that decodes; decord and torchcodec give the same frames or refuse
(docs/decoders.md says which files). Frames are counted and timed by PyAV, whichever decodes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from av.error import FFmpegError
from jaxtyping import Float64, Int64, UInt8

from videoattn.data.decode.others import (
    import_decord,
    import_torchcodec,
    read_decord,
    read_torchcodec,
)
from videoattn.data.decode.pyav import (
    list_packets,
    no_frame,
    quarter_turns,
    read_pyav,
)
from videoattn.data.decode.video import DecodeError as DecodeError
from videoattn.data.decode.video import Image, Put, Source, Video, Wanted, reason
from videoattn.types import Frames

Decoder = Literal["auto", "pyav", "decord", "torchcodec"]

Read = Callable[[Source, Wanted, Put], None]

_READERS: dict[str, Read] = {
    "auto": read_pyav,
    "pyav": read_pyav,
    "decord": read_decord,
    "torchcodec": read_torchcodec,
}
_IMPORTS = {"decord": import_decord, "torchcodec": import_torchcodec}


class VideoInfo(NamedTuple):
    """Exact frame count, mean frame rate (1/s), and the size in pixels after rotation."""

    num_frames: int
    fps: float
    height: int
    width: int


def decode(
    path: Source, indices: Sequence[int] | np.ndarray, *, decoder: Decoder = "auto",
    short_side: int | None = None,
) -> Frames:  # fmt: skip
    """The asked frames, RGB, in the asked order (any order, repeats allowed).

    short_side: PyAV makes frames of videos of twice that size or more so small. Faster, but other
    pixels than of cropping first.

    Raises: DecodeError when the file cannot be read, has too few frames, or is one whose frames
    the decoder cannot tell apart; ValueError for a negative index or no index at all; ImportError
    when the decoder is not installed.
    """
    asked = np.asarray(indices, dtype=np.int64)
    if asked.size == 0 or asked.min() < 0:
        raise ValueError(f"indices: got {asked.tolist()}; need one or more, none negative")
    wanted, places = np.unique(asked, return_inverse=True)
    block = Block(len(wanted))
    decode_each(path, wanted, block.put, decoder=decoder, short_side=short_side)
    return block.frames(None if np.array_equal(wanted, asked) else places)


def decode_each(
    path: Source, wanted: Wanted, put: Put, *, decoder: Decoder = "auto",
    short_side: int | None = None,
) -> None:  # fmt: skip
    """Hands the wanted frames to `put` as they are decoded, so that no more is kept than needed.

    short_side, Raises: as of `decode`.
    """
    read = _reader(decoder, short_side)
    try:
        read(path, wanted, put)
    except (FFmpegError, OSError) as error:
        raise DecodeError(path, reason(error)) from error


class Block:
    """What `put` fills: whole frames, in one block of memory."""

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._images: UInt8[np.ndarray, "T H W C"] = np.empty((0, 0, 0, 3), np.uint8)

    def put(self, slot: int, image: Image) -> None:
        if len(self._images) == 0:
            self._images = np.empty((self._num_frames, *image.shape), np.uint8)
        self._images[slot] = image

    def frames(self, places: Int64[np.ndarray, " T"] | None = None) -> Frames:
        """The frames of these places; all of them, without a copy, if none are given."""
        images = self._images if places is None else self._images[places]
        return torch.from_numpy(images).permute(0, 3, 1, 2)


def check_decoder(decoder: Decoder, short_side: int | None = None) -> None:
    """Raises: ValueError for what a decoder cannot do; ImportError for one not installed."""
    _reader(decoder, short_side)
    if decoder in _IMPORTS:
        _IMPORTS[decoder]()


def probe(path: Source) -> VideoInfo:
    """Decodes every frame, so that the count is exact for damaged files too.

    Raises: DecodeError when the file cannot be read or no frame decodes.
    """
    try:
        with Video(path) as video:
            num_frames, height, width = 0, 0, 0
            for frame in video.frames():
                if num_frames == 0:
                    turned = quarter_turns(frame) % 2 == 1
                    height, width = frame.height, frame.width
                    height, width = (width, height) if turned else (height, width)
                num_frames += 1
            if num_frames == 0:
                raise no_frame(video)
            return VideoInfo(num_frames, video.fps, height, width)
    except (FFmpegError, OSError) as error:
        raise DecodeError(path, reason(error)) from error


def count_frames(path: Source) -> tuple[int, float]:
    """(frame count, frame rate) at the cost of listing packets where the container allows.

    That is MP4 and Matroska whose packets are whole; other files are decoded. Damage that leaves a packet's framing whole stays unseen: `decode` raises
    DecodeError with the true count where it meets it.

    Raises: DecodeError when the file cannot be read or holds no frame.
    """
    listed = _listed_times(path)
    if listed is not None:
        return len(listed[0]), listed[1]
    info = probe(path)
    return info.num_frames, info.fps


def frame_times(path: Source) -> Float64[np.ndarray, " T"]:
    """When each frame is shown, in seconds from the first: as stored in MP4 and Matroska, where
    the rate may vary; in other files at the mean rate.

    Raises: DecodeError when the file cannot be read, holds no frame, or names no rate.
    """
    listed = _listed_times(path)
    if listed is not None:
        return listed[0]
    info = probe(path)
    if info.fps <= 0:
        raise DecodeError(path, "names no frame rate, so its frames have no times")
    return np.arange(info.num_frames) / info.fps


def _listed_times(path: Source) -> tuple[Float64[np.ndarray, " T"], float] | None:
    """(frame times in seconds, frame rate) without decoding; None where that is not exact."""
    try:
        with Video(path) as video:
            listed = list_packets(video)
            if listed is None:
                return None
            ticks = np.sort(listed[1].times)
            return (ticks - ticks[0]) * float(video.stream.time_base or 0), video.fps
    except (FFmpegError, OSError) as error:
        raise DecodeError(path, reason(error)) from error


def _reader(decoder: str, short_side: int | None) -> Read:
    if decoder not in _READERS:
        raise ValueError(f"decoder: got {decoder!r}; choose from {', '.join(_READERS)}")
    if short_side is None:
        return _READERS[decoder]
    if decoder in _IMPORTS or short_side < 1:
        raise ValueError(
            f"short_side: got {short_side} with decoder {decoder}; need 1 or more, and decoder pyav"
        )
    return partial(read_pyav, short_side=short_side)
