"""Which frames of a video make a clip: pure index arithmetic, no I/O.

Every function returns int64 frame indices of shape (V, T), each below the video's frame count:
V clips of T frames. `dense` takes T frames a fixed stride apart; `segments` cuts the video into T
equal parts and takes one frame of each.

Where a clip reaches past the end, a policy says what happens:
  loop         index modulo the frame count (mmaction2's default)
  repeat_last  the last frame of the clip that is still inside the video, repeated
  error        ShortVideoError
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

Indices = Int64[np.ndarray, "V T"]
ShortVideo = Literal["loop", "repeat_last", "error"]
Pattern = Literal["dense", "segments"]
Arithmetic = Literal["plain", "mmaction2", "pyslowfast"]

Sampler = Callable[[int, float, torch.Generator], Indices]
"""(frames in the video, frames per second, generator) -> indices."""


class ShortVideoError(ValueError):
    """The video has fewer frames than the clip spans, and the policy is "error"."""


def train_sampler(
    pattern: Pattern,
    *,
    num_frames: int,
    frame_stride: int = 1,
    short_video: ShortVideo = "loop",
) -> Sampler:
    """A sampler that draws one clip at random."""
    if pattern == "dense":
        return partial(
            _dense_train_of,
            num_frames=num_frames,
            frame_stride=frame_stride,
            short_video=short_video,
        )
    if pattern == "segments":
        return partial(_segments_train_of, num_segments=num_frames, short_video=short_video)
    raise _unknown_pattern(pattern)


def view_sampler(
    pattern: Pattern,
    *,
    num_frames: int,
    frame_stride: int = 1,
    num_clips: int = 1,
    short_video: ShortVideo = "loop",
    arithmetic: Arithmetic = "plain",
) -> Sampler:
    """A sampler that takes `num_clips` views, evenly spread, without randomness.

    `arithmetic` is whose frames these are. "plain" and "mmaction2" place clips alike (mmaction2's
    arithmetic, without a target frame rate); "pyslowfast" resamples to 30 frames per second.
    """
    if arithmetic == "pyslowfast":
        if pattern != "dense":
            raise ValueError(
                f"arithmetic: pyslowfast has no {pattern!r} pattern; choose pattern dense, "
                "or arithmetic plain"
            )
        return partial(
            _pyslowfast_of, num_frames=num_frames, sampling_rate=frame_stride, num_clips=num_clips
        )
    if arithmetic not in ("plain", "mmaction2"):
        raise ValueError(
            f"arithmetic: got {arithmetic!r}; choose from plain, mmaction2, pyslowfast"
        )
    if pattern == "dense":
        return partial(
            _dense_views_of,
            num_frames=num_frames,
            frame_stride=frame_stride,
            num_clips=num_clips,
            short_video=short_video,
        )
    if pattern == "segments":
        return partial(
            _segments_views_of,
            num_segments=num_frames,
            num_clips=num_clips,
            short_video=short_video,
        )
    raise _unknown_pattern(pattern)


def dense_train(
    num_video_frames: int,
    num_frames: int,
    frame_stride: int,
    generator: torch.Generator,
    *,
    short_video: ShortVideo = "loop",
) -> Indices:
    """One clip whose start is uniform over all places where it fits."""
    span = (num_frames - 1) * frame_stride + 1
    start = _randint(max(num_video_frames - span, 0) + 1, generator)
    clip = start + np.arange(num_frames)[None] * frame_stride
    return within(clip, num_video_frames, short_video)


def dense_views(
    num_video_frames: int,
    num_frames: int,
    frame_stride: int,
    num_clips: int,
    *,
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
    num_segments: int,
    generator: torch.Generator,
    *,
    short_video: ShortVideo = "loop",
) -> Indices:
    """One frame at a uniform place of each of `num_segments` equal parts.

    A video with fewer frames than segments repeats frames in order, whichever the policy (unless
    it is "error"): parts shorter than a frame still name a frame.
    """
    _enough(num_video_frames, num_segments, short_video)
    jitter = torch.rand(num_segments, generator=generator, dtype=torch.float64).numpy()
    places = (np.arange(num_segments) + jitter) * (num_video_frames / num_segments)
    return np.minimum(places.astype(np.int64), num_video_frames - 1)[None]


def segments_views(
    num_video_frames: int,
    num_segments: int,
    num_clips: int = 1,
    *,
    short_video: ShortVideo = "loop",
) -> Indices:
    """The middle frame of each part; several clips lie evenly spread inside the parts."""
    _enough(num_video_frames, num_segments, short_video)
    part = num_video_frames / num_segments
    inside = (np.arange(num_clips) + 0.5) * part / num_clips
    places = np.arange(num_segments) * part + inside[:, None]
    return places.astype(np.int64)


def within(clips: Indices, num_video_frames: int, short_video: ShortVideo) -> Indices:
    """Indices past the end of the video brought inside by the policy.

    Raises: ShortVideoError under "error"; ValueError for an unknown policy or an empty video.
    """
    if num_video_frames < 1:
        raise ValueError(f"num_video_frames: got {num_video_frames}; need at least 1")
    if short_video == "error":
        _enough(num_video_frames, int(clips.max()) + 1, short_video)
        return clips
    if short_video == "loop":
        return np.mod(clips, num_video_frames)
    if short_video == "repeat_last":
        inside = clips < num_video_frames
        last = np.where(inside, clips, 0).max(axis=1, keepdims=True)
        return np.where(inside, clips, last)
    raise ValueError(f"short_video: got {short_video!r}; choose from loop, repeat_last, error")


def mmaction2_views(
    num_video_frames: int,
    clip_len: int,
    frame_interval: int = 1,
    num_clips: int = 1,
    *,
    twice_sample: bool = False,
    fps_ratio: float | None = None,
    out_of_bound: Literal["loop", "repeat_last"] = "loop",
) -> Indices:
    """Test frames of mmaction2's SampleFrames (mmaction/datasets/transforms/loading.py, 4d6c934).

    `fps_ratio` is the video's frame rate over `target_fps`; None: no target. With `clip_len` 1 the
    rows are the segments of a 2-D recogniser. `twice_sample` doubles the number of rows.
    """
    clips = num_clips * 2 if twice_sample else num_clips
    span = (clip_len - 1) * frame_interval + 1
    steps = np.arange(clip_len) * frame_interval
    if fps_ratio is not None:
        span = max(1, int(clip_len * frame_interval * fps_ratio))
        steps = np.linspace(0, span - 1, clip_len).astype(np.int64)
    last_start = max(num_video_frames - span, 0)
    if clip_len == 1:
        base = np.arange(num_clips) * (num_video_frames / num_clips)
        starts = base + num_video_frames / num_clips / 2
        starts = np.concatenate([starts, base]) if twice_sample else starts
    elif clips == 1:
        starts = np.array([last_start // 2])
    elif fps_ratio is not None:
        starts = np.arange(clips) * np.floor(last_start / (num_clips - 1))
    else:
        starts = np.round(np.arange(clips) * (last_start / (num_clips - 1)))
    places = (starts[:, None] + steps).astype(np.int64)
    return within(places, num_video_frames, out_of_bound)


def mmaction2_uniform(num_video_frames: int, clip_len: int, num_clips: int = 1) -> Indices:
    """Test frames of mmaction2's UniformSample: segments over frame_count - 1."""
    part = (num_video_frames - 1) / clip_len
    starts = np.round(part * np.arange(clip_len)).astype(np.int64)
    inside = (part / (num_clips + 1) * np.arange(1, num_clips + 1)).astype(np.int64)
    return starts + inside[:, None]


