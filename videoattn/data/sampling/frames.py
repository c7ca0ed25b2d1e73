"""Computes frame indices of clips, without I/O.

Every function returns int64 indices of shape (V, T), V clips of T frames, all below the video's
frame count. `dense` takes T frames at a fixed stride. `segments` splits the video into T equal
segments and takes one frame of each. `uniform` does the same from the first to the last frame, with
segments that share ends.

If a clip extends past the end of the video, a policy decides:
  loop         index modulo the frame count (mmaction2's default)
  repeat_last  repeats the last of the clip's frames inside the video
  error        raises ShortVideoError
"""

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

Indices = Int64[np.ndarray, "V T"]
ShortVideo = Literal["loop", "repeat_last", "error"]


class ShortVideoError(ValueError):
    """Raised by the policy "error" if a video has fewer frames than a clip needs."""


def dense_train(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    frame_stride: int = 1,
    short_video: ShortVideo = "loop",
) -> Indices:
    """Draws one clip; its start is uniform over all positions that fit."""
    span = (num_frames - 1) * frame_stride + 1
    start = draw(max(num_video_frames - span, 0) + 1, 1, generator)
    clip = start + np.arange(num_frames)[None] * frame_stride
    return within(clip, num_video_frames, short_video)


def dense_views(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    frame_stride: int = 1,
    num_clips: int = 1,
    short_video: ShortVideo = "loop",
) -> Indices:
    """Spaces `num_clips` clips evenly from the first position to the last; one is centered."""
    span = (num_frames - 1) * frame_stride + 1
    last_start = max(num_video_frames - span, 0)
    if num_clips == 1:
        starts = np.array([last_start // 2])
    else:
        starts = np.round(np.arange(num_clips) * (last_start / (num_clips - 1))).astype(np.int64)
    clips = starts[:, None] + np.arange(num_frames) * frame_stride
    return within(clips, num_video_frames, short_video)


def segments_train(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    short_video: ShortVideo = "loop",
) -> Indices:
    """Draws one frame of each of `num_frames` equal segments.

    A video with fewer frames than segments repeats frames in order, under every policy except
    "error".
    """
    check_length(num_video_frames, num_frames, short_video)
    jitter = torch.rand(num_frames, generator=generator, dtype=torch.float64).numpy()
    positions = (np.arange(num_frames) + jitter) * (num_video_frames / num_frames)
    return np.minimum(positions.astype(np.int64), num_video_frames - 1)[None]


def segments_views(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    num_clips: int = 1,
    short_video: ShortVideo = "loop",
) -> Indices:
    """Takes the middle frame of each segment; several clips are evenly spaced inside it."""
    check_length(num_video_frames, num_frames, short_video)
    length = num_video_frames / num_frames
    offsets = (np.arange(num_clips) + 0.5) * length / num_clips
    positions = np.arange(num_frames) * length + offsets[:, None]
    return positions.astype(np.int64)


def uniform_train(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    short_video: ShortVideo = "loop",
) -> Indices:
    """Draws one frame of each segment; segments include both ends.

    This is mmaction2's UniformSample, and PySlowFast's sampling for Something-Something.
    """
    check_length(num_video_frames, num_frames, short_video)
    ends = np.round((num_video_frames - 1) / num_frames * np.arange(num_frames + 1)).astype(int)
    drawn = [int(draw(int(high - low) + 1, 1, generator)[0]) for low, high in pairwise(ends)]
    return (ends[:-1] + drawn)[None]


def uniform_views(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    num_clips: int = 1,
    short_video: ShortVideo = "loop",
) -> Indices:
    """Spaces `num_clips` views evenly inside the segments (mmaction2's UniformSample)."""
    check_length(num_video_frames, num_frames, short_video)
    length = (num_video_frames - 1) / num_frames
    starts = np.round(length * np.arange(num_frames)).astype(np.int64)
    offsets = (length / (num_clips + 1) * np.arange(1, num_clips + 1)).astype(np.int64)
    return starts + offsets[:, None]


def within(clips: Indices, num_video_frames: int, short_video: ShortVideo) -> Indices:
    """Applies the policy to indices past the end of the video.

    Raises:
        ShortVideoError: If an index is past the end and the policy is "error".
        ValueError: If the policy is unknown or the video is empty.
    """
    if num_video_frames < 1:
        raise ValueError(f"num_video_frames: got {num_video_frames}; need at least 1")
    if short_video == "error":
        check_length(num_video_frames, int(clips.max()) + 1, short_video)
        return clips
    if short_video == "loop":
        return np.mod(clips, num_video_frames)
    if short_video == "repeat_last":
        inside = clips < num_video_frames
        last = np.where(inside, clips, 0).max(axis=1, keepdims=True)
        return np.where(inside, clips, last)
    raise ValueError(f"short_video: got {short_video!r}; choose from loop, repeat_last, error")


def check_length(num_video_frames: int, needed: int, short_video: ShortVideo) -> None:
    """Raises ShortVideoError if the video is too short and the policy is "error"."""
    if short_video == "error" and num_video_frames < needed:
        raise ShortVideoError(
            f"has {num_video_frames} frames, but the clip needs {needed}; "
            "set short_video to loop or repeat_last, or ask for fewer frames"
        )


def draw(high: int, size: int, generator: torch.Generator) -> Int64[np.ndarray, " V"]:
    """Draws uniform integers from 0 to high - 1."""
    drawn: np.ndarray = torch.randint(high, (size,), generator=generator).numpy()
    return drawn
