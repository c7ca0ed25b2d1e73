"""Reads a clip of a video as the network's input, records its maps, and draws them."""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from videoattn import explain
from videoattn.attention.archive import MapArchive
from videoattn.attention.maps import GateMap, PairwiseMap
from videoattn.attention.record import Maps, Query, record_attention, recordable_blocks
from videoattn.data.dataset import sample_generator, sample_numbers
from videoattn.data.decode import DecodeError, Video, count_frames, decode
from videoattn.data.decode.source import FrameFolder
from videoattn.data.transforms import Box, resize
from videoattn.explain.explorer.pack import stage_of
from videoattn.explain.faithful.score import cost_of
from videoattn.recipe.console import show
from videoattn.recipe.data import clock_of, make_to_video, test_frames, test_transform
from videoattn.recipe.run import Predictor

NUM_CLASSES = 5
"""Classes with a CAM: the most probable ones, and the true one."""
CAM = "hires_cam"
MOST_BLOCKS = 4  # if a network has more, the last of each stage is drawn


@dataclass(frozen=True)
class Clip:
    """The center view of a video.

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


def read_clip(predictor: Predictor, source: Path | FrameFolder, frame: int | None = None) -> Clip:
    """Reads the clip in the middle of a video, or around a frame; decodes only its frames."""
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


def record_clip(
    loaded: Predictor,
    clip: Clip,
    *,
    queries: Sequence[Query] | None = None,
    truth: str | None = None,
    cams: bool = False,
    costs: bool = False,
) -> MapArchive:
    """Returns the maps of every block, the frames, and facts about the clip.

    Args:
        queries: Positions in the network's input. Default: chosen ones, if a block has a
            pairwise map.
        truth: The true class, if it is known.
        cams: Also record a CAM of the last stage for the most probable classes and the true one.
        costs: Also measure what hiding the top tenth of each map costs the predicted class, in 12
            forward passes for each map.
    """
    maps, logits = forward(loaded, clip, queries or (), factors="instead")
    probabilities = loaded.scores(logits[None])[0]
    best = probabilities.argsort(descending=True).tolist()
    shown = best[:NUM_CLASSES]
    if truth is not None and loaded.class_names.index(truth) not in shown:
        shown.append(loaded.class_names.index(truth))
    pairwise = any(isinstance(found, PairwiseMap) for found in maps.values())
    chosen: list[explain.Chosen] = []
    if pairwise and queries is None:
        chosen = _chosen_queries(loaded, clip, best[0], maps)
        large = [name for name, m in maps.items() if isinstance(m, PairwiseMap) and not m.is_whole]
        if large:  # their rows are too many; only these are recorded
            again, _ = forward(loaded, clip, [one.query for one in chosen], factors="instead")
            maps |= {name: again[name] for name in large}
    for label in shown if cams else ():
        maps[f"{CAM}/{loaded.class_names[label]}"] = score_map(loaded, clip, label)
    about = {
        "video": clip.name,
        "run": loaded.config.name,
        "network": loaded.config.model.name,
        "numbers": clip.numbers,
        "fps": clip.fps,
        "input": list(clip.grid),
        "classes": [(loaded.class_names[k], float(probabilities[k])) for k in shown],
        "truth": truth,
        "queries": [(*one.query, one.title, one.reason) for one in chosen],
        "costs": _costs(loaded, clip, maps, best[0]) if costs else {},
    }
    return MapArchive(maps, clip.frames, about)


def _chosen_queries(loaded: Predictor, clip: Clip, label: int, maps: Maps) -> list[explain.Chosen]:
    """Returns the position that adds most to the score of a class, and the one with the most motion
    or, if nothing moves, the one that receives the most attention in the last block."""
    chosen = [explain.score_position(loaded.model, clip.video, label, loaded.class_names[label])]
    moving = explain.motion_position(clip.frames, clip.grid)
    if moving is not None:
        return [*chosen, moving]
    pairwise = [m for m in maps.values() if isinstance(m, PairwiseMap) and m.is_whole]
    for found in pairwise[-1:]:  # a still clip
        received = explain.summarize(found).received.view(1, *found.grid_k)
        (query,) = explain.choose_queries(replace(found, received=received), clip.grid, count=1)
        chosen.append(explain.Chosen(query, "most attention", "it receives the most attention"))
    return chosen


def forward(
    loaded: Predictor, clip: Clip, queries: Sequence[Query], **options: Any
) -> tuple[Maps, Tensor]:
    """Returns the maps and the logits; options as for `record_attention`."""
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


def score_map(
    loaded: Predictor, clip: Clip, label: int, method: str = CAM, **layer: str
) -> GateMap:
    """Returns the map of a method in `explain.METHODS` for the score of a class, on the CPU."""
    target = torch.tensor([label], device=clip.video.device)
    found = explain.METHODS[method](loaded.model, clip.video, target, **layer)
    return replace(found, weights=found.weights.float().cpu())


def _costs(loaded: Predictor, clip: Clip, maps: Maps, label: int) -> dict[str, str]:
    """Returns the cost of each map; of CAMs, that of the predicted class."""
    cam = f"{CAM}/{loaded.class_names[label]}"
    return {
        CAM if name == cam else name: cost_of(loaded.model, clip.video, found, label, loaded.scores)
        for name, found in maps.items()
        if name == cam or not name.startswith(f"{CAM}/")
    }


def map_owners(maps: Mapping[str, object], blocks: Sequence[str]) -> dict[str, str]:
    """Returns the block of each map: the longest block name that the map's name starts with."""
    longest_first = sorted(blocks, key=len, reverse=True)
    return {
        name: next(block for block in longest_first if f"{name}.".startswith(f"{block}."))
        for name in maps
    }


def choose_maps(layer: str | None, owners: Mapping[str, str]) -> list[str]:
    """Returns the names of the maps to draw, and prints a note about those that are left out."""
    blocks = list(dict.fromkeys(owners.values()))
    if layer is not None:
        prefix = re.compile(re.escape(layer) + r"(?!(?<=\d)\d)")  # layer1 does not match layer10
        chosen = [name for name in owners if prefix.match(name)]
        if not chosen:
            names = ", ".join(blocks)
            raise ValueError(f"layer {layer!r} has no attention map; choose from {names}")
        return chosen
    drawn = blocks
    if len(blocks) > MOST_BLOCKS:
        last = {stage_of(block): block for block in blocks}
        drawn = list(last.values())[-MOST_BLOCKS:]
        note = (
            f"drawing {len(drawn)} of {len(blocks)} attention blocks, the last of each stage; for "
            f"others pass --layer with a name or a prefix (--layer {stage_of(blocks[0])}): "
        )
        show(note + ", ".join(blocks))
    return [name for name, block in owners.items() if block in drawn]
