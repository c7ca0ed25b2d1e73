"""Selects the frames of clips.

`frames` has this project's arithmetic, `published` the arithmetic of other toolboxes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64, Int64

from videoattn.data.sampling import frames, published
from videoattn.data.sampling.frames import ClipSpec, Indices, ShortVideo
from videoattn.data.sampling.frames import ShortVideoError as ShortVideoError
from videoattn.errors import one_of

Pattern = Literal["dense", "segments", "uniform"]
Arithmetic = Literal["plain", "mmaction2", "pyslowfast"]

Sampler = Callable[[int, float, torch.Generator], Indices]
"""(number of frames in the video, frames per second, generator) -> frame indices, (V, T)."""

_RATE, _CLIPS = {"target_fps"}, {"num_clips"}

Table = dict[str, dict[str, tuple[Callable[..., Indices], set[str]]]]
"""Arithmetic -> pattern -> (function, its options in addition to the common ones)."""

_TRAIN: Table = {
    "plain": {
        "dense": (frames.dense_train, set()),
        "segments": (frames.segments_train, set()),
        "uniform": (frames.uniform_train, set()),
    },
    "mmaction2": {
        "dense": (published.mmaction2_train, _CLIPS | _RATE | {"keep_tail_frames"}),
        "segments": (published.mmaction2_segments_train, _RATE | {"keep_tail_frames"}),
        "uniform": (frames.uniform_train, set()),
    },
    "pyslowfast": {"dense": (published.pyslowfast_train, _RATE)},
}
_VIEWS: Table = {
    "plain": {
        "dense": (published.mmaction2_views, _CLIPS),
        "segments": (frames.segments_views, _CLIPS),
        "uniform": (frames.uniform_views, _CLIPS),
    },
    "mmaction2": {
        "dense": (published.mmaction2_views, _CLIPS | _RATE | {"twice_sample"}),
        "segments": (published.mmaction2_segments_views, _RATE | {"twice_sample"}),
        "uniform": (frames.uniform_views, _CLIPS),
    },
    "pyslowfast": {"dense": (published.pyslowfast_views, _CLIPS | _RATE | {"use_offset"})},
}


def train_sampler(pattern: Pattern, *, arithmetic: Arithmetic = "plain", **options: Any) -> Sampler:
    """Returns a sampler of one random clip, or of `num_clips` with mmaction2's dense pattern.

    Args:
        arithmetic: The toolbox whose rounding is used; "plain" is this package's.
        options: `num_frames`, and further fields of `ClipSpec`.

    Raises:
        ValueError: If the arithmetic lacks the pattern or an option, or a count is below 1.
    """
    return _bind(_TRAIN, arithmetic, pattern, ClipSpec(**options))


def view_sampler(pattern: Pattern, *, arithmetic: Arithmetic = "plain", **options: Any) -> Sampler:
    """Returns a sampler of `num_clips` evenly spaced views, without randomness.

    Arguments and errors are those of `train_sampler`.
    """
    return _bind(_VIEWS, arithmetic, pattern, ClipSpec(**options))


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


def _bind(table: Table, arithmetic: str, pattern: str, spec: ClipSpec) -> Sampler:
    """Returns the function of a pattern, with its options bound."""
    one_of("arithmetic", arithmetic, table)
    one_of("short_video", spec.short_video, get_args(ShortVideo))
    if pattern not in table[arithmetic]:
        raise ValueError(
            f"sampling: {arithmetic} has no {pattern!r}; it has {', '.join(table[arithmetic])}"
            + ("" if arithmetic == "plain" else "; or choose arithmetic plain")
        )
    sample, known = table[arithmetic][pattern]
    for name, default in ClipSpec._field_defaults.items():
        everywhere = name in ("frame_stride", "short_video")
        if getattr(spec, name) != default and not everywhere and name not in known:
            raise ValueError(
                f"{name}: {arithmetic} {pattern!r} sampling has no such option; leave it out"
            )
    for name in ("num_frames", "frame_stride", "num_clips"):
        if getattr(spec, name) < 1:
            raise ValueError(f"{name}: got {getattr(spec, name)}; need at least 1")
    return partial(sample, spec)
