"""Crops clips and then resizes them, in uint8 and equally in all frames.

A crop is a box (y0, x0, y1, x1) in pixels of the decoded video; y1 and x1 are excluded. Sizes are
(height, width). Other random crops are in augment.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from videoattn.types import Frames, Video

Crops = UInt8[Tensor, "V T C h w"]

Place = tuple[float, float]
"""The position of a crop in y and x: 0 is at the top left, 1 at the bottom right."""

PLACES: dict[int, list[Place]] = {
    0: [],
    1: [(0.5, 0.5)],
    3: [(0.5, 0.0), (0.5, 0.5), (0.5, 1.0)],  # of a wide frame
    10: [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)],
}
"""The positions of the test crops, by their number; 10 includes five mirror images."""


class Box(NamedTuple):
    y0: int
    x0: int
    y1: int
    x1: int


@dataclass(frozen=True)
class CropBox:
    """Draws a random box, which is then resized to `crop`: (height, width) in pixels."""

    crop: tuple[int, int]

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Box:
        raise NotImplementedError


@dataclass(frozen=True)
class AreaCrop(CropBox):
    """Draws a box of random area, shape and position (Szegedy et al., CVPR 2015).

    Attributes:
        area: Range of the box's fraction of the frame's area.
        aspect_ratio: Range of width over height, drawn log-uniformly.
    """

    area: tuple[float, float] = (0.25, 1.0)
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area: got {self.area}; need 0 < low <= high <= 1")
        if not 0 < self.aspect_ratio[0] <= self.aspect_ratio[1]:
            raise ValueError(f"aspect_ratio: got {self.aspect_ratio}; need 0 < low <= high")

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Box:
        low, high = self.aspect_ratio
        for _ in range(10):
            fraction, ratio, y, x = torch.rand(4, generator=generator).tolist()
            area = height * width * (self.area[0] + fraction * (self.area[1] - self.area[0]))
            aspect = math.exp(math.log(low) + ratio * (math.log(high) - math.log(low)))
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return place(height, width, h, w, (y, x))
        # No draw fits a very wide or tall frame: use the largest centered box of an allowed ratio.
        aspect = min(max(width / height, low), high)
        h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
        return place(height, width, max(h, 1), max(w, 1), (0.5, 0.5))


class TestTransform:
    """Crops frames as if their short side were first resized to `short_side`; not random.

    The crops of a clip are consecutive along V, the axis of views.

    Args:
        short_side: Length of the short side of the resized frames in pixels.
        crop: (height, width) of the crops in pixels; not used if `num_crops` is 0.
        num_crops: 1 is the center; 3 are both ends and the center of the longer side; 10 are the
            four corners, the center, and then the mirror images of these five; 0 is the whole
            frame, for networks that accept any size.
    """

    __test__ = False  # a name that pytest would collect
    random = False
    looks = None

    def __init__(self, short_side: int, *, crop: tuple[int, int], num_crops: int = 1) -> None:
        if num_crops not in PLACES:
            raise ValueError(
                f"num_crops: got {num_crops}; choose 1 (center), 3, 10 (five and their mirror "
                "images) or 0 (the whole frame)"
            )
        if num_crops:
            check_fits(crop, short_side)
        elif short_side < 1:
            raise ValueError(f"short_side: got {short_side}; need at least 1 pixel")
        self.short_side = short_side
        self.crop = crop
        self.num_crops = num_crops
        self.mirrors = num_crops == 10

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size of the crops, or of the whole frame, after the resize."""
        if self.num_crops:
            return self.crop
        scale = self.short_side / min(height, width)
        return round(height * scale), round(width * scale)

    def boxes(self, height: int, width: int, generator: torch.Generator | None = None) -> list[Box]:
        """Returns the crops in pixels of a video of this size; mirror images are not listed."""
        if not self.num_crops:
            return [Box(0, 0, height, width)]
        h, w = source_size(height, width, self.short_side, self.crop)
        places = PLACES[self.num_crops]
        if self.num_crops == 3 and width < height:
            places = [(x, y) for y, x in places]
        return [place(height, width, h, w, at) for at in places]


@dataclass(frozen=True)
class TrainTransform:
    """Crops a random box, resizes it and changes its colors, with new random values per clip."""

    box: CropBox
    looks: Callable[[Crops, torch.Generator], Crops] | None = None
    random = True
    mirrors = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        return self.box.crop

    def boxes(self, height: int, width: int, generator: torch.Generator) -> list[Box]:
        return [self.box(height, width, generator)]


Transform = TestTransform | TrainTransform
"""Crops boxes from every frame, resizes them to one size, and calls `looks` to change the colors.

If it is `random`, each clip of a video has its own boxes; otherwise all clips share them. If it
`mirrors`, the crops of a clip are followed by their mirror images.
"""


