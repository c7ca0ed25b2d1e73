"""Writes a clip with attention drawn over it as a slow-motion MP4 (H.264) or animated WebP."""

from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageOps

from videoattn.attention.maps import GateMap, PairwiseMap
from videoattn.explain import pairwise, render
from videoattn.explain.boxes import area_shares, box_panels, boxes_in_frames
from videoattn.explain.gates import (
    frame_amounts,
    gate_weights,
    make_gate_scale,
    spatial_weights,
)
from videoattn.explain.pairwise import draw_outline, draw_ring
from videoattn.explain.sheet import Grid, Panels
from videoattn.explain.text import canvas_axes, draw_over
from videoattn.files import write_whole
from videoattn.types import Frames

SHORT_SIDE = 448
LONG_SIDE = 1920  # pixels at most, because every frame is drawn and encoded
STRIP = 40  # pixels below the picture, for one bar per frame; the current one is white
SPATIAL = ("spatial", "mask", "pooling", "box", "cam")
"""The kinds of `GateMap` that can be drawn over frames."""
FILE_RATE = 25  # frames per second; players seek badly at very low rates


def write_overlay(
    path: Path,
    frames: Frames,
    attention_map: PairwiseMap | GateMap,
    *,
    sample: int = 0,
    query: int = 0,
    pixel: tuple[int, int, int] | None = None,
    input_size: tuple[int, int] | None = None,
    hold: int = 5,
    short_side: int = SHORT_SIDE,
) -> tuple[int, int]:
    """Writes an MP4 (H.264), or a WebP (.webp), and returns the (height, width) at which the
    clip's frames are drawn. A strip below has a bar for each frame: its share of the attention, its
    mean weight, or the area of its box. A query's ring is bright on its own frame, else faint.

    Args:
        frames, sample, query, pixel: As in `draw_sheet`; input_size: as in `draw_gate`.
        hold: For how many frames of the file, at 25 per second, each frame of the clip is shown.
        short_side: Smaller frames are enlarged to this side; no side exceeds `LONG_SIDE`.

    Raises:
        ValueError: As in `draw_sheet`, `draw_gate`; if `hold` < 1, or the kind is not in `SPATIAL`.
    """
    if hold < 1:
        raise ValueError(f"hold: got {hold}; need 1 or more file frames per frame of the clip")
    clip = (frames.shape[0], frames.shape[2], frames.shape[3])
    size = even_size(clip[1], clip[2], short_side)
    position, window = None, None
    if isinstance(attention_map, PairwiseMap):
        weights = pairwise.weights_of(attention_map, sample, query)
        position = pairwise.query_position(attention_map, query, clip, pixel)
        window = pairwise.window_of(weights, clip) if attention_map.kind == "local" else None
        scale = pairwise.query_scale(attention_map, weights)
        panels = render.blend(render.resize(frames, size), weights, scale)
        amounts = render.frame_shares(weights, clip[0])
    else:
        panels, amounts = _draw_gate(frames, attention_map, sample, size, input_size)
    pictures, grid = [], Grid([(0, 0)] * clip[0], size, clip[1:], 0, *size)
    for frame, panel in enumerate(panels.permute(0, 2, 3, 1).numpy()):
        picture = ImageOps.expand(Image.fromarray(panel), (0, 0, 0, STRIP), (24, 24, 24))
        axes = canvas_axes(picture.size)
        if window is not None and frame in window.frames:
            draw_outline(axes, grid, window, frame)
        if position is not None:
            draw_ring(axes, grid.point(position), alpha=1.0 if frame == position.frame else 0.35)
        _draw_strip(axes, panel.shape[:2], frame, amounts)
        pictures.append(draw_over(picture, axes))
    _write(path, pictures, hold)
    return size


def _draw_gate(
    frames: Frames,
    gate_map: GateMap,
    sample: int,
    size: tuple[int, int],
    input_size: tuple[int, int] | None,
) -> tuple[Panels, list[float]]:
    if gate_map.kind not in SPATIAL:
        raise ValueError(
            f"{gate_map.kind} map: cannot be drawn over frames; need one of {', '.join(SPATIAL)}: "
            "use draw_gate"
        )
    weights = gate_weights(gate_map, sample)
    if gate_map.kind == "box":
        boxes = boxes_in_frames(frames, weights, input_size)
        return box_panels(frames, boxes, size), area_shares(frames, boxes)
    weights = spatial_weights(gate_map, weights)
    scale = make_gate_scale(gate_map, weights)
    amounts, _ = frame_amounts(gate_map, weights, len(frames))
    return render.blend(render.resize(frames, size), weights, scale), amounts


def even_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Returns an even (height, width), as yuv420p needs: the short side is at least `short_side`,
    unless the long side would exceed `LONG_SIDE`."""
    factor = min(max(short_side / min(height, width), 1.0), LONG_SIDE / max(height, width))
    return max(2 * round(height * factor / 2), 2), max(2 * round(width * factor / 2), 2)


def _write(path: Path, pictures: list[Image.Image], hold: int) -> None:
    """Writes the file, complete or not at all."""
    first, *others = pictures
    with TemporaryDirectory() as folder:
        temporary = Path(folder) / f"overlay{path.suffix}"
        if path.suffix == ".webp":
            time = 1000 * hold // FILE_RATE
            first.save(temporary, save_all=True, append_images=others, duration=time, quality=90)
        else:
            _write_mp4(temporary, pictures, hold)
        write_whole(path, lambda file: file.write(temporary.read_bytes()))


def _write_mp4(path: Path, pictures: list[Image.Image], hold: int) -> None:
    # faststart lets players begin before the whole file is loaded
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        options = {"crf": "16", "preset": "veryfast"}
        stream = file.add_stream("libx264", rate=FILE_RATE, options=options)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, FILE_RATE)
        for picture in [picture for picture in pictures for _ in range(hold)]:
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def _draw_strip(axes: Axes, size: tuple[int, int], frame: int, amounts: list[float]) -> None:
    step = (size[1] - 16) / len(amounts)
    most = max(abs(amount) for amount in amounts) or 1.0
    axes.bar(
        [8 + (index + 0.5) * step for index in range(len(amounts))],
        [-(STRIP - 12) * abs(amount) / most for amount in amounts],
        bottom=size[0] + STRIP - 6,
        width=max(step - 4, 1),
        color=["white" if index == frame else "#7a7a80" for index in range(len(amounts))],
        linewidth=0,
    )
