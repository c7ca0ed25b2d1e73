"""Samplers by name: which frames of a video make a clip.

`plain_sampling` has our arithmetic, `published_sampling` that of other toolboxes.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64

from videoattn.data.sampling import plain, published
from videoattn.data.sampling.plain import Indices, ShortVideo
from videoattn.data.sampling.plain import ShortVideoError as ShortVideoError

Pattern = Literal["dense", "segments", "uniform"]
Arithmetic = Literal["plain", "mmaction2", "pyslowfast"]

Sampler = Callable[[int, float, torch.Generator], Indices]
"""(frames in the video, frames per second, generator) -> indices."""

_TRAIN: dict[tuple[str, str], Callable[..., Indices]] = {
    ("plain", "dense"): plain.dense_train,
    ("plain", "segments"): plain.segments_train,
    ("plain", "uniform"): plain.uniform_train,
    ("mmaction2", "dense"): published.mmaction2_train,
    ("mmaction2", "segments"): published.mmaction2_segments_train,
    ("mmaction2", "uniform"): plain.uniform_train,
    ("pyslowfast", "dense"): published.pyslowfast_train,
}
_VIEWS: dict[tuple[str, str], Callable[..., Indices]] = {
    ("plain", "dense"): plain.dense_views,
    ("plain", "segments"): plain.segments_views,
    ("plain", "uniform"): plain.uniform_views,
    ("mmaction2", "dense"): published.mmaction2_views,
    ("mmaction2", "segments"): published.mmaction2_segments_views,
    ("mmaction2", "uniform"): plain.uniform_views,
    ("pyslowfast", "dense"): published.pyslowfast_views,
}


def train_sampler(
    pattern: Pattern,
    *,
    num_frames: int,
    frame_stride: int = 1,
    short_video: ShortVideo = "loop",
    arithmetic: Arithmetic = "plain",
    **options: Any,
) -> Sampler:
    """A sampler that draws one clip at random. `options`: what else the arithmetic can do.

    Raises: ValueError for a pattern or an option that the arithmetic does not have, and for counts
    below 1.
    """
    make = _find(_TRAIN, arithmetic, pattern)
    return _bind(make, arithmetic, pattern, num_frames, frame_stride, short_video, options)


def view_sampler(
    pattern: Pattern,
    *,
    num_frames: int,
    frame_stride: int = 1,
    num_clips: int = 1,
    short_video: ShortVideo = "loop",
    arithmetic: Arithmetic = "plain",
    **options: Any,
) -> Sampler:
    """A sampler that takes `num_clips` views, evenly spread, without randomness.

    Raises: as `train_sampler`.
    """
    make = _find(_VIEWS, arithmetic, pattern)
    options |= {"num_clips": num_clips} if num_clips != 1 else {}
    return _bind(make, arithmetic, pattern, num_frames, frame_stride, short_video, options)


def repeated(draw: Sampler, num_clips: int) -> Sampler:
    """A sampler that draws `num_clips` times, each on its own."""
    return draw if num_clips == 1 else partial(_repeated, draw, num_clips)


def _repeated(
    draw: Sampler, num_clips: int, num_video_frames: int, fps: float, generator: torch.Generator
) -> Indices:
    return np.concatenate([draw(num_video_frames, fps, generator) for _ in range(num_clips)])


def at_rate(times: Float64[np.ndarray, " N"], fps: float) -> Int64[np.ndarray, " M"]:
    """Which frame is shown at each tick of a clock of `fps` ticks a second; `times` are when the
    frames are shown, in seconds from the first. The last one is shown for the mean time."""
    duration = times[-1] * len(times) / max(len(times) - 1, 1)
    ticks = np.arange(max(round(duration * fps), 1)) / fps
    # A millisecond's grace: Matroska rounds times to it.
    return np.searchsorted(times, ticks + 1e-3, side="right") - 1


def _find(
    table: Mapping[tuple[str, str], Callable[..., Indices]], arithmetic: str, pattern: str
) -> Callable[..., Indices]:
    arithmetics = dict.fromkeys(known for known, _ in table)
    if arithmetic not in arithmetics:
        raise ValueError(f"arithmetic: got {arithmetic!r}; choose from {', '.join(arithmetics)}")
    if (arithmetic, pattern) not in table:
        patterns = [known for of, known in table if of == arithmetic]
        raise ValueError(
            f"sampling: {arithmetic} has no {pattern!r}; it has {', '.join(patterns)}"
            + ("" if arithmetic == "plain" else "; or choose arithmetic plain")
        )
    return table[arithmetic, pattern]


def _bind(
    make: Callable[..., Indices], arithmetic: str, pattern: str,
    num_frames: int, frame_stride: int, short_video: str, options: Mapping[str, Any],
) -> Sampler:  # fmt: skip
    known = inspect.signature(make).parameters
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"{unknown[0]}: {arithmetic} {pattern!r} sampling has no such option; leave it out"
        )
    counts = {"num_frames": num_frames, "frame_stride": frame_stride, "num_clips": 1, **options}
    for name in ("num_frames", "frame_stride", "num_clips"):
        if counts[name] < 1:
            raise ValueError(f"{name}: got {counts[name]}; need at least 1")
    # Segments have no stride: what a recipe says of it means nothing to them.
    stride = {"frame_stride": frame_stride} if "frame_stride" in known else {}
    return partial(make, num_frames=num_frames, short_video=short_video, **stride, **options)
