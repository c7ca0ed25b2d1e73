"""Reads a clip of a video as the network's input, records its maps, and draws them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from videoattn import explain
from videoattn.attention.maps import GateMap, PairwiseMap
from videoattn.attention.record import Maps, Query, record_attention, recordable_blocks
from videoattn.data.dataset import sample_generator, sample_numbers
from videoattn.data.decode import DecodeError, Video, count_frames, decode
from videoattn.data.decode.source import FrameFolder
from videoattn.data.transforms import Box, resize
from videoattn.recipe.console import show
from videoattn.recipe.data import clock_of, make_to_video, test_frames, test_transform
from videoattn.recipe.run import Predictor


@dataclass(frozen=True)
class Clip:
    """One view of a video: the center crop of a clip.

    Args:
        name: The name of the file.
        frames: Decoded frames, cropped, (T, 3, H, W) uint8, to draw on.
        video: The network's input, (1, 3, T, h, w).
        box: The crop in pixels of the video.
        numbers: The index of each frame in the video.
        fps: The frame rate of the video.
    """

    name: str
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
        """Converts (FRAME, X, Y) in the video to (frame, y, x) in `frames`."""
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
        headings: Sequence[str] = (),
        **query: Any,
    ) -> Image.Image:
        """Draws the contact sheet of a map, with `query`, `pixel` and `words` as in `draw_sheet`,
        and headings as in `draw_gate`."""
        labels = explain.label_frames(self.numbers, self.fps)
        if isinstance(found, GateMap):
            size = self.grid[1:]
            return explain.draw_gate(
                self.frames, found, title=title, labels=labels, input_size=size, headings=headings
            )
        origin = self.box.y0, self.box.x0
        return explain.draw_sheet(
            self.frames, found, title=title, labels=labels, origin=origin, **query
        )

    def save(
        self,
        stem: str,
        found: PairwiseMap | GateMap,
        title: str,
        *,
        query: int = 0,
        pixel: Query | None = None,
        words: str = "",
    ) -> list[Path]:
        """Writes and prints STEM.png, the sheet of a map, and STEM.mp4, its overlay, if it has one.
        Returns their paths."""
        written = [Path(f"{stem}.png")]
        image = self.draw(found, title, query=query, pixel=pixel, words=words)
        explain.write_png(written[0], image)
        if isinstance(found, PairwiseMap) or found.kind in explain.SPATIAL:
            written.append(Path(f"{stem}.mp4"))
            size = self.grid[1:]
            height, width = explain.write_overlay(
                written[1], self.frames, found, query=query, pixel=pixel, input_size=size
            )
            if width < self.frames.shape[3]:
                full = f"{self.frames.shape[3]} x {self.frames.shape[2]}"
                show(f"the overlay is drawn at {width} x {height} pixels; the clip has {full}")
        for path in written:
            show(path)
        return written


def read_clip(predictor: Predictor, source: Path | FrameFolder, frame: int | None = None) -> Clip:
    """Reads a video's middle clip, or with dense sampling one around `frame`; decodes only that."""
    if isinstance(source, FrameFolder):
        return _read_clip(predictor, source, frame, *count_frames(source))
    with Video(source) as video:
        try:
            return _read_clip(predictor, video, frame, video.num_frames, video.fps)
        except DecodeError as error:  # a damaged file lists more frames than can be decoded
            if not error.num_frames:
                raise
            return _read_clip(predictor, video, frame, error.num_frames, video.fps)


def _read_clip(
    predictor: Predictor, video: Video | FrameFolder, frame: int | None, num_frames: int, fps: float
) -> Clip:
    source = video.source if isinstance(video, Video) else video
    if frame is not None and not 0 <= frame < num_frames:
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
    name = Path(str(source)).name
    return Clip(name, frames, to_video(inputs), boxes[0], numbers.tolist(), fps)


class Recorded(NamedTuple):
    """The maps of a clip by name, its logits (K,), and the queries that were chosen, if any."""

    maps: Maps
    logits: Tensor
    chosen: list[explain.Chosen]


def record_clip(loaded: Predictor, clip: Clip, queries: Sequence[Query] | None = None) -> Recorded:
    """Records the maps of every block, with all rows if memory allows.

    Args:
        queries: Positions in the network's input. Default: `choose_queries`, for pairwise maps.
    """
    maps, logits = forward(loaded, clip, queries or (), factors="instead")
    pairwise = {name: found for name, found in maps.items() if isinstance(found, PairwiseMap)}
    if queries is not None or not pairwise:
        return Recorded(maps, logits, [])
    label = int(logits.argmax())
    chosen = explain.choose_queries(
        loaded.model, clip.video, clip.frames, label, loaded.class_names[label], maps
    )
    large = [name for name, found in pairwise.items() if not found.is_whole]
    if large:  # all rows are too many; record those of the chosen queries
        again, _ = forward(loaded, clip, [one.query for one in chosen], factors="instead")
        maps |= {name: again[name] for name in large}
    return Recorded(maps, logits, chosen)


def forward(
    loaded: Predictor, clip: Clip, queries: Sequence[Query], **options: Any
) -> tuple[Maps, Tensor]:
    """Returns the maps and the logits (K,); options as for `record_attention`."""
    recording: AbstractContextManager[Maps] = nullcontext({})
    if recordable_blocks(loaded.model):
        recording = record_attention(loaded.model, queries=queries, **options)
    with torch.no_grad(), recording as maps:
        logits = loaded.model(clip.video)[0]
    return maps, logits.float().cpu()


def answer_text(loaded: Predictor, logits: Tensor, label: int | None = None) -> str:
    """Returns a class, by default the most likely one, with its probability: "runs, 93 %"."""
    probabilities = loaded.scores(logits[None])[0]
    label = int(probabilities.argmax()) if label is None else label
    return f"{loaded.class_names[label]}, {100 * float(probabilities[label]):.0f} %"


def map_owners(maps: Mapping[str, object], blocks: Sequence[str]) -> dict[str, str]:
    """Returns the block of each map: the longest block name that the map's name starts with."""
    longest_first = sorted(blocks, key=len, reverse=True)
    return {
        name: next(block for block in longest_first if f"{name}.".startswith(f"{block}."))
        for name in maps
    }
