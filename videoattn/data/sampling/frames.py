"""Computes frame indices of clips, without I/O.

Every function takes a `ClipSpec`, the number and rate of the video's frames, and a generator. It
returns int64 indices of shape (V, T), V clips of T frames, all below the frame count. `dense` takes
T frames at a fixed stride. `segments` splits the video into T equal segments and takes one frame of
each. `uniform` does the same from the first to the last frame, with segments that share ends.

If a clip extends past the end of the video, the policy `short_video` decides:
  loop         index modulo the frame count (mmaction2's default)
  repeat_last  repeats the clip's last frame that is inside the video
  error        raises ShortVideoError
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Generator

Indices = Int64[np.ndarray, "V T"]
ShortVideo = Literal["loop", "repeat_last", "error"]


class ClipSpec(NamedTuple):
    """The clips to sample from a video. Each function supports some of the options.

    Args:
        num_frames: Number of frames in a clip.
        frame_stride: Distance between frames; `segments` and `uniform` ignore it.
        num_clips: Number of clips.
        short_video: The policy for clips that extend past the end of the video.
        target_fps: Frame rate at which the stride is measured. None: the rate of the video. A video
            without a rate is assumed to have the target rate.
        keep_tail_frames: Also samples the frames after the last whole section (mmaction2).
        twice_sample: Takes twice as many clips (mmaction2).
        use_offset: Spaces clips by whole frames (PySlowFast's TEST.USE_OFFSET_SAMPLING).
    """

    num_frames: int
    frame_stride: int = 1
    num_clips: int = 1
    short_video: ShortVideo = "loop"
    target_fps: float | None = None
    keep_tail_frames: bool = False
    twice_sample: bool = False
    use_offset: bool = False

    @property
    def steps(self) -> Int64[np.ndarray, " T"]:
        """The frame numbers of a clip that starts at 0."""
        return np.arange(self.num_frames) * self.frame_stride


class ShortVideoError(ValueError):
    """Raised by the policy "error" if a video has fewer frames than a clip needs."""


def dense_train(spec: ClipSpec, num_video_frames: int, fps: float, generator: Generator) -> Indices:
    """Draws one clip; its start is uniform over all positions that fit."""
    start = draw(max(num_video_frames - int(spec.steps[-1]), 1), 1, generator)
    return within((start + spec.steps)[None], num_video_frames, spec)


def segments_train(
    spec: ClipSpec, num_video_frames: int, fps: float, generator: Generator
) -> Indices:
    """Draws one frame of each of `num_frames` equal segments.

    A video with fewer frames than segments repeats frames in order, under every policy except
    "error".
    """
    check_length(num_video_frames, spec.num_frames, spec)
    jitter = torch.rand(spec.num_frames, generator=generator, dtype=torch.float64).numpy()
    positions = (np.arange(spec.num_frames) + jitter) * (num_video_frames / spec.num_frames)
    return np.minimum(positions.astype(np.int64), num_video_frames - 1)[None]


def segments_views(
    spec: ClipSpec, num_video_frames: int, fps: float, generator: Generator
) -> Indices:
    """Takes the middle frame of each segment, or evenly spaced ones if there are several clips."""
    check_length(num_video_frames, spec.num_frames, spec)
    length = num_video_frames / spec.num_frames
    offsets = (np.arange(spec.num_clips) + 0.5) * length / spec.num_clips
    positions = np.arange(spec.num_frames) * length + offsets[:, None]
    return positions.astype(np.int64)


def uniform_train(
    spec: ClipSpec, num_video_frames: int, fps: float, generator: Generator
) -> Indices:
    """Draws one frame of each segment; segments include both ends.

    This is mmaction2's UniformSample, and PySlowFast's sampling for Something-Something.
    """
    check_length(num_video_frames, spec.num_frames, spec)
    ends = np.round(
        (num_video_frames - 1) / spec.num_frames * np.arange(spec.num_frames + 1)
    ).astype(int)
    drawn = [int(draw(int(high - low) + 1, 1, generator)[0]) for low, high in pairwise(ends)]
    return (ends[:-1] + drawn)[None]


def uniform_views(
    spec: ClipSpec, num_video_frames: int, fps: float, generator: Generator
) -> Indices:
    """Spaces `num_clips` views evenly inside the segments (mmaction2's UniformSample)."""
    check_length(num_video_frames, spec.num_frames, spec)
    length = (num_video_frames - 1) / spec.num_frames
    starts = np.round(length * np.arange(spec.num_frames)).astype(np.int64)
    offsets = (length / (spec.num_clips + 1) * np.arange(1, spec.num_clips + 1)).astype(np.int64)
    return starts + offsets[:, None]


def within(clips: Indices, num_video_frames: int, spec: ClipSpec) -> Indices:
    """Applies the policy to indices past the end of the video; "error" raises ShortVideoError."""
    if num_video_frames < 1:
        raise ValueError(f"num_video_frames: got {num_video_frames}; need at least 1")
    check_length(num_video_frames, int(clips.max()) + 1, spec)
    if spec.short_video == "loop":
        return np.mod(clips, num_video_frames)
    inside = clips < num_video_frames
    last = np.where(inside, clips, 0).max(axis=1, keepdims=True)
    return np.where(inside, clips, last)


def check_length(num_video_frames: int, needed: int, spec: ClipSpec) -> None:
    """Raises ShortVideoError if the video is too short and the policy is "error"."""
    if spec.short_video == "error" and num_video_frames < needed:
        raise ShortVideoError(
            f"has {num_video_frames} frames, but the clip needs {needed}; "
            "set short_video to loop or repeat_last, or ask for fewer frames"
        )


def draw(high: int, size: int, generator: Generator) -> Int64[np.ndarray, " V"]:
    """Draws `size` uniform integers from 0 to `high` - 1."""
    drawn: np.ndarray = torch.randint(high, (size,), generator=generator).numpy()
    return drawn
