"""Decodes the frames of a video by their numbers.

Frame i is the i-th frame that the decoder outputs. Frame counts in headers, frame rates and seek
tables may be wrong, so none of them is used. The default decoder is PyAV, which is exact for every
file that decodes. decord and torchcodec return the same frames or refuse the file
(docs/decoders.md lists which). PyAV counts and times the frames for every decoder.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Literal, get_args

import numpy as np
import torch
from av.error import FFmpegError
from jaxtyping import Float64, UInt8

from videoattn.data.decode import others
from videoattn.data.decode.container import count_folder, read_folder
from videoattn.data.decode.packets import GroupStarts
from videoattn.data.decode.pyav import Video, read_pyav
from videoattn.data.decode.rgb import ToRGB
from videoattn.data.decode.source import (
    DecodeError,
    FrameFolder,
    FrameIndices,
    Images,
    VideoSource,
    reason,
)
from videoattn.data.transforms import Box
from videoattn.errors import one_of
from videoattn.types import Frames

__all__ = ["DecodeError", "Video", "count_frames", "decode", "frame_times"]

Decoder = Literal["auto", "pyav", "decord", "torchcodec"]


def decode(
    source: VideoSource | Video,
    indices: Sequence[int] | np.ndarray,
    *,
    crop: Callable[[int, int], Box] | None = None,
    decoder: Decoder = "auto",
    short_side: int | None = None,
    starts: GroupStarts | None = None,
    square_pixels: bool = False,
) -> Frames:
    """Returns frames as RGB (T, 3, H, W), in the order of `indices`, which may repeat.

    Args:
        crop: Function from the height and width of the video to the box to keep of every frame.
            It is called once. Each frame is cropped as it is decoded, so that only one whole frame
            is in memory at a time.
        decoder: The library that decodes; "auto" is PyAV.
        short_side: Lets PyAV downscale frames to this short side (pixels) while decoding, if theirs
            is at least twice as long. This is faster, but gives other pixels than cropping first.
        starts: The packets at which PyAV may start decoding in a file without timestamps.
        square_pixels: If the pixels of the file are not square, rescale the width of its frames, as
            a player does. Only PyAV supports this.

    Raises:
        DecodeError: If the file cannot be read, has too few frames, or the decoder is not exact for
            it.
        ValueError: If `indices` is empty or negative, or the decoder or short side is not allowed.
        ImportError: If the decoder is not installed.
    """
    check_decoder(decoder, short_side)
    requested = np.asarray(indices, dtype=np.int64)
    if requested.size == 0 or requested.min() < 0:
        raise ValueError(f"indices: got {requested.tolist()}; need one or more, none negative")
    numbers, positions = np.unique(requested, return_inverse=True)
    try:
        read = _read(source, numbers, decoder, short_side, starts, square_pixels)
        with closing(read) as images:
            frames = _collect(images, len(numbers), crop)
    except FFmpegError as error:
        raise DecodeError(source, reason(error)) from error
    if not np.array_equal(numbers, requested):
        frames = frames[positions]
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def check_decoder(decoder: str, short_side: int | None = None) -> None:
    """Checks that a decoder can be used.

    Raises:
        ValueError: If the decoder does not exist, or does not support `short_side`.
        ImportError: If it is not installed.
    """
    one_of("decoder", decoder, get_args(Decoder))
    if short_side is not None and (decoder in others.READERS or short_side < 1):
        raise ValueError(
            f"short_side: got {short_side} with decoder {decoder}; need 1 or more, and decoder pyav"
        )
    if decoder in others.READERS:
        others.import_decoder(decoder)


def count_frames(source: VideoSource) -> tuple[int, float]:
    """Returns the number of frames and the frame rate (0 if unknown); see `Video.num_frames`.

    Raises:
        DecodeError: If the file cannot be read or holds no frame.
    """
    if isinstance(source, FrameFolder):
        return count_folder(source), 0.0
    with Video(source) as video:
        return video.num_frames, video.fps


def frame_times(
    source: VideoSource | Video, num_frames: int | None = None
) -> Float64[np.ndarray, " T"]:
    """Returns the time of each frame in seconds; see `Video.frame_times`.

    Raises:
        DecodeError: If the file cannot be read, holds no frame, or states no frame rate.
    """
    with _opened(source) as video:
        return video.frame_times(num_frames)


def _read(
    source: VideoSource | Video, numbers: FrameIndices, decoder: Decoder,
    short_side: int | None, starts: GroupStarts | None, square_pixels: bool,
) -> Images:  # fmt: skip
    if isinstance(source, FrameFolder):
        yield from read_folder(source, numbers)
        return
    with _opened(source) as video:
        aspect = video.pixel_aspect if square_pixels else 1.0
        if decoder not in others.READERS:
            yield from read_pyav(video, numbers, ToRGB(short_side, aspect), starts=starts)
        elif aspect == 1.0:
            yield from others.READERS[decoder](video, numbers)
        else:
            why = f"its pixels are not square, which decoder {decoder} ignores; choose decoder pyav"
            raise DecodeError(video.source, why)


def _collect(
    images: Images, num_frames: int, crop: Callable[[int, int], Box] | None
) -> UInt8[np.ndarray, "T H W C"]:
    """Crops each image as it is decoded, and returns all images in one array."""
    frames: UInt8[np.ndarray, "T H W C"] | None = None
    box = Box(0, 0, 0, 0)
    for slot, image in images:
        if frames is None:
            height, width = image.shape[:2]
            box = crop(height, width) if crop else Box(0, 0, height, width)
            frames = np.empty((num_frames, box.y1 - box.y0, box.x1 - box.x0, 3), np.uint8)
        frames[slot] = image[box.y0 : box.y1, box.x0 : box.x1]
    assert frames is not None
    return frames


def _opened(source: VideoSource | Video) -> AbstractContextManager[Video]:
    return nullcontext(source) if isinstance(source, Video) else Video(source)
