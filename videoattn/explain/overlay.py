"""A clip with attention over it, as an H.264 file slow enough to look at."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from matplotlib.axes import Axes

from videoattn.attention.record import GateMap, PairwiseMap
from videoattn.explain.boxes import area_shares, box_pictures, boxes_in_frames
from videoattn.explain.geometry import frame_shares, query_position, weights_of, window_of
from videoattn.explain.heat import frame_amounts, placed_weights
from videoattn.explain.marks import Picture, canvas_axes, draw_outline, draw_ring, to_picture
from videoattn.explain.render import blend, make_field_scale, resize
from videoattn.explain.sheet import query_scale
from videoattn.types import Frames

SHORT_SIDE = 448
STRIP = 40  # below the picture: each frame's share of the attention, the present one lit
PLACED = ("spatial", "mask", "pooling", "box", "cam")
"""The kinds without a query that can lie over a frame."""
FILE_RATE = 25  # frames a second; players seek badly in files of very few


def write_overlay(
    path: Path,
    frames: Frames,
    attention_map: PairwiseMap,
    *,
    sample: int = 0,
    query: int = 0,
    pixel: tuple[int, int, int] | None = None,
    hold: int = 5,
    short_side: int = SHORT_SIDE,
) -> None:
    """Writes an MP4 (H.264, yuv420p) of T x `hold` frames at 25 a second.

    frames, sample, query, pixel: as in `draw_sheet`. The ring is bright on the query's frame and
    faint on the others; the strip below is each frame's share of the attention. Of a local map the
    window is outlined.

    Raises:
        ValueError: sample, query, pixel or the frames do not belong to the map; hold below 1.
    """
    _check_hold(hold)
    weights = weights_of(attention_map, sample, query)
    clip = (frames.shape[0], frames.shape[2], frames.shape[3])
    position = query_position(attention_map, query, clip, pixel)
    size = even_size(clip[1], clip[2], short_side)
    pictures = blend(resize(frames, size), weights, query_scale(attention_map, weights))
    factors = (size[0] / clip[1], size[1] / clip[2])
    window = window_of(weights, clip) if attention_map.kind == "local" else None

    def mark(axes: Axes, frame: int) -> None:
        if window is not None and frame in window.frames:
            draw_outline(
                axes,
                (window.left * factors[1], window.top * factors[0]),
                (window.right * factors[1], window.bottom * factors[0]),
            )
        at = (position.x * factors[1], position.y * factors[0])
        draw_ring(axes, at, alpha=1.0 if frame == position.frame else 0.35)

    _write(path, pictures, frame_shares(weights, clip[0]), hold, mark)


def write_field_overlay(
    path: Path,
    frames: Frames,
    field_map: GateMap,
    *,
    sample: int = 0,
    input_size: tuple[int, int] | None = None,
    hold: int = 5,
    short_side: int = SHORT_SIDE,
) -> None:
    """The same for a map without a query: the weights over the frames, a mask's and a pooling's
    mean; or each frame's box, with what is in it at its right.

    The strip is each frame's share of weights that sum to 1, else its mean weight; of boxes, the
    part of the frame that they cover.

    Raises:
        ValueError: a kind that has no place in the frame; what `draw_field` refuses; hold below 1.
    """
    _check_hold(hold)
    if field_map.kind not in PLACED:
        raise ValueError(
            f"{field_map.kind} map: has no place in the frame to lay over it; allowed are "
            f"{', '.join(PLACED)}: use draw_field"
        )
    size = even_size(frames.shape[2], frames.shape[3], short_side)
    if field_map.kind == "box":
        boxes = boxes_in_frames(frames, field_map, sample, input_size)
        _write(path, box_pictures(frames, boxes, size), area_shares(frames, boxes), hold)
        return
    weights = placed_weights(field_map, sample)
    scale = make_field_scale(
        weights, normalized=field_map.normalized, identity_value=field_map.identity_value
    )
    amounts, _ = frame_amounts(field_map, weights, len(frames))
    _write(path, blend(resize(frames, size), weights, scale), amounts, hold)


def _check_hold(hold: int) -> None:
    if hold < 1:
        raise ValueError(f"hold: {hold} file frames for each frame of the clip; give 1 or more")


def even_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The size with the short side enlarged to at least `short_side`; even, as yuv420p needs."""
    factor = max(short_side / min(height, width), 1.0)
    return 2 * round(height * factor / 2), 2 * round(width * factor / 2)


def encode(path: Path, pictures: list[Picture]) -> None:
    """Writes RGB pictures of one even size as H.264, yuv420p, playable while it loads."""
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        options = {"crf": "16", "preset": "veryfast"}
        stream = file.add_stream("libx264", rate=FILE_RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, FILE_RATE)
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def _write(
    path: Path,
    pictures: Frames,
    amounts: list[float],
    hold: int,
    mark: Callable[[Axes, int], None] = lambda axes, frame: None,
) -> None:
    """Encodes the pictures, each with its marks, above a strip of what each frame amounts to."""
    drawn = []
    for frame, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        height, width = picture.shape[:2]
        ground = np.full((height + STRIP, width, 3), 24, np.uint8)
        ground[:height] = picture
        axes = canvas_axes(ground)
        mark(axes, frame)
        _draw_strip(axes, (height, width), frame, amounts)
        drawn += [to_picture(axes)] * hold
    encode(path, drawn)


def _draw_strip(axes: Axes, size: tuple[int, int], frame: int, amounts: list[float]) -> None:
    step = (size[1] - 16) / len(amounts)
    base, tallest = size[0] + STRIP - 6, STRIP - 12
    most = max(abs(amount) for amount in amounts) or 1.0
    axes.bar(
        [8 + (index + 0.5) * step for index in range(len(amounts))],
        [-tallest * abs(amount) / most for amount in amounts],
        bottom=base,
        width=max(step - 4, 1),
        color=["white" if index == frame else "#7a7a80" for index in range(len(amounts))],
        linewidth=0,
    )
