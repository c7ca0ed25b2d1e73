"""The boxes that a hard attention cuts out: on the frames, and what is inside."""

import torch
from PIL import Image
from torch import Tensor

from videoattn.attention.record import GateMap
from videoattn.explain.geometry import cells_of_frames, field_of
from videoattn.explain.layout import make_layout
from videoattn.explain.marks import canvas_axes, to_picture
from videoattn.explain.page import (
    Caption,
    Panels,
    blank,
    draw_bars,
    paste_panels,
    write_foot,
    write_head,
    write_labels,
)
from videoattn.explain.render import resize
from videoattn.types import Frames

Box = tuple[int, int, int, int]  # y0, x0, y1, x1, ends excluded

LINE = 3  # pixels
LINE_COLOUR = (255, 214, 10)
OUTSIDE = 0.45  # what is left of the brightness of what is cut away
GAP = 0.02  # of a frame's width, between it and its crop


def boxes_in_frames(
    frames: Frames, field_map: GateMap, sample: int, input_size: tuple[int, int] | None
) -> list[Box | None]:
    """For each frame its box in the pixels of `frames`, or None where the frame is left out.

    input_size: (height, width) of the network's input, whose pixels the map's are; that of
        `frames` unless given.

    Raises ValueError for a box that is empty or reaches outside the input.
    """
    size = (frames.shape[2], frames.shape[3])
    height, width = input_size or size
    factors = torch.tensor([size[0] / height, size[1] / width] * 2)
    recorded = field_of(field_map, sample)
    boxes: list[Box | None] = []
    for cell in cells_of_frames(len(frames), len(recorded)):
        y0, x0, y1, x1 = recorded[cell].tolist()
        if y0 == x0 == y1 == x1 == 0:
            boxes.append(None)
            continue
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise ValueError(
                f"box map: box (y0, x0, y1, x1) = {(y0, x0, y1, x1)} is not inside the network's "
                f"input of {height} x {width} pixels; hand in its size as input_size"
            )
        top, left, bottom, right = (recorded[cell] * factors).round().int().tolist()
        boxes.append((top, left, max(bottom, top + 1), max(right, left + 1)))
    return boxes


def box_pictures(frames: Frames, boxes: list[Box | None], size: tuple[int, int]) -> Panels:
    """Side by side, each of (height, width) pixels: the frame with its box drawn and the rest
    dimmed, and the inside of the box, enlarged as the network that gets it sees it."""
    height, width = size
    gap = max(round(GAP * width), 2)
    gap += (2 * width + gap) % 2  # an even picture stays even
    drawn = frames.new_full((len(frames), 3, height, 2 * width + gap), 255)
    for index, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
        whole = resize(frame[None], size)[0]
        inside = torch.zeros(size, dtype=torch.bool)
        if box is not None:
            y0, x0, y1, x1 = box
            top, bottom = (round(y * height / frame.shape[1]) for y in (y0, y1))
            left, right = (round(x * width / frame.shape[2]) for x in (x0, x1))
            inside[top:bottom, left:right] = True
        shown = torch.where(inside, whole, (whole * OUTSIDE).to(torch.uint8))
        if box is None:
            drawn[index, :, :, width + gap :] = 235
        else:
            _outline(shown, (top, left, bottom, right))
            crop = frame[None, :, y0:y1, x0:x1]
            drawn[index, :, :, width + gap :] = resize(crop, size)[0]
        drawn[index, :, :, :width] = shown
    return drawn


def area_shares(frames: Frames, boxes: list[Box | None]) -> list[float]:
    """What part of each frame its box covers."""
    area = frames.shape[2] * frames.shape[3]
    return [0.0 if b is None else (b[2] - b[0]) * (b[3] - b[1]) / area for b in boxes]


def draw_box_sheet(
    frames: Frames,
    field_map: GateMap,
    *,
    caption: Caption,
    sample: int,
    input_size: tuple[int, int] | None,
) -> Image.Image:
    """Each frame with its box, and beside it what the box holds."""
    boxes = boxes_in_frames(frames, field_map, sample, input_size)
    num_frames, _, height, width = frames.shape
    layout = make_layout(num_frames, 100 * height, round((200 + 100 * GAP) * width))
    side = round(layout.panel[1] / (2 + GAP))
    pictures = box_pictures(frames, boxes, (layout.panel[0], side))
    picture = blank(layout.width, layout.height)
    paste_panels(picture, layout, resize(pictures, layout.panel))

    axes = canvas_axes(picture)
    write_head(axes, layout.width, caption.title, _details(frames, boxes), SAYS)
    write_labels(axes, layout, caption.labels)
    shares = area_shares(frames, boxes)
    texts = [
        "left out" if b is None else f"{100 * s:.0f} %" for s, b in zip(shares, boxes, strict=True)
    ]
    draw_bars(axes, layout, shares, texts, identity_value=None)
    parts = ["left: the frame with its box", "right: the crop, as the local branch sees it"]
    parts.append("bars: the part of the frame that the box covers")
    write_foot(axes, layout.width, layout.height, parts)
    return Image.fromarray(to_picture(axes))


SAYS = "Hard attention: the box of each frame that is cut out and looked at again, enlarged"


def _details(frames: Frames, boxes: list[Box | None]) -> str:
    kept = [box for box in boxes if box is not None]
    if not kept:
        return "every frame is left out"
    text = f"{len(kept)} of {len(boxes)} frames kept"
    if len(set(kept)) == 1:
        y0, x0, y1, x1 = kept[0]
        text += (
            f", one box of {y1 - y0} x {x1 - x0} of {frames.shape[2]} x {frames.shape[3]} pixels"
        )
    return text


def _outline(picture: Tensor, box: Box) -> None:
    """Paints the box's border, `LINE` pixels of it inside, onto a picture (3, H, W)."""
    y0, x0, y1, x1 = box
    colour = torch.tensor(LINE_COLOUR, dtype=picture.dtype)[:, None, None]
    for rows, columns in (
        (slice(y0, min(y0 + LINE, y1)), slice(x0, x1)),
        (slice(max(y1 - LINE, y0), y1), slice(x0, x1)),
        (slice(y0, y1), slice(x0, min(x0 + LINE, x1))),
        (slice(y0, y1), slice(max(x1 - LINE, x0), x1)),
    ):
        picture[:, rows, columns] = colour
