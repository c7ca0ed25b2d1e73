"""Converts decoded frames to upright RGB images."""

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videoattn.data.decode.source import Image

ONE_THREAD = {"threads": 1}
"""Options of `reformat`, which starts one thread per core by default to convert colors."""


def quarter_turns(frame: av.VideoFrame) -> int:
    """Returns the counterclockwise quarter turns of the display matrix, or 0 for other angles."""
    turns = frame.rotation / 90
    return int(turns) % 4 if turns == int(turns) and abs(turns) <= 4 else 0


class ToRGB:
    """Converts frames to upright RGB images (H, W, 3), all of the size of the first.

    Args:
        short_side: Shrinks frames to this short side (pixels) if theirs is at least twice as long.
        pixel_aspect: Factor by which the width of the frames is multiplied.
    """

    def __init__(self, short_side: int | None = None, pixel_aspect: float = 1.0) -> None:
        self._short_side = short_side
        self._pixel_aspect = pixel_aspect
        self._size: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Image:
        width, height = self._size = self._size or self._size_of(frame)
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", **ONE_THREAD
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        image = rows[:, : 3 * width].reshape(height, width, 3)
        turns = quarter_turns(frame)
        return np.rot90(image, turns) if turns else image

    def _size_of(self, frame: av.VideoFrame) -> tuple[int, int]:
        width, height = max(round(frame.width * self._pixel_aspect), 1), frame.height
        scale = (self._short_side or height) / min(width, height)
        # Closer to the requested size, scaling costs more than the smaller frame saves.
        return (round(width * scale), round(height * scale)) if scale <= 0.5 else (width, height)
