"""A clip with one query's attention over it, as an H.264 file slow enough to look at."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes

from videoattn.attention.record import AttentionMap
from videoattn.explain.geometry import Position, frame_shares, query_position, weights_of
from videoattn.explain.marks import Picture, Point, canvas_axes, draw_ring, to_picture
from videoattn.explain.render import blend, make_scale, resize
from videoattn.types import Frames

SHORT_SIDE = 448
STRIP = 40  # below the picture: each frame's share of the attention, the present one lit
FILE_RATE = 25  # frames a second; players seek badly in files of very few


def write_overlay(
    path: Path,
    frames: Frames,
    attention_map: AttentionMap,
    *,
    sample: int = 0,
    query: int = 0,
    pixel: tuple[int, int, int] | None = None,
    hold: int = 5,
    short_side: int = SHORT_SIDE,
) -> None:
    """Writes an MP4 (H.264, yuv420p) of T x `hold` frames at 25 a second.

    frames, sample, query, pixel: as in `draw_sheet`. The ring is bright on the query's frame and
    faint on the others; the strip below is each frame's share of the attention.

    Raises:
        ValueError: sample, query, pixel or the frames do not belong to the map; hold below 1.
    """
    if hold < 1:
        raise ValueError(f"hold: {hold} file frames for each frame of the clip; give 1 or more")
    weights = weights_of(attention_map, sample, query)
    clip = (frames.shape[0], frames.shape[2], frames.shape[3])
    position = query_position(attention_map, query, clip, pixel)
    scale = make_scale(weights, normalised=attention_map.normalised)
    size = even_size(clip[1], clip[2], short_side)
    shares = frame_shares(weights, clip[0])
    pictures = blend(resize(frames, size), weights, scale).permute(0, 2, 3, 1).numpy()
    at = (position.x * size[1] / clip[2], position.y * size[0] / clip[1])
    drawn = [
        _draw_frame(picture, frame, at, position, shares) for frame, picture in enumerate(pictures)
    ]
    encode(path, [picture for picture in drawn for _ in range(hold)])


def even_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The size with the short side enlarged to at least `short_side`; even, as yuv420p needs."""
    factor = max(short_side / min(height, width), 1.0)
    return 2 * round(height * factor / 2), 2 * round(width * factor / 2)


def encode(path: Path, pictures: list[Picture]) -> None:
    """Writes RGB pictures of one even size as H.264, yuv420p, playable while it loads."""
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        stream = file.add_stream("libx264", rate=FILE_RATE, options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, FILE_RATE)
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def _draw_frame(
    picture: Picture,
    frame: int,
    at: Point,
    position: Position,
    shares: list[float],
) -> UInt8[np.ndarray, "H2 W 3"]:
    height, width = picture.shape[:2]
    ground = np.full((height + STRIP, width, 3), 24, np.uint8)
    ground[:height] = picture
    axes = canvas_axes(ground)
    draw_ring(axes, at, alpha=1.0 if frame == position.frame else 0.35)
    _draw_strip(axes, (height, width), frame, shares)
    return to_picture(axes)


def _draw_strip(axes: Axes, size: tuple[int, int], frame: int, shares: list[float]) -> None:
    step = (size[1] - 16) / len(shares)
    base, tallest = size[0] + STRIP - 6, STRIP - 12
    for index, share in enumerate(shares):
        left = 8 + index * step
        axes.bar(
            left + step / 2,
            -tallest * share / max(shares),
            bottom=base,
            width=max(step - 4, 1),
            color="white" if index == frame else "#7a7a80",
            linewidth=0,
        )
