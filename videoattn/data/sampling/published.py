"""Computes frame indices as mmaction2 and PySlowFast do, to reproduce published accuracies."""

import math

import numpy as np
import torch
from torch import Generator

from videoattn.data.sampling.frames import ClipSpec, Indices, check_length, draw, within


def mmaction2_train(
    spec: ClipSpec, num_video_frames: int, fps: float, generator: Generator
) -> Indices:
    """Draws `num_clips` clips, which start in successive equal sections of the video.

    This is SampleFrames (mmaction/datasets/transforms/loading.py, 4d6c934). Frames after the last
    whole section are sampled only with `keep_tail_frames`.
    """
    span = _mmaction2_span(spec.num_frames * spec.frame_stride, fps, spec.target_fps)
    room = num_video_frames - span + 1
    part = room / spec.num_clips if spec.keep_tail_frames else room // spec.num_clips
    if spec.keep_tail_frames and room > 0:
        jitter = torch.rand(spec.num_clips, generator=generator, dtype=torch.float64).numpy()
        starts = np.trunc((np.arange(spec.num_clips) + jitter) * part)
    elif spec.keep_tail_frames or part < 0:
        starts = np.zeros(spec.num_clips)
    elif part > 0:
        starts = np.arange(spec.num_clips) * part + draw(int(part), spec.num_clips, generator)
    elif num_video_frames > max(spec.num_clips, span):
        starts = np.sort(draw(int(room), spec.num_clips, generator))
    else:
        starts = np.around(np.arange(spec.num_clips) * (room / spec.num_clips))
    steps = _mmaction2_steps(spec, span)
    return within((starts[:, None] + steps).astype(np.int64), num_video_frames, spec)


def mmaction2_views(
    spec: ClipSpec, num_video_frames: int, fps: float, generator: Generator
) -> Indices:
    """Spaces `num_clips` clips evenly from the first position to the last, or centers a single one.

    This is SampleFrames in test mode, for 3D networks. `twice_sample` takes twice as many clips at
    the same distance; the second half extends past the end of the video.
    """
    if spec.twice_sample and spec.num_clips == 1:
        raise ValueError("twice_sample: dense clips need num_clips of 2 or more to be doubled")
    span = _mmaction2_span((spec.num_frames - 1) * spec.frame_stride + 1, fps, None)
    if spec.target_fps is not None:
        span = _mmaction2_span(spec.num_frames * spec.frame_stride, fps, spec.target_fps)
    room = max(num_video_frames - span, 0)
    clips = np.arange(2 * spec.num_clips if spec.twice_sample else spec.num_clips)
    if spec.num_clips == 1:
        starts = np.array([room // 2])
    elif spec.target_fps is not None:
        starts = clips * np.floor(room / (spec.num_clips - 1))
    else:
        starts = np.round(clips * (room / (spec.num_clips - 1)))
    steps = _mmaction2_steps(spec, span)
    return within((starts[:, None] + steps).astype(np.int64), num_video_frames, spec)


def mmaction2_segments_train(
    spec: ClipSpec, num_video_frames: int, fps: float, generator: Generator
) -> Indices:
    """Draws one frame per segment: SampleFrames with clips of one frame, for 2D networks."""
    frames = spec._replace(num_frames=1, frame_stride=1, num_clips=spec.num_frames)
    return mmaction2_train(frames, num_video_frames, fps, generator).reshape(1, spec.num_frames)


def mmaction2_segments_views(
    spec: ClipSpec, num_video_frames: int, fps: float, generator: Generator
) -> Indices:
    """Takes the middle frame of each segment; the frame rate has no effect.

    `twice_sample` adds a view of the segments' first frames.
    """
    length = num_video_frames / spec.num_frames
    starts = np.arange(spec.num_frames) * length
    positions = np.stack([starts + length / 2, starts][: 2 if spec.twice_sample else 1])
    return within(positions.astype(np.int64), num_video_frames, spec)


def pyslowfast_train(
    spec: ClipSpec, num_video_frames: int, fps: float, generator: Generator
) -> Indices:
    """Draws one clip with a uniform, unrounded start (slowfast/datasets/decoder.py, 287ec00)."""
    span = _pyslowfast_span(spec, fps)
    check_length(num_video_frames, math.ceil(span), spec)
    fraction = float(torch.rand((), generator=generator, dtype=torch.float64))
    start = fraction * max(num_video_frames - span, 0)
    return _pyslowfast_clip(num_video_frames, start, span, spec.num_frames)[None]


def pyslowfast_views(
    spec: ClipSpec, num_video_frames: int, fps: float, generator: Generator
) -> Indices:
    """Spaces `num_clips` clips evenly, as PySlowFast does in testing.

    Indices past the end become the last frame, under every policy except "error". `use_offset` is
    TEST.USE_OFFSET_SAMPLING: distances are whole numbers, and the last clip is near the end.
    """
    span = _pyslowfast_span(spec, fps)
    check_length(num_video_frames, math.ceil(span), spec)
    room = max(num_video_frames - span, 0)
    if not spec.use_offset:
        starts = [room * view / spec.num_clips for view in range(spec.num_clips)]
    elif spec.num_clips == 1:
        starts = [float(math.floor(room / 2))]
    else:
        starts = [
            float(view * math.floor(room / (spec.num_clips - 1))) for view in range(spec.num_clips)
        ]
    clips = [_pyslowfast_clip(num_video_frames, start, span, spec.num_frames) for start in starts]
    return np.stack(clips)


def _mmaction2_span(length: int, fps: float, target_fps: float | None) -> float:
    """Returns the number of video frames that a clip spans; a target rate makes it fractional."""
    return max(1.0, length * ((fps or target_fps) / target_fps)) if target_fps else float(length)


def _mmaction2_steps(spec: ClipSpec, span: float) -> np.ndarray:
    if spec.target_fps is None:
        return spec.steps
    return np.linspace(0, span - 1, spec.num_frames).astype(np.int64)


def _pyslowfast_span(spec: ClipSpec, fps: float) -> float:
    target = spec.target_fps or 30.0
    return spec.num_frames * spec.frame_stride / target * (fps or target)


def _pyslowfast_clip(
    num_video_frames: int, start: float, span: float, num_frames: int
) -> np.ndarray:
    # torch's float32 linspace, as in PySlowFast. NumPy's rounds differently at whole frames.
    positions = torch.linspace(start, start + span - 1, num_frames)
    return positions.clamp(0, num_video_frames - 1).long().numpy()