def pyslowfast_views(
    num_video_frames: int,
    num_frames: int,
    sampling_rate: int,
    num_views: int,
    *,
    fps: float,
    target_fps: float = 30.0,
    use_offset: bool = False,
) -> Indices:
    """Test frames of PySlowFast (slowfast/datasets/decoder.py, 287ec00).

    The span is measured in seconds at `target_fps`; frames past the end are clamped to the last.
    """
    span = sampling_rate * num_frames / target_fps * fps
    free = max(num_video_frames - span, 0)
    rows = []
    for view in range(num_views):
        start = free * view / num_views
        if use_offset:
            start = free // 2 if num_views == 1 else view * (free // (num_views - 1))
        # torch's float32 linspace, as published: numpy's rounds differently at whole frames.
        places = torch.linspace(start, start + span - 1, num_frames)
        rows.append(places.clamp(0, num_video_frames - 1).long().numpy())
    return np.stack(rows)


def _unknown_pattern(pattern: str) -> ValueError:
    return ValueError(f"pattern: got {pattern!r}; choose from dense, segments")


def _enough(num_video_frames: int, needed: int, short_video: ShortVideo) -> None:
    if short_video == "error" and num_video_frames < needed:
        raise ShortVideoError(
            f"has {num_video_frames} frames, but the clip needs {needed}; "
            "set short_video to loop or repeat_last, or ask for fewer frames"
        )


def _randint(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (1,), generator=generator))


def _dense_train_of(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    frame_stride: int,
    short_video: ShortVideo,
) -> Indices:
    return dense_train(
        num_video_frames, num_frames, frame_stride, generator, short_video=short_video
    )


def _segments_train_of(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_segments: int,
    short_video: ShortVideo,
) -> Indices:
    return segments_train(num_video_frames, num_segments, generator, short_video=short_video)


def _dense_views_of(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    frame_stride: int,
    num_clips: int,
    short_video: ShortVideo,
) -> Indices:
    return dense_views(
        num_video_frames, num_frames, frame_stride, num_clips, short_video=short_video
    )


def _segments_views_of(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_segments: int,
    num_clips: int,
    short_video: ShortVideo,
) -> Indices:
    return segments_views(num_video_frames, num_segments, num_clips, short_video=short_video)


def _pyslowfast_of(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    sampling_rate: int,
    num_clips: int,
) -> Indices:
    return pyslowfast_views(num_video_frames, num_frames, sampling_rate, num_clips, fps=fps)
