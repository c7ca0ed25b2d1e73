"""The frames that mmaction2 and PySlowFast take, by their own arithmetic, rounding included: with
it their published accuracies can be reproduced.

Every function is a sampler of `videoattn.data.sampling` whose keyword arguments are not bound yet.
`target_fps` spaces the frames as if every video had that rate (None: the video's own). A video that
names no rate counts as one of the target's.
"""

import math

import numpy as np
import torch

from videoattn.data.sampling.plain import Indices, ShortVideo, draw, enough, within


def mmaction2_train(
    num_video_frames: int, fps: float, generator: torch.Generator, *,
    num_frames: int, frame_stride: int = 1, num_clips: int = 1, short_video: ShortVideo = "loop",
    target_fps: float | None = None, keep_tail_frames: bool = False,
) -> Indices:  # fmt: skip
    """SampleFrames (mmaction/datasets/transforms/loading.py, 4d6c934), one random start in each
    part of the video. Frames behind the last whole part are reached with `keep_tail_frames`."""
    span = _mmaction2_span(num_frames * frame_stride, fps, target_fps)
    room = num_video_frames - span + 1
    part = room / num_clips if keep_tail_frames else room // num_clips
    if keep_tail_frames and room > 0:
        jitter = torch.rand(num_clips, generator=generator, dtype=torch.float64).numpy()
        starts = np.trunc((np.arange(num_clips) + jitter) * part)
    elif keep_tail_frames or part < 0:
        starts = np.zeros(num_clips)
    elif part > 0:
        starts = np.arange(num_clips) * part + draw(int(part), num_clips, generator)
    elif num_video_frames > max(num_clips, span):
        starts = np.sort(draw(int(room), num_clips, generator))
    else:
        starts = np.around(np.arange(num_clips) * (room / num_clips))
    steps = _mmaction2_steps(num_frames, frame_stride, span, target_fps)
    return within((starts[:, None] + steps).astype(np.int64), num_video_frames, short_video)


def mmaction2_views(
    num_video_frames: int, fps: float, generator: torch.Generator, *,
    num_frames: int, frame_stride: int = 1, num_clips: int = 1, short_video: ShortVideo = "loop",
    target_fps: float | None = None, twice_sample: bool = False,
) -> Indices:  # fmt: skip
    """SampleFrames in test mode, for 3-D networks. `twice_sample`: twice as many clips, as far
    apart; they go on past the end."""
    if twice_sample and num_clips == 1:
        raise ValueError("twice_sample: dense clips need num_clips of 2 or more to be doubled")
    span = _mmaction2_span((num_frames - 1) * frame_stride + 1, fps, None)
    if target_fps is not None:
        span = _mmaction2_span(num_frames * frame_stride, fps, target_fps)
    room = max(num_video_frames - span, 0)
    clips = np.arange(2 * num_clips if twice_sample else num_clips)
    if num_clips == 1:
        starts = np.array([room // 2])
    elif target_fps is not None:
        starts = clips * np.floor(room / (num_clips - 1))
    else:
        starts = np.round(clips * (room / (num_clips - 1)))
    steps = _mmaction2_steps(num_frames, frame_stride, span, target_fps)
    return within((starts[:, None] + steps).astype(np.int64), num_video_frames, short_video)


def mmaction2_segments_train(
    num_video_frames: int, fps: float, generator: torch.Generator, *,
    num_frames: int, short_video: ShortVideo = "loop", target_fps: float | None = None,
    keep_tail_frames: bool = False,
) -> Indices:  # fmt: skip
    """SampleFrames with clips of one frame: the segments of a 2-D network."""
    return mmaction2_train(
        num_video_frames, fps, generator, num_frames=1, num_clips=num_frames,
        short_video=short_video, target_fps=target_fps, keep_tail_frames=keep_tail_frames,
    ).reshape(1, num_frames)  # fmt: skip


def mmaction2_segments_views(
    num_video_frames: int, fps: float, generator: torch.Generator, *,
    num_frames: int, short_video: ShortVideo = "loop", target_fps: float | None = None,
    twice_sample: bool = False,
) -> Indices:  # fmt: skip
    """The middle of each segment, at whatever rate. `twice_sample`: a second view of the segments'
    beginnings."""
    part = num_video_frames / num_frames
    begins = np.arange(num_frames) * part
    places = np.stack([begins + part / 2, begins][: 2 if twice_sample else 1])
    return within(places.astype(np.int64), num_video_frames, short_video)


def pyslowfast_train(
    num_video_frames: int, fps: float, generator: torch.Generator, *,
    num_frames: int, frame_stride: int = 1, short_video: ShortVideo = "repeat_last",
    target_fps: float | None = None,
) -> Indices:  # fmt: skip
    """slowfast/datasets/decoder.py, 287ec00: a uniform start, not rounded to a frame."""
    span = _pyslowfast_span(num_video_frames, fps, num_frames * frame_stride, target_fps)
    enough(num_video_frames, math.ceil(span), short_video)
    place = float(torch.rand((), generator=generator, dtype=torch.float64))
    start = place * max(num_video_frames - span, 0)
    return _pyslowfast_clip(num_video_frames, start, span, num_frames)[None]


def pyslowfast_views(
    num_video_frames: int, fps: float, generator: torch.Generator, *,
    num_frames: int, frame_stride: int = 1, num_clips: int = 1,
    short_video: ShortVideo = "repeat_last", target_fps: float | None = None,
    use_offset: bool = False,
) -> Indices:  # fmt: skip
    """The same in testing. Frames past the end are the last one, whatever `short_video` (but
    "error"); `use_offset` is TEST's USE_OFFSET_SAMPLING: whole distances, up to the end."""
    span = _pyslowfast_span(num_video_frames, fps, num_frames * frame_stride, target_fps)
    enough(num_video_frames, math.ceil(span), short_video)
    room = max(num_video_frames - span, 0)
    if not use_offset:
        starts = [room * view / num_clips for view in range(num_clips)]
    elif num_clips == 1:
        starts = [float(math.floor(room / 2))]
    else:
        starts = [float(view * math.floor(room / (num_clips - 1))) for view in range(num_clips)]
    clips = [_pyslowfast_clip(num_video_frames, start, span, num_frames) for start in starts]
    return np.stack(clips)


def _mmaction2_span(length: int, fps: float, target_fps: float | None) -> float:
    """Frames of the video that a clip covers; with a target rate not a whole number."""
    return max(1.0, length * ((fps or target_fps) / target_fps)) if target_fps else float(length)


def _mmaction2_steps(
    num_frames: int, frame_stride: int, span: float, target_fps: float | None
) -> np.ndarray:
    if target_fps is None:
        return np.arange(num_frames) * frame_stride
    return np.linspace(0, span - 1, num_frames).astype(np.int64)


def _pyslowfast_span(
    num_video_frames: int, fps: float, length: int, target_fps: float | None
) -> float:
    target = target_fps or 30.0
    return length / target * (fps or target)


def _pyslowfast_clip(
    num_video_frames: int, start: float, span: float, num_frames: int
) -> np.ndarray:
    # torch's float32 linspace, as published: numpy's rounds differently at whole frames.
    places = torch.linspace(start, start + span - 1, num_frames)
    return places.clamp(0, num_video_frames - 1).long().numpy()
