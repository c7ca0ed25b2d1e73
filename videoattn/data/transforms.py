"""Clip-consistent crops, resizes and flips on uint8: the crop is cut first, then resized once.

A transform treats all frames of a sample alike, whichever clip they are in. A crop is a box
(y0, x0, y1, x1) in pixels of the decoded video, y1 and x1 excluded. Sizes are (height, width).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms import v2

from videoattn.types import Video

Clips = UInt8[Tensor, "V T C H W"]
Crops = UInt8[Tensor, "VN T C h w"]


class Box(NamedTuple):
    y0: int
    x0: int
    y1: int
    x1: int


class TrainTransform:
    """A random crop, resized to `crop`, mirrored with probability `flip`, its colours changed.

    By default the crop's area is a share in `scale` of the frame and its width over height lies in
    `ratio` (log-uniform). With `short_side=(low, high)` it is the crop of the video papers instead:
    the frame's short side is drawn from low..high pixels, then `crop` pixels are cut anywhere.
    `color_jitter`: brightness, contrast and saturation are multiplied by up to 1 ± this, the hue
    turned by up to a quarter of it (of half a circle). `grayscale`, `erase`: the probability of no
    colour, and of a grey rectangle of 2 to 33 % of the crop (Zhong et al., AAAI 2020), at the same
    place in every frame.
    """

    def __init__(
        self,
        crop: tuple[int, int],
        *,
        scale: tuple[float, float] = (0.25, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        short_side: tuple[int, int] | None = None,
        flip: float = 0.5,
        color_jitter: float = 0.0,
        grayscale: float = 0.0,
        erase: float = 0.0,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale: got {scale}; need 0 < low <= high <= 1")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio: got {ratio}; need 0 < low <= high")
        for name, chance in (("flip", flip), ("grayscale", grayscale), ("erase", erase)):
            if not 0 <= chance <= 1:
                raise ValueError(f"{name}: got {chance}; need a probability, 0 to 1")
        if not 0 <= color_jitter <= 1:
            raise ValueError(f"color_jitter: got {color_jitter}; need a share, 0 to 1")
        if short_side is not None:
            _check_fits(crop, short_side[0])
            if short_side[0] > short_side[1]:
                raise ValueError(f"short_side: got {short_side}; need low <= high")
        self.crop = crop
        self.num_crops = 1
        self.scale = scale
        self.ratio = ratio
        self.short_side = short_side
        self.flip = flip
        self.color_jitter = color_jitter
        self.grayscale = grayscale
        self.erase = erase

    def __call__(self, clips: Clips, generator: torch.Generator) -> Crops:
        box = self.box(clips.shape[-2], clips.shape[-1], generator)
        out = crop_resize(clips, box, self.crop)
        if _chance(self.flip, generator):
            out = out.flip(-1)
        if self.color_jitter:
            out = jitter_colors(out, self.color_jitter, generator)
        if _chance(self.grayscale, generator):
            out = v2.functional.rgb_to_grayscale(out, num_output_channels=3)
        if _chance(self.erase, generator):
            out = erase_box(out, generator)
        return out

    def box(self, height: int, width: int, generator: torch.Generator) -> Box:
        if self.short_side is not None:
            low, high = self.short_side
            short_side = int(torch.randint(low, high + 1, (1,), generator=generator))
            h, w = _source_size(height, width, short_side, self.crop)
            return _place(height, width, h, w, torch.rand(2, generator=generator).tolist())
        for _ in range(10):
            share, ratio, y, x = torch.rand(4, generator=generator).tolist()
            area = height * width * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
            aspect = math.exp(log_low + ratio * (log_high - log_low))
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return _place(height, width, h, w, [y, x])
        # No draw fitted (a very wide or tall frame): the largest centred box of an allowed ratio.
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
        return _place(height, width, max(h, 1), max(w, 1), [0.5, 0.5])


class TestTransform:
    """The frame with its short side at `short_side` pixels, cut to `crop`: no randomness.

    One crop is the centre; three lie at both ends and the centre of the longer side (left, centre,
    right, or top, centre, bottom). Each clip's crops stand side by side in V.
    """

    __test__ = False  # a name that pytest would collect

    def __init__(self, short_side: int, *, crop: tuple[int, int], num_crops: int = 1) -> None:
        _check_fits(crop, short_side)
        if num_crops not in (1, 3):
            raise ValueError(f"num_crops: got {num_crops}; choose 1 (centre) or 3")
        self.short_side = short_side
        self.crop = crop
        self.num_crops = num_crops

    def __call__(self, clips: Clips, generator: torch.Generator) -> Crops:
        boxes = self.boxes(clips.shape[-2], clips.shape[-1])
        return _side_by_side([crop_resize(clips, box, self.crop) for box in boxes])

    def boxes(self, height: int, width: int) -> list[Box]:
        """Where the crops lie in a video of this size, in its own pixels."""
        h, w = _source_size(height, width, self.short_side, self.crop)
        ends = [0.5] if self.num_crops == 1 else [0.0, 0.5, 1.0]
        return [
            _place(height, width, h, w, [0.5, end] if width >= height else [end, 0.5])
            for end in ends
        ]


def crop_resize(clips: Clips, box: Box, size: tuple[int, int]) -> Crops:
    """Cuts the box and resizes it to (height, width): bilinear, antialiased, uint8 throughout."""
    v, t, c = clips.shape[:3]
    cut = clips[..., box.y0 : box.y1, box.x0 : box.x1].flatten(0, 1)
    if tuple(cut.shape[-2:]) != tuple(size):
        cut = cut.contiguous(memory_format=torch.channels_last)
        cut = F.interpolate(cut, size=size, mode="bilinear", antialias=True)
    return cut.reshape(v, t, c, *size) if v == 1 else cut.unflatten(0, (v, t))


def jitter_colors(clips: Crops, strength: float, generator: torch.Generator) -> Crops:
    """One draw of brightness, contrast, saturation and hue for all frames."""
    *factors, turn = (torch.rand(4, generator=generator) * 2 - 1).mul_(strength).tolist()
    functions = (
        v2.functional.adjust_brightness,
        v2.functional.adjust_contrast,
        v2.functional.adjust_saturation,
    )
    for adjust, factor in zip(functions, factors, strict=True):
        clips = adjust(clips, 1 + factor)
    out: Tensor = v2.functional.adjust_hue(clips, turn / 8)  # in turns of the colour circle
    return out


def erase_box(clips: Crops, generator: torch.Generator) -> Crops:
    """A grey rectangle, 2 to 33 % of the crop, width over height 0.3 to 3.3, in every frame."""
    height, width = clips.shape[-2:]
    share, ratio, y, x = torch.rand(4, generator=generator).tolist()
    area = height * width * (0.02 + share * 0.31)
    aspect = math.exp((2 * ratio - 1) * math.log(3.3))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    box = _place(height, width, h, w, [y, x])
    clips = clips.clone()
    clips[..., box.y0 : box.y1, box.x0 : box.x1] = 128
    return clips


def _chance(probability: float, generator: torch.Generator) -> bool:
    """Whether a thing of this probability happens; one that never does draws nothing."""
    return bool(probability) and float(torch.rand(1, generator=generator)) < probability


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


def _source_size(
    height: int, width: int, short_side: int, crop: tuple[int, int]
) -> tuple[int, int]:
    """The box that becomes `crop` when the frame's short side becomes `short_side`."""
    scale = min(height, width) / short_side
    return (
        min(height, max(1, round(crop[0] * scale))),
        min(width, max(1, round(crop[1] * scale))),
    )


def _place(height: int, width: int, h: int, w: int, at: list[float]) -> Box:
    """A box of h x w, its offset a share (0 - 1) of the room left in y and x."""
    y0 = min(int(at[0] * (height - h + 1)), height - h)
    x0 = min(int(at[1] * (width - w + 1)), width - w)
    return Box(y0, x0, y0 + h, x0 + w)


def _side_by_side(crops: list[Crops]) -> UInt8[Tensor, "VNN T C h w"]:
    return crops[0] if len(crops) == 1 else torch.stack(crops, 1).flatten(0, 1)


def _check_fits(crop: tuple[int, int], short_side: int) -> None:
    if min(crop) < 1 or min(crop) > short_side:
        raise ValueError(
            f"crop: got {crop}, which does not fit into frames whose short side is {short_side}; "
            f"need a crop of at most {short_side} pixels on its short side"
        )