class ViewMaker:
    """Makes the views of a video: crops and resizes every clip, and changes its colors.

    It is the `crop` of `decode`: once the size of the frames is known, it draws the boxes of all
    clips and returns the box that contains them.
    """

    def __init__(self, transform: Transform, num_clips: int, generator: torch.Generator) -> None:
        self._transform = transform
        self._num_draws = num_clips if transform.random else 1
        self._generator = generator
        self._boxes: list[list[Box]] = []
        self._outer = Box(0, 0, 0, 0)
        self._size = (0, 0)

    def __call__(self, height: int, width: int) -> Box:
        """Draws the boxes for frames of this size, and returns the smallest box around them."""
        self._size = self._transform.size(height, width)
        self._boxes = [
            self._transform.boxes(height, width, self._generator) for _ in range(self._num_draws)
        ]
        y0, x0, y1, x1 = zip(*(box for boxes in self._boxes for box in boxes), strict=True)
        self._outer = Box(min(y0), min(x0), max(y1), max(x1))
        return self._outer

    def views(
        self,
        frames: UInt8[Tensor, "U C H W"],
        positions: Int64[np.ndarray, "clips T"],
        *,
        mirrored: bool = False,
    ) -> Crops:
        """Returns the views of all clips; views of one clip are next to each other.

        Args:
            frames: The decoded frames, cropped to the box that this object returned.
            positions: The frames of each clip, as positions in `frames`.
            mirrored: Mirrors every clip.
        """
        parts = []
        for clips, boxes in zip(np.split(positions, self._num_draws), self._boxes, strict=True):
            # Each frame is resized once for each box, even if several clips have it.
            used, places = np.unique(clips, return_inverse=True)
            chosen = frames
            if not _in_order(used, frames):  # channels stay last in memory
                chosen = frames.movedim(1, -1).index_select(0, torch.from_numpy(used))
                chosen = chosen.movedim(-1, 1)
            views = self._views(chosen, boxes, places.reshape(clips.shape), mirrored)
            looks = self._transform.looks
            parts.append(looks(views, self._generator) if looks is not None else views)
        if len(parts) == 1:
            return parts[0]
        return torch.cat([views.movedim(-3, -1) for views in parts]).movedim(-1, -3)

    def _views(
        self, frames: Tensor, boxes: list[Box], places: Int64[np.ndarray, "clips T"], mirrored: bool
    ) -> Crops:
        """Resizes one box after the other, and copies each view to its place."""
        if len(boxes) == 1 and not self._transform.mirrors and _in_order(places.ravel(), frames):
            return self._resized(frames, boxes[0], mirrored).unflatten(0, places.shape)
        count = len(boxes) * (1 + self._transform.mirrors)
        # numpy asks for large pages: 30 views take half of the time.
        shape = (len(places), count, places.shape[1], *self._size, 3)
        views = torch.from_numpy(np.empty(shape, np.uint8))
        for number, box in enumerate(boxes):
            crop = self._resized(frames, box, mirrored)
            for clip, which in enumerate(torch.from_numpy(places)):
                torch.index_select(crop.movedim(1, -1), 0, which, out=views[clip, number])
            if self._transform.mirrors:
                views[:, len(boxes) + number] = views[:, number].flip(-2)
        return views.flatten(0, 1).movedim(-1, -3)

    def _resized(self, frames: UInt8[Tensor, "U C H W"], box: Box, mirrored: bool) -> Tensor:
        y, x = self._outer.y0, self._outer.x0
        frames = frames[..., box.y0 - y : box.y1 - y, box.x0 - x : box.x1 - x]
        crops = resize(frames, self._size)
        return crops.flip(-1) if mirrored else crops


def _in_order(which: Int64[np.ndarray, " N"], frames: Tensor) -> bool:
    """Returns whether `which` numbers all frames in order: 0, 1, ..., len(frames) - 1."""
    return np.array_equal(which, np.arange(len(frames)))


def resize(frames: Frames, size: tuple[int, int]) -> UInt8[Tensor, "T C h w"]:
    """Resizes frames to (height, width) by antialiased bilinear interpolation in uint8."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    frames = frames.contiguous(memory_format=torch.channels_last)
    return F.interpolate(frames, size=size, mode="bilinear", antialias=True)


def to_video(
    frames: UInt8[Tensor, "N T C H W"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str | None = None,
) -> Video:
    """Normalizes clips for a network: (x / 255 - mean) / std, float32, channels_last_3d.

    The clips are moved to the device as uint8.

    Args:
        mean, std: One number per channel, for pixels scaled to 0 - 1.
    """
    frames = frames.to(device, non_blocking=True) if device is not None else frames
    video = frames.permute(0, 2, 1, 3, 4).contiguous(memory_format=torch.channels_last_3d)
    shape = (1, -1, 1, 1, 1)
    m = torch.tensor(mean, dtype=torch.float32, device=video.device).view(shape)
    s = torch.tensor(std, dtype=torch.float32, device=video.device).view(shape)
    return video.float().sub_(m * 255).div_(s * 255)


def source_size(height: int, width: int, short_side: int, crop: tuple[int, int]) -> tuple[int, int]:
    """Returns the size of the box that becomes `crop` if the short side becomes `short_side`."""
    # A long crop that does not fit, as in a portrait video, keeps its aspect ratio.
    scale = min(min(height, width) / short_side, height / crop[0], width / crop[1])
    h, w = (max(1, round(side * scale)) for side in crop)
    return min(height, h), min(width, w)


def place(height: int, width: int, h: int, w: int, at: Place) -> Box:
    """Returns a box of h x w; `at` is its position as fractions of the free space (y, x)."""
    y0 = min(int(at[0] * (height - h + 1)), height - h)
    x0 = min(int(at[1] * (width - w + 1)), width - w)
    return Box(y0, x0, y0 + h, x0 + w)


def check_fits(crop: tuple[int, int], short_side: int) -> None:
    if min(crop) < 1 or min(crop) > short_side:
        raise ValueError(
            f"crop: got {crop}, which does not fit into frames whose short side is {short_side}; "
            f"need a crop of at most {short_side} pixels on its short side"
        )
