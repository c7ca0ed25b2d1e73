"""Clip-consistent crops and resizes on uint8: the crop is cut first, then resized once.

A crop is a box (y0, x0, y1, x1) in pixels of the decoded video, y1 and x1 excluded. Sizes are
(height, width). Random crops are in augment.py.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from videoattn.types import Frames, Video

Crops = UInt8[Tensor, "V T C h w"]

Place = tuple[float, float]
"""Of a crop, in y and x: 0 at the top left, 1 at the bottom right."""

PLACES: dict[int, list[Place]] = {
    0: [],
    1: [(0.5, 0.5)],
    3: [(0.5, 0.0), (0.5, 0.5), (0.5, 1.0)],  # of a wide frame
    10: [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)],
}
"""Test crops by their number."""


class Box(NamedTuple):
    y0: int
    x0: int
    y1: int
    x1: int


@runtime_checkable
class Transform(Protocol):
    """What becomes of decoded clips: boxes are cut out of every frame and resized, then finished.

    A `random` one draws for each clip of a video anew; another treats all of them alike. One that
    `mirrors` adds the mirror images of a clip's boxes behind them.
    """

    random: bool
    mirrors: bool

    def boxes(self, height: int, width: int, generator: torch.Generator) -> list[Box]: ...

    def size(self, height: int, width: int) -> tuple[int, int]: ...

    def finish(self, crops: Crops, generator: torch.Generator) -> Crops: ...


class TestTransform:
    """The frame with its short side at `short_side` pixels, cut to `crop`: no randomness.

    num_crops: 1 is the centre. 3 lie at both ends and the centre of the longer side (left, centre,
    right, or top, centre, bottom). 10 are the four corners, the centre, and then the mirror images
    of these five. 0 cuts nothing: the whole frame, for networks that take any size (`crop` is not
    used). Each clip's crops stand side by side in V.
    """

    __test__ = False  # a name that pytest would collect
    random = False

    def __init__(self, short_side: int, *, crop: tuple[int, int], num_crops: int = 1) -> None:
        if num_crops not in PLACES:
            raise ValueError(
                f"num_crops: got {num_crops}; choose 1 (centre), 3, 10 (five and their mirror "
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
        """What a video of this size is resized to: the crop, or all of the frame."""
        if self.num_crops:
            return self.crop
        scale = self.short_side / min(height, width)
        return round(height * scale), round(width * scale)

    def boxes(self, height: int, width: int, generator: torch.Generator | None = None) -> list[Box]:
        """Where the crops lie in a video of this size, in its own pixels; mirrored ones are not
        told twice. Nothing is drawn."""
        if not self.num_crops:
            return [Box(0, 0, height, width)]
        h, w = source_size(height, width, self.short_side, self.crop)
        places = PLACES[self.num_crops]
        if self.num_crops == 3 and width < height:
            places = [(x, y) for y, x in places]
        return [place(height, width, h, w, at) for at in places]

    def finish(self, crops: Crops, generator: torch.Generator) -> Crops:
        return crops


def resize(
    frames: Frames, size: tuple[int, int], out: UInt8[Tensor, "T C h w"] | None = None
) -> UInt8[Tensor, "T C h w"]:
    """To (height, width): bilinear, antialiased, uint8 throughout. `out`, of channels-last memory,
    is where the result goes."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames if out is None else out.copy_(frames)
    frames = frames.contiguous(memory_format=torch.channels_last)
    if out is None:
        return F.interpolate(frames, size=size, mode="bilinear", antialias=True)
    # What the line above calls, which has no way to say where to.
    torch.ops.aten._upsample_bilinear2d_aa.out(frames, size, False, None, None, out=out)
    return out


def to_video(
    frames: UInt8[Tensor, "N T C H W"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str | None = None,
) -> Video:
    """What a network sees: float32, channels_last_3d, (x / 255 - mean) / std per channel.

    `mean` and `std` are in units of 0 - 1. The bytes travel to the device, not the floats.
    """
    frames = frames.to(device, non_blocking=True) if device is not None else frames
    video = frames.permute(0, 2, 1, 3, 4).contiguous(memory_format=torch.channels_last_3d)
    shape = (1, -1, 1, 1, 1)
    m = torch.tensor(mean, dtype=torch.float32, device=video.device).view(shape)
    s = torch.tensor(std, dtype=torch.float32, device=video.device).view(shape)
    return video.float().sub_(m * 255).div_(s * 255)


def source_size(height: int, width: int, short_side: int, crop: tuple[int, int]) -> tuple[int, int]:
    """The box that becomes `crop` when the frame's short side becomes `short_side`."""
    scale = min(height, width) / short_side
    return (
        min(height, max(1, round(crop[0] * scale))),
        min(width, max(1, round(crop[1] * scale))),
    )


def place(height: int, width: int, h: int, w: int, at: Place) -> Box:
    """A box of h x w at its place in a frame: the offset is a share of the room left."""
    y0 = min(int(at[0] * (height - h + 1)), height - h)
    x0 = min(int(at[1] * (width - w + 1)), width - w)
    return Box(y0, x0, y0 + h, x0 + w)


def check_fits(crop: tuple[int, int], short_side: int) -> None:
    if min(crop) < 1 or min(crop) > short_side:
        raise ValueError(
            f"crop: got {crop}, which does not fit into frames whose short side is {short_side}; "
            f"need a crop of at most {short_side} pixels on its short side"
        )
