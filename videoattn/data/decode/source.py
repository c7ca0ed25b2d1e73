"""The sources of `decode` other than files, and DecodeError."""

from collections.abc import Generator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from videoattn.files import file_url


@dataclass(frozen=True)
class VideoBytes:
    """An encoded video in memory, with its label and facts from its shard.

    Args:
        name: Used in place of a path in error messages.
        label: The class, or -1 if unknown.
        num_frames: The exact number of frames, or 0 if unknown.
        fps: Frames per second, or 0 if unknown.
    """

    name: str
    data: bytes
    label: int = -1
    num_frames: int = 0
    fps: float = 0.0

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class FrameFolder:
    """A video stored as a folder of images.

    Args:
        template: The file name of a frame: frame i is the file `template.format(i + first)`.
        first: The number in the file name of frame 0. Published lists number frames from 1.
    """

    path: Path
    template: str
    first: int = 1

    def name(self, index: int) -> str:
        """Returns the file name of a frame."""
        return self.template.format(index + self.first)

    def __str__(self) -> str:
        return str(self.path)


VideoSource = str | Path | VideoBytes | FrameFolder

FrameIndices = Int64[np.ndarray, " T"]
"""Frame numbers in ascending order, without repeats."""

Image = UInt8[np.ndarray, "H W C"]

Images = Generator[tuple[int, Image], None, None]
"""Decoded frames in RGB, each with its position among the requested frames.

An image is valid until the next one is taken. A decoder that has to start over yields all frames
again, in the same size, and these replace the earlier ones.
"""


class DecodeError(Exception):
    """Raised if the requested frames of a video cannot be decoded.

    Attributes:
        path: The path or name of the video.
        reason: The problem.
        num_frames: The number of frames that decode, if they are too few; otherwise None.
    """

    def __init__(self, path: object, reason: str, num_frames: int | None = None) -> None:
        # All three are in `args`, so that the error survives pickling between processes.
        super().__init__(str(path), reason, num_frames)
        self.path = str(path)
        self.reason = reason
        self.num_frames = num_frames

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def too_few_frames(source: VideoSource, index: int, num_frames: int) -> DecodeError:
    return DecodeError(
        source,
        f"frame {index} is out of range: {num_frames} frames decode (0 - {num_frames - 1})",
        num_frames,
    )


def reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def as_file(source: VideoSource) -> str | BytesIO:
    """Returns the source in the form that decoders accept: a `file:` URL, or a file object."""
    return BytesIO(source.data) if isinstance(source, VideoBytes) else file_url(str(source))
