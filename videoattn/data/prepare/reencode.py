"""Re-encodes a video so that it is smaller and faster to seek in: H.264 in MP4.

The copy has all frames that decode, rotated as the file specifies and scaled to the short side.
Frames keep their times; sound is left out. With a key frame every few frames, decoding of a clip
starts just before its first frame.
"""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from videoattn.data.decode.pyav import Video
from videoattn.data.decode.rgb import ONE_THREAD, quarter_turns
from videoattn.data.decode.source import DecodeError, reason
from videoattn.data.prepare.verify import Record, probe
from videoattn.files import file_url

_CRF = 20  # x264's constant rate factor; its own default is 23


class Reencode(NamedTuple):
    """A re-encoding job: the video, the path of its copy, and the settings.

    Args:
        short_side: The short side of the copy in pixels, an even number.
        key_frame_interval: The maximum number of frames between two key frames.
    """

    path: Path
    out: Path
    short_side: int
    key_frame_interval: int


def reencode(job: Reencode) -> Record:
    """Writes the copy, complete or not at all; smaller frames are not enlarged.

    Returns `num_frames`, `out_bytes`, `height` and `width` of the copy, or an `error` if the source
    does not decode or the copy cannot be written.
    """
    unfinished = unfinished_name(job.out)
    try:
        job.out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)  # FFmpeg would follow a link
        with Video(job.path) as video:
            timed = video.packet_index is not None
        num_frames = _write(job, unfinished, timed=True) if timed else None
        if num_frames is None:  # then evenly spaced
            num_frames = _write(job, unfinished, timed=False)
        written = probe(unfinished)
    except (DecodeError, FFmpegError, OSError) as error:
        unfinished.unlink(missing_ok=True)
        return {"error": error.reason if isinstance(error, DecodeError) else reason(error)}
    assert written.num_frames == num_frames, f"{job.path}: {num_frames} became {written}"
    size = unfinished.stat().st_size
    unfinished.replace(job.out)
    return dict(num_frames=num_frames, out_bytes=size, height=written.height, width=written.width)


def unfinished_name(out: Path) -> Path:
    return out.with_name(f".{out.name}.unfinished")


def scaled(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Returns (width, height) of the copy: even numbers, which 4:2:0 chroma subsampling needs."""
    scale = min(short_side / min(width, height), 1.0)
    even = [max(2 * round(side * scale / 2), 2) for side in (width, height)]
    return even[0], even[1]


def check_settings(short_side: int, key_frame_interval: int) -> None:
    if short_side < 2 or short_side % 2:
        raise ValueError(f"short_side: got {short_side}; need an even number of pixels, 2 or more")
    if key_frame_interval < 1:
        raise ValueError(f"key_frame_interval: got {key_frame_interval}; need 1 frame or more")


def _write(job: Reencode, out: Path, *, timed: bool) -> int | None:
    """Writes the copy. Returns its number of frames, or None if their times are not in order."""
    scaler = VideoReformatter()
    with Video(job.path) as video, av.open(file_url(out), "w", format="mp4") as container:
        rate = Fraction(video.stream.average_rate or video.stream.guessed_rate or 25)
        stream = container.add_stream("libx264", rate=rate.limit_denominator(1_000_000))
        stream.codec_context.time_base = (timed and video.stream.time_base) or 1 / rate
        stream.codec_context.thread_count = 1
        stream.options = {"crf": str(_CRF), "g": str(job.key_frame_interval), "bf": "2"}
        count, first, last, size = 0, 0, -1, (0, 0)
        for frame in video.frames():
            size = size if count else scaled(frame.width, frame.height, job.short_side)
            small = scaler.reformat(frame, *size, format="yuv420p", **ONE_THREAD)
            small = _turned(small, quarter_turns(frame))
            if count == 0:
                first = frame.pts or 0
                stream.width, stream.height = small.width, small.height
                if (ratio := video.pixel_aspect) != 1.0:
                    shown = Fraction(1 / ratio if quarter_turns(frame) % 2 else ratio)
                    stream.codec_context.sample_aspect_ratio = shown.limit_denominator(1000)
                stream.codec_context.color_range = small.color_range
                if not frame.format.is_rgb:
                    stream.codec_context.colorspace = small.colorspace
            pts = count if not timed else -1 if frame.pts is None else frame.pts - first
            if pts <= last:
                return None
            small.pts, small.time_base = pts, stream.codec_context.time_base
            small.pict_type = PictureType.NONE  # otherwise the source's key frames are kept
            container.mux(stream.encode(small))
            count, last = count + 1, pts
        if count == 0:
            raise video.no_frame()
        container.mux(stream.encode())
    return count


def _turned(frame: av.VideoFrame, quarters: int) -> av.VideoFrame:
    if not quarters:
        return frame
    height, width = frame.height, frame.width
    luma, chroma = np.split(frame.to_ndarray(), [height])  # both chroma planes, one above the other
    planes = [luma, *chroma.reshape(2, height // 2, width // 2)]
    turned = [np.rot90(plane, quarters) for plane in planes]
    flat = np.concatenate([plane.ravel() for plane in turned])
    out = av.VideoFrame.from_ndarray(flat.reshape(-1, turned[0].shape[1]), format="yuv420p")
    out.colorspace, out.color_range = frame.colorspace, frame.color_range
    return out
