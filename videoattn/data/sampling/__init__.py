"""Selects the frames of clips.

`frames` has this project's arithmetic, `published` the arithmetic of other toolboxes.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64

from videoattn.data.sampling import frames, published
from videoattn.data.sampling.frames import Indices, ShortVideo
from videoattn.data.sampling.frames import ShortVideoError as ShortVideoError

Pattern = Literal["dense", "segments", "uniform"]
Arithmetic = Literal["plain", "mmaction2", "pyslowfast"]

Sampler = Callable[[int, float, torch.Generator], Indices]
"""(frames in the video, frames per second, generator) -> indices."""

Table = dict[str, dict[str, Callable[..., Indices]]]

_TRAIN: Table = {
    "plain": {
        "dense": frames.dense_train,
        "segments": frames.segments_train,
        "uniform": frames.uniform_train,
    },
    "mmaction2": {
        "dense": published.mmaction2_train,
        "segments": published.mmaction2_segments_train,
        "uniform": frames.uniform_train,
    },
    "pyslowfast": {"dense": published.pyslowfast_train},
}
_VIEWS: Table = {
    "plain": {
        "dense": frames.dense_views,
        "segments": frames.segments_views,
        "uniform": frames.uniform_views,
    },
    "mmaction2": {
        "dense": published.mmaction2_views,
        "segments": published.mmaction2_segments_views,
        "uniform": frames.uniform_views,
    },
    "pyslowfast": {"dense": published.pyslowfast_views},
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
    """Returns a sampler that draws one random clip of shape (1, num_frames).

        Args:
    X        num_frames: Frames of a clip.
            frame_stride: Distance between frames. Segments ignore it.
            short_video: What to do if a clip is longer than the video (see `frames`).
            arithmetic: The toolbox whose rounding to use.
            options: Further options of the arithmetic.

        Raises:
            ValueError: If the arithmetic lacks the pattern or an option, or a count is below 1.
    """
    return _bind(_TRAIN, arithmetic, pattern, num_frames, frame_stride, short_video, options)


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
    """Returns a sampler of `num_clips` evenly spaced views, without randomness.

    Arguments and errors are those of `train_sampler`.
    """
    if num_clips != 1:
        options["num_clips"] = num_clips
    return _bind(_VIEWS, arithmetic, pattern, num_frames, frame_stride, short_video, options)


def repeated(draw: Sampler, num_clips: int) -> Sampler:
    """Returns a sampler that draws `num_clips` independent clips."""
    return draw if num_clips == 1 else partial(_repeated, draw, num_clips)


def at_rate(times: Float64[np.ndarray, " N"], fps: float) -> Int64[np.ndarray, " M"]:
    """Returns the index of the visible frame at each tick of a clock.

    Args:
        times: The time of each frame in seconds after the first. The last frame remains visible
            for the mean duration.
        fps: Ticks per second.
    """
    duration = times[-1] * len(times) / max(len(times) - 1, 1)
    ticks = np.arange(max(round(duration * fps), 1)) / fps
    # A tolerance of one millisecond: Matroska rounds times to milliseconds.
    return np.searchsorted(times, ticks + 1e-3, side="right") - 1


def _repeated(
    draw: Sampler, num_clips: int, num_video_frames: int, fps: float, generator: torch.Generator
) -> Indices:
    return np.concatenate([draw(num_video_frames, fps, generator) for _ in range(num_clips)])


def _bind(
    table: Table,
    arithmetic: str,
    pattern: str,
    num_frames: int,
    frame_stride: int,
    short_video: str,
    options: dict[str, Any],
) -> Sampler:
    """Returns the function of a pattern, with its options bound."""
    if arithmetic not in table:
        raise ValueError(f"arithmetic: got {arithmetic!r}; choose from {', '.join(table)}")
    if pattern not in table[arithmetic]:
        raise ValueError(
            f"sampling: {arithmetic} has no {pattern!r}; it has {', '.join(table[arithmetic])}"
            + ("" if arithmetic == "plain" else "; or choose arithmetic plain")
        )
    sample = table[arithmetic][pattern]
    known = inspect.signature(sample).parameters
    if unknown := [name for name in options if name not in known]:
        raise ValueError(
            f"{unknown[0]}: {arithmetic} {pattern!r} sampling has no such option; leave it out"
        )
    counts = {"num_frames": num_frames, "frame_stride": frame_stride, "num_clips": 1, **options}
    for name in ("num_frames", "frame_stride", "num_clips"):
        if counts[name] < 1:
            raise ValueError(f"{name}: got {counts[name]}; need at least 1")
    if "frame_stride" in known:
        options = {"frame_stride": frame_stride, **options}
    return partial(sample, num_frames=num_frames, short_video=short_video, **options)
