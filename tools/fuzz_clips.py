"""Writes small videos of unusual but valid forms, whose damaged copies `fuzz.py videos` decodes."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

NUM_FRAMES, SIZE = 40, (64, 96)
REFRESH = "intra-refresh=1:keyint=8:bframes=0:scenecut=0"


def _images() -> list[np.ndarray]:
    """Returns the images of a moving texture, which codecs predict from the previous images."""
    texture = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)
    shifted = (np.roll(texture, 3 * i, axis=1) // 2 + 2 * i for i in range(NUM_FRAMES))
    return [np.ascontiguousarray(image) for image in shifted]


def _write(
    path: Path, codec: str = "libx264", *, options: Mapping[str, str] | None = None,
    flags: str = "", cover: bool = False,
) -> None:  # fmt: skip
    muxer = {"movflags": flags} if flags else {}
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream(codec, rate=Fraction(25), options=dict(options or {"g": "8"}))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            assert isinstance(picture, av.VideoStream)
            picture.height, picture.width, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            red = np.full((32, 32, 3), (200, 30, 30), np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
            container.mux(picture.encode())
        for image in _images():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def _with_edit_list(path: Path, shift: int) -> None:
    """Writes a video whose times begin `shift` frames after zero. MP4 then stores an edit list,
    which skips frames if `shift` is negative, and delays them if it is positive."""
    source = path.with_name(f"source_{path.name}")
    _write(source, options={"g": "8", "bf": "2"})
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.pts is None or packet.dts is None or packet.time_base is None:
                continue
            ticks = int(Fraction(shift, 25) / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, stream
            new.mux(packet)
    source.unlink()


UNUSUAL: dict[str, Callable[[Path], None]] = {
    "cover.mp4": partial(_write, cover=True),
    "cover.mkv": partial(_write, cover=True),
    "refresh.mp4": partial(_write, options={"x264-params": REFRESH}),
    "refresh.mkv": partial(_write, options={"x264-params": REFRESH}),
    "refresh_hevc.mp4": partial(
        _write, codec="libx265", options={"x265-params": f"{REFRESH}:log-level=error"}
    ),
    "open_gop_hevc.mp4": partial(
        _write, codec="libx265", options={"x265-params": "keyint=8:open-gop=1:log-level=error"}
    ),
    "skipped_start.mp4": partial(_with_edit_list, shift=-5),
    "late_start.mp4": partial(_with_edit_list, shift=50),
    "fragments.mp4": partial(_write, flags="frag_keyframe+empty_moov+default_base_moof"),
    "fragment_per_frame.mp4": partial(_write, flags="frag_every_frame+empty_moov"),
}
"""File name -> the function that writes the file."""
