"""Which frames of a video make a clip: pure index arithmetic, no I/O.

Every function gives int64 frame indices of shape (V, T), each below the video's frame count: V
clips of T frames. `dense` takes T frames a fixed stride apart; `segments` cuts the video into T
equal parts and takes one frame of each; `uniform` does so from first to last frame, with parts
that share their ends.

Where a clip reaches past the end, a policy says what happens:
  loop         index modulo the frame count (mmaction2's default)
  repeat_last  the last frame of the clip that is still inside the video, repeated
  error        ShortVideoError
"""

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

Indices = Int64[np.ndarray, "V T"]
ShortVideo = Literal["loop", "repeat_last", "error"]


class ShortVideoError(ValueError):
    """The video has fewer frames than the clip spans, and the policy is "error"."""


def dense_train(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    frame_stride: int = 1,
    short_video: ShortVideo = "loop",
) -> Indices:
    """One clip whose start is uniform over all places where it fits."""
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
    """`num_clips` clips evenly from the first place to the last; one clip: the centre."""
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
    """One frame at a uniform place of each of `num_frames` equal parts.

    A video with fewer frames than parts repeats frames in order, whichever the policy (unless it
    is "error"): parts shorter than a frame still name a frame.
    """
    enough(num_video_frames, num_frames, short_video)
    jitter = torch.rand(num_frames, generator=generator, dtype=torch.float64).numpy()
    places = (np.arange(num_frames) + jitter) * (num_video_frames / num_frames)
    return np.minimum(places.astype(np.int64), num_video_frames - 1)[None]


def segments_views(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    num_clips: int = 1,
    short_video: ShortVideo = "loop",
) -> Indices:
    """The middle frame of each part; several clips lie evenly spread inside the parts."""
    enough(num_video_frames, num_frames, short_video)
    part = num_video_frames / num_frames
    inside = (np.arange(num_clips) + 0.5) * part / num_clips
    places = np.arange(num_frames) * part + inside[:, None]
    return places.astype(np.int64)


def uniform_train(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    short_video: ShortVideo = "loop",
) -> Indices:
    """One frame of each part, its two ends included (mmaction2's UniformSample, and PySlowFast's
    Something-Something)."""
    enough(num_video_frames, num_frames, short_video)
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
    """`num_clips` views evenly spread inside the parts (mmaction2's UniformSample)."""
    enough(num_video_frames, num_frames, short_video)
    part = (num_video_frames - 1) / num_frames
    starts = np.round(part * np.arange(num_frames)).astype(np.int64)
    inside = (part / (num_clips + 1) * np.arange(1, num_clips + 1)).astype(np.int64)
    return starts + inside[:, None]


def within(clips: Indices, num_video_frames: int, short_video: ShortVideo) -> Indices:
    """Indices past the end of the video brought inside by the policy.

    Raises: ShortVideoError under "error"; ValueError for an unknown policy or an empty video.
    """
    if num_video_frames < 1:
        raise ValueError(f"num_video_frames: got {num_video_frames}; need at least 1")
    if short_video == "error":
        enough(num_video_frames, int(clips.max()) + 1, short_video)
        return clips
    if short_video == "loop":
        return np.mod(clips, num_video_frames)
    if short_video == "repeat_last":
        inside = clips < num_video_frames
        last = np.where(inside, clips, 0).max(axis=1, keepdims=True)
        return np.where(inside, clips, last)
    raise ValueError(f"short_video: got {short_video!r}; choose from loop, repeat_last, error")


def enough(num_video_frames: int, needed: int, short_video: ShortVideo) -> None:
    """Raises: ShortVideoError for fewer frames than needed, under the policy "error"."""
    if short_video == "error" and num_video_frames < needed:
        raise ShortVideoError(
            f"has {num_video_frames} frames, but the clip needs {needed}; "
            "set short_video to loop or repeat_last, or ask for fewer frames"
        )


def draw(high: int, size: int, generator: torch.Generator) -> Int64[np.ndarray, " V"]:
    """Uniform from 0 to high - 1."""
    drawn: np.ndarray = torch.randint(high, (size,), generator=generator).numpy()
    return drawn
