"""Computes frame indices as mmaction2 and PySlowFast do, with their rounding.

They reproduce published accuracies. `target_fps` spaces the frames as if every video
had that rate (None: the rate of the video). A video without a rate is treated as if it had the
target rate.
"""

import math

import numpy as np
import torch

from videoattn.data.sampling.frames import Indices, ShortVideo, check_length, draw, within


def mmaction2_train(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    frame_stride: int = 1,
    num_clips: int = 1,
    short_video: ShortVideo = "loop",
    target_fps: float | None = None,
    keep_tail_frames: bool = False,
) -> Indices:
    """Draws one start in each of `num_clips` equal sections of the video.

    This is SampleFrames (mmaction/datasets/transforms/loading.py, 4d6c934). Frames after the last
    whole section are sampled only with `keep_tail_frames`.
    """
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
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    frame_stride: int = 1,
    num_clips: int = 1,
    short_video: ShortVideo = "loop",
    target_fps: float | None = None,
    twice_sample: bool = False,
) -> Indices:
    """Spaces clips as SampleFrames does in test mode, for 3D networks.

    `twice_sample` takes twice as many clips at the same distance, past the end of the video.
    """
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
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    short_video: ShortVideo = "loop",
    target_fps: float | None = None,
    keep_tail_frames: bool = False,
) -> Indices:
    """Draws one frame per segment: SampleFrames with clips of one frame, for 2D networks."""
    return mmaction2_train(
        num_video_frames,
        fps,
        generator,
        num_frames=1,
        num_clips=num_frames,
        short_video=short_video,
        target_fps=target_fps,
        keep_tail_frames=keep_tail_frames,
    ).reshape(1, num_frames)


def mmaction2_segments_views(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    short_video: ShortVideo = "loop",
    target_fps: float | None = None,
    twice_sample: bool = False,
) -> Indices:
    """Takes the middle frame of each segment; the frame rate has no effect.

    `twice_sample` adds a view of the segments' first frames.
    """
    length = num_video_frames / num_frames
    starts = np.arange(num_frames) * length
    positions = np.stack([starts + length / 2, starts][: 2 if twice_sample else 1])
    return within(positions.astype(np.int64), num_video_frames, short_video)


def pyslowfast_train(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    frame_stride: int = 1,
    short_video: ShortVideo = "repeat_last",
    target_fps: float | None = None,
) -> Indices:
    """Draws a uniform start without rounding it (slowfast/datasets/decoder.py, 287ec00)."""
    span = _pyslowfast_span(num_video_frames, fps, num_frames * frame_stride, target_fps)
    check_length(num_video_frames, math.ceil(span), short_video)
    fraction = float(torch.rand((), generator=generator, dtype=torch.float64))
    start = fraction * max(num_video_frames - span, 0)
    return _pyslowfast_clip(num_video_frames, start, span, num_frames)[None]


def pyslowfast_views(
    num_video_frames: int,
    fps: float,
    generator: torch.Generator,
    *,
    num_frames: int,
    frame_stride: int = 1,
    num_clips: int = 1,
    short_video: ShortVideo = "repeat_last",
    target_fps: float | None = None,
    use_offset: bool = False,
) -> Indices:
    """Spaces clips as PySlowFast does in testing.

    Indices past the end become the last frame, under every policy except "error". `use_offset` is
    TEST.USE_OFFSET_SAMPLING: distances are whole numbers, and clips reach the end.
    """
    span = _pyslowfast_span(num_video_frames, fps, num_frames * frame_stride, target_fps)
    check_length(num_video_frames, math.ceil(span), short_video)
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
    """Returns the number of video frames that a clip spans; a target rate makes it fractional."""
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
    # torch's float32 linspace, as in PySlowFast. NumPy's rounds differently at whole frames.
    positions = torch.linspace(start, start + span - 1, num_frames)
    return positions.clamp(0, num_video_frames - 1).long().numpy()
