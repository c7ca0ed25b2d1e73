"""Reads a clip of a video as the network's input, and its frames to draw on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from videoattn import explain
from videoattn.attention.maps import GateMap, PairwiseMap
from videoattn.attention.record import Query
from videoattn.data.dataset import sample_generator, sample_numbers
from videoattn.data.decode import DecodeError, Video, count_frames, decode
from videoattn.data.decode.source import FrameFolder
from videoattn.data.transforms import Box, resize
from videoattn.recipe.data import clock_of, make_to_video, test_frames, test_transform
from videoattn.recipe.run import Predictor


@dataclass(frozen=True)
class Clip:
    """The center view of a video.

    Args:
        frames: Decoded frames, cropped, (T, 3, H, W) uint8, to draw on.
        video: The network's input, (1, 3, T, h, w).
        box: The crop in pixels of the video.
        numbers: The index of each frame in the video.
        fps: The frame rate of the video.
    """

    frames: Tensor
    video: Tensor
    box: Box
    numbers: list[int]
    fps: float

    @property
    def grid(self) -> tuple[int, int, int]:
        """The (T, h, w) of the network's input."""
        return self.video.shape[2], self.video.shape[3], self.video.shape[4]

    def pixel(self, query: tuple[int, int, int]) -> Query:
        """Converts (FRAME, X, Y) in the video to (frame, y, x) in `frames`.

        Raises:
            ValueError: If the position is outside the clip or its crop.
        """
        frame, x, y = query
        distances = [abs(number - frame) for number in self.numbers]
        nearest = distances.index(min(distances))
        gaps = np.diff(np.sort(np.unique(self.numbers)))
        if distances[nearest] > (gaps.max() if len(gaps) else 0):
            raise ValueError(
                f"query: frame {frame} is not in the network's clip, frames {min(self.numbers)} to "
                f"{max(self.numbers)}; run the command again for this frame"
            )
        box = self.box
        if not (box.x0 <= x < box.x1 and box.y0 <= y < box.y1):
            raise ValueError(
                f"query: pixel ({x}, {y}) is outside the network's center crop; "
                f"x must be {box.x0} to {box.x1 - 1}, y {box.y0} to {box.y1 - 1}"
            )
        return nearest, y - box.y0, x - box.x0

    def to_input(self, pixel: Query) -> Query:
        """Converts a (frame, y, x) in `frames` to one in `video`."""
        (height, width), (_, h, w) = self.frames.shape[2:], self.grid
        return pixel[0], int(pixel[1] * (h / height)), int(pixel[2] * (w / width))

    def draw(
        self,
        found: PairwiseMap | GateMap,
        title: str,
        *,
        query: int = 0,
        pixel: Query | None = None,
        words: str = "",
        headings: Sequence[str] = (),
    ) -> Image.Image:
        """Draws the contact sheet of a map; arguments as in `draw_sheet` and `draw_gate`."""
        labels = explain.label_frames(self.numbers, self.fps)
        if isinstance(found, GateMap):
            size = self.grid[1:]
            return explain.draw_gate(
                self.frames, found, title=title, labels=labels, input_size=size, headings=headings
            )
        return explain.draw_sheet(
            self.frames,
            found,
            title=title,
            labels=labels,
            query=query,
            pixel=pixel,
            origin=(self.box.y0, self.box.x0),
            words=words,
        )


def parse_query(text: str) -> tuple[int, int, int]:
    """Returns the numbers in "FRAME,X,Y".

    Raises:
        ValueError: If the text has another form.
    """
    try:
        frame, x, y = (int(number) for number in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"query {text!r} is not FRAME,X,Y: a frame number and a pixel, such as 40,160,90"
        ) from error
    return frame, x, y


def read_clip(predictor: Predictor, source: Path | FrameFolder, frame: int | None = None) -> Clip:
    """Reads the clip in the middle of a video, or around a frame; decodes only its frames.

    Raises:
        ValueError: If the video does not have that frame.
        DecodeError: If the video cannot be decoded.
    """
    if isinstance(source, FrameFolder):
        return _read_clip(predictor, source, frame, *count_frames(source))
    with Video(source) as video:
        try:
            return _read_clip(predictor, video, frame, video.num_frames, video.fps)
        except DecodeError as error:  # a damaged file lists more frames than decode
            if not error.num_frames:
                raise
            return _read_clip(predictor, video, frame, error.num_frames, video.fps)


def _read_clip(
    predictor: Predictor, video: Video | FrameFolder, frame: int | None, num_frames: int, fps: float
) -> Clip:
    if frame is not None and not 0 <= frame < num_frames:
        source = video.source if isinstance(video, Video) else video
        raise ValueError(
            f"query: frame {frame} is not in {source}; choose one of frames 0 to {num_frames - 1}"
        )
    config = predictor.config
    config = replace(config, test=replace(config.test, num_clips=1, num_crops=1))
    sampler, generator = test_frames(config), sample_generator(0, 0, 0)
    clock = clock_of(config)
    numbers = sample_numbers(sampler, video, num_frames, fps, generator, clock)[0]
    if frame is not None and config.clip.sampling == "dense":
        shift = frame - numbers[len(numbers) // 2]  # the frame becomes the middle of the clip
        numbers = numbers + min(max(shift, -numbers.min()), num_frames - 1 - numbers.max())
    transform = test_transform(config)
    boxes: list[Box] = []

    def crop(height: int, width: int) -> Box:
        boxes[:] = transform.boxes(height, width)
        return boxes[0]

    frames = decode(video, numbers, crop=crop, square_pixels=config.clip.square_pixels)
    inputs = resize(frames, transform.crop)[None]
    to_video = make_to_video(config.clip, predictor.device)
    return Clip(frames, to_video(inputs), boxes[0], numbers.tolist(), fps)
