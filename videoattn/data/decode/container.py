"""Opens videos with FFmpeg, and folders of images with Pillow, so that a hostile file can neither
open another file nor exhaust the memory.

FFmpeg otherwise guesses what a name or content means: `http:/host/x.mp4` is an address to it even
if such a file exists, and an SDP text named x.mp4 makes it listen on the network.
"""

import errno
import itertools
import os
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import av
import numpy as np
import PIL.Image
from av.error import FFmpegError
from av.stream import Disposition

from videoattn.data.decode.source import (
    DecodeError,
    FrameFolder,
    FrameIndices,
    Image,
    Images,
    VideoBytes,
    VideoSource,
    as_file,
    reason,
)

FORMATS = ("mov", "matroska", "avi", "flv", "gif", "mpeg", "mpegvideo", "mpegts", "asf", "m4v")
"""The demuxers for the suffixes of videos (`data.lists.files`): mov reads MP4, matroska reads WebM,
and asf reads WMV. None of them opens another file."""

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""The formats of images, as Pillow names them. It has others, such as EPS, which runs a program."""

MAX_PIXELS = 2**26
"""Largest size of a frame in pixels, 8192 x 8192. 8K video has half of it."""

MAX_PACKETS = 2**20
"""Largest number of packets in a file: 9.7 hours at 30 frames/s. Each takes about 1 KB of RAM."""

_HDR = {16: "PQ", 18: "HLG"}
"""Transfer functions of high dynamic range, by their numbers in ITU-T H.273."""

_NOT_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails


def open_container(source: VideoSource) -> av.container.InputContainer:
    """Opens a file or a video in memory.

    Raises:
        DecodeError: If it cannot be read, or is in none of `FORMATS`.
    """
    limits = {
        "format_whitelist": ",".join(FORMATS),
        "protocol_whitelist": "" if isinstance(source, VideoBytes) else "file",
    }
    try:
        return av.open(
            as_file(source), "r", metadata_errors="ignore", container_options=limits,
            options=_decoder_options(),
        )  # fmt: skip
    except FFmpegError as error:
        why = f"cannot be opened as a video: {reason(error)}"
        if error.errno == errno.EINVAL:
            why += f"; the formats that are read are {', '.join(FORMATS)}"
        raise DecodeError(source, why) from error


def video_stream(container: av.container.InputContainer, source: VideoSource) -> av.VideoStream:
    """Returns the first video stream that is not a cover picture, ready to decode in one thread.

    Raises:
        DecodeError: If there is none, its codec is unknown, or its frames exceed `MAX_PIXELS`.
    """
    streams = [s for s in container.streams.video if not s.disposition & _NOT_VIDEO]
    if not streams:
        covers = " but a cover picture" if container.streams.video else ""
        raise DecodeError(source, f"no video stream{covers}")
    context = streams[0].codec_context
    if context is None:
        raise DecodeError(source, "its video is in a format that FFmpeg does not know")
    check_pixels(source, context.width, context.height)
    if transfer := _HDR.get(context.color_trc):
        _note_hdr(source, transfer)
    context.thread_count = 1
    context.options = _decoder_options()  # the size may grow within the stream
    return streams[0]


def check_pixels(source: VideoSource, width: int, height: int) -> None:
    """Raises a DecodeError if the size of frames exceeds `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        raise DecodeError(
            source, f"has frames of {width} x {height} pixels; the limit is {MAX_PIXELS:,} pixels"
        )


def checked_packets(
    packets: Iterator[av.Packet], source: VideoSource, num_bytes: int
) -> Iterator[av.Packet]:
    """Yields the packets with data. A packet without data would signal the end of the stream.

    Raises a DecodeError if there are more than `MAX_PACKETS`, or if packets overlap in the file and
    hold more than twice its bytes (`num_bytes`): a small file could fill the memory.
    """
    count = total = 0
    for packet in packets:
        if not packet.size:
            continue
        count, total = count + 1, total + packet.size
        if count > MAX_PACKETS:
            raise DecodeError(source, f"has more packets than the limit of {MAX_PACKETS:,}")
        if total > 2 * num_bytes:  # edit lists may repeat some
            raise DecodeError(
                source, f"its packets overlap: they hold more than twice its {num_bytes:,} bytes"
            )
        yield packet


@cache
def _noted() -> set[str]:
    """Returns the set of warnings given in this process. Each is given only once."""
    return set()


def _note_hdr(source: VideoSource, transfer: str) -> None:
    if "HDR" not in _noted():
        _noted().add("HDR")
        name = repr(str(source))[1:-1]  # control characters are escaped
        warnings.warn(
            f"{name} is HDR video ({transfer}); its frames are not tone-mapped, so they look pale "
            "(given once per process)",
            stacklevel=2,
        )


def _decoder_options() -> dict[str, str]:
    return {"max_pixels": str(MAX_PIXELS)}


def read_folder(source: FrameFolder, indices: FrameIndices) -> Images:
    """Yields the position in `indices` and the image of each frame; all images have the same size.

    Raises:
        DecodeError: If a frame is missing, damaged, or differs in size.
    """
    first: tuple[int, ...] = ()
    for slot, index in enumerate(indices.tolist()):
        name = source.name(index)
        image = _read_picture(source.path, name)
        first = first or image.shape
        if image.shape != first:
            sizes = [f"{width}x{height}" for height, width, _ in (image.shape, first)]
            raise DecodeError(source, f"{name} is {sizes[0]}, but others are {sizes[1]}")
        yield slot, image


def count_folder(source: FrameFolder) -> int:
    """Returns the number of frames before the first missing one, at least 1.

    Raises:
        DecodeError: If the folder or its first frame is missing.
    """
    try:
        names = set(os.listdir(source.path))
    except OSError as error:
        raise DecodeError(source, str(error.strerror or error)) from error
    count = next(number for number in itertools.count() if source.name(number) not in names)
    if count == 0:
        raise DecodeError(source, f"no frame {source.name(0)} in the folder")
    return count


def _read_picture(folder: Path, name: str) -> Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its metadata and size; the latter is checked
            with PIL.Image.open(folder / name, formats=PICTURE_FORMATS) as image:
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
