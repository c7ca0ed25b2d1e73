"""Draws the boxes of hard attention on frames, with the contents of the boxes."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from videoattn.explain.render import cells_of_frames, resize
from videoattn.explain.sheet import Labels, Panels, Sheet, stack_grids
from videoattn.types import Frames

Box = tuple[int, int, int, int]  # y0, x0, y1, x1 in pixels; y1 and x1 are exclusive

LINE_COLOR = (255, 214, 10)
OUTSIDE = 0.45  # factor of the brightness outside the box
GAP = 0.02  # between a frame and its crop, as a fraction of the frame's width


def boxes_in_frames(
    frames: Frames, recorded: Tensor, input_size: tuple[int, int] | None
) -> list[Box | None]:
    """Returns each frame's box in the pixels of `frames`, or None for a frame without one.

    Args:
        recorded: (T', 4), y0, x0, y1, x1 in pixels of the network's input; zeros without a box.
        input_size: The (height, width) of that input. Default: the size of `frames`.

    Raises:
        ValueError: If a box is empty or reaches outside the input, or T' exceeds the frames.
    """
    size = (frames.shape[2], frames.shape[3])
    height, width = input_size or size
    factors = torch.tensor([size[0] / height, size[1] / width] * 2)
    boxes: list[Box | None] = []
    for cell in cells_of_frames(len(frames), len(recorded)):
        y0, x0, y1, x1 = recorded[cell].tolist()
        if y0 == x0 == y1 == x1 == 0:
            boxes.append(None)
            continue
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise ValueError(
                f"box map: box (y0, x0, y1, x1) = {(y0, x0, y1, x1)} is not inside the network's "
                f"input of {height} x {width} pixels; pass the input's size as input_size"
            )
        top, left, bottom, right = (recorded[cell] * factors).round().int().tolist()
        boxes.append((top, left, max(bottom, top + 1), max(right, left + 1)))
    return boxes


def box_panels(frames: Frames, boxes: list[Box | None], size: tuple[int, int]) -> Panels:
    """Returns a panel for each frame: the frame, dimmed outside its box, then a gap, then the
    contents of the box. `size` is the (height, width) of the frame and of the contents."""
    height, width = size
    gap = max(round(GAP * width), 2)
    gap += (2 * width + gap) % 2  # video encoders need an even width
    panels = []
    for frame, box in zip(frames, boxes, strict=True):
        whole = Image.fromarray(frame.permute(1, 2, 0).numpy())
        bright = whole.resize((width, height))
        panel = Image.new("RGB", (2 * width + gap, height), "white")
        panel.paste(bright.point(lambda value: value * OUTSIDE), (0, 0))
        panel.paste((235, 235, 235), (width + gap, 0, 2 * width + gap, height))
        if box is not None:
            y0, x0, y1, x1 = box
            top, bottom = (round(y * height / whole.height) for y in (y0, y1))
            left, right = (round(x * width / whole.width) for x in (x0, x1))
            panel.paste(bright.crop((left, top, right, bottom)), (left, top))
            edges = (left, top, max(right - 1, left), max(bottom - 1, top))
            ImageDraw.Draw(panel).rectangle(edges, outline=LINE_COLOR, width=3)
            panel.paste(whole.crop((x0, y0, x1, y1)).resize((width, height)), (width + gap, 0))
        panels.append(torch.from_numpy(np.array(panel)).permute(2, 0, 1))
    return torch.stack(panels)


def area_shares(frames: Frames, boxes: list[Box | None]) -> list[float]:
    """Returns the fraction of each frame that its box covers."""
    area = frames.shape[2] * frames.shape[3]
    return [0.0 if b is None else (b[2] - b[0]) * (b[3] - b[1]) / area for b in boxes]


def draw_boxes(
    frames: Frames, recorded: Tensor, title: str, labels: Labels, input_size: tuple[int, int] | None
) -> Image.Image:
    """Draws a contact sheet of frames with their boxes; see `boxes_in_frames`, `draw_sheet`."""
    boxes = boxes_in_frames(frames, recorded, input_size)
    num_frames, _, height, width = frames.shape
    (grid,) = stack_grids([num_frames], (100 * height, round((200 + 100 * GAP) * width)))
    panels = box_panels(frames, boxes, (grid.panel[0], round(grid.panel[1] / (2 + GAP))))
    sheet = Sheet([grid])
    sheet.draw_panels(grid, resize(panels, grid.panel), labels)
    shares = area_shares(frames, boxes)
    texts = [f"{100 * s:.0f} %" if b else "left out" for s, b in zip(shares, boxes, strict=True)]
    sheet.draw_bars(grid, shares, texts)
    details = f"{num_frames - boxes.count(None)} of {num_frames} frames kept"
    description = "Hard attention: the box that is cut out of each frame, and its contents enlarged"
    sheet.write_head(title, details, description)
    parts = ["left: the frame with its box", "right: the crop that the local branch sees"]
    sheet.write_foot([*parts, "bars: the share of the frame that the box covers"])
    return sheet.image()
