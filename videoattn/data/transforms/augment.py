"""Augmentation of training clips on uint8: one draw for all frames of a clip.

All randomness comes from the sample's own generator. Mirroring, which may change a label, is in
mirror.py; mixup and cutmix join clips of a batch, and are the trainer's.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torchvision.transforms import v2

from videoattn.data.transforms import Box, Crops, check_fits, place, source_size

GREY = 128
"""What is put where there is no picture."""

QUARTERS = [*product((0, 2, 4), repeat=2), *product((1, 3), repeat=2)]
"""TSN's 13 places, in quarters of the room left in y and x: corners, edges, centre, and between."""


@runtime_checkable
class CropBox(Protocol):
    """Which part of a frame becomes `crop`, (height, width) in pixels."""

    @property
    def crop(self) -> tuple[int, int]: ...

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Box: ...


@dataclass(frozen=True)
class AreaCrop:
    """A share of the frame's area in `area`, its width over height in `aspect_ratio` (log-uniform),
    anywhere (Szegedy et al., CVPR 2015)."""

    crop: tuple[int, int]
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
            share, ratio, y, x = torch.rand(4, generator=generator).tolist()
            area = height * width * (self.area[0] + share * (self.area[1] - self.area[0]))
            aspect = math.exp(math.log(low) + ratio * (math.log(high) - math.log(low)))
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return place(height, width, h, w, (y, x))
        # No draw fitted (a very wide or tall frame): the largest centred box of an allowed ratio.
        aspect = min(max(width / height, low), high)
        h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
        return place(height, width, max(h, 1), max(w, 1), (0.5, 0.5))


@dataclass(frozen=True)
class ShortSideCrop:
    """Scale jitter (Simonyan and Zisserman, ICLR 2015): the frame's short side becomes some number
    of pixels in `short_side`, both ends included, and the crop is cut anywhere."""

    crop: tuple[int, int]
    short_side: tuple[int, int] = (256, 320)

    def __post_init__(self) -> None:
        check_fits(self.crop, self.short_side[0])
        if self.short_side[0] > self.short_side[1]:
            raise ValueError(f"short_side: got {self.short_side}; need low <= high")

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Box:
        low, high = self.short_side
        short_side = int(torch.randint(low, high + 1, (1,), generator=generator))
        h, w = source_size(height, width, short_side, self.crop)
        y, x = torch.rand(2, generator=generator).tolist()
        return place(height, width, h, w, (y, x))


@dataclass(frozen=True)
class MultiScaleCrop:
    """Corner cropping with scale jitter (Wang et al., Temporal Segment Networks, ECCV 2016).

    Height and width are shares in `scales` of the largest box with the crop's shape: the same
    share, or neighbours in that list. The box lies at one of 13 places (`QUARTERS`). Each pair of
    shares is as likely as another, and each place.
    """

    crop: tuple[int, int]
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"scales: got {self.scales}; need one or more, above 0 and at most 1")

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Box:
        boxes = self.boxes(height, width)
        return boxes[int(torch.randint(len(boxes), (1,), generator=generator))]

    def boxes(self, height: int, width: int) -> list[Box]:
        """All that may be drawn in a frame of this size."""
        largest = min(height * self.crop[1], width * self.crop[0])  # height = largest // crop width
        boxes = []
        for (i, y_scale), (j, x_scale) in product(enumerate(self.scales), repeat=2):
            if abs(i - j) > 1:
                continue
            h = max(1, int(largest // self.crop[1] * y_scale))
            w = max(1, int(largest // self.crop[0] * x_scale))
            y_step, x_step = (height - h) // 4, (width - w) // 4
            boxes += [
                Box(y * y_step, x * x_step, y * y_step + h, x * x_step + w) for y, x in QUARTERS
            ]
        return boxes


@dataclass(frozen=True)
class ColorAugment:
    """What changes the pixels of a crop, in the order of these fields.

    `color_jitter`: brightness, contrast and saturation are multiplied by up to 1 ± this, the hue
    turned by up to a quarter of it (of half a circle). `grayscale`, `erase`: the probability of no
    colour, and of a grey rectangle of 2 to 33 % of the crop (Zhong et al., AAAI 2020), at the same
    place in every frame. `rand_augment`: so many operations of RandAugment (Cubuk et al., CVPRW
    2020), each of strength `rand_augment_magnitude` of 30; 0 for none.
    """

    color_jitter: float = 0.0
    grayscale: float = 0.0
    rand_augment: int = 0
    rand_augment_magnitude: int = 9
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name, chance in (("grayscale", self.grayscale), ("erase", self.erase)):
            if not 0 <= chance <= 1:
                raise ValueError(f"{name}: got {chance}; need a probability, 0 to 1")
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter: got {self.color_jitter}; need a share, 0 to 1")
        if self.rand_augment < 0:
            raise ValueError(f"rand_augment: got {self.rand_augment}; need 0 operations or more")
        strength = self.rand_augment_magnitude
        if not 0 <= strength <= 30:
            raise ValueError(f"rand_augment_magnitude: got {strength}; need 0 to 30")

    def __call__(self, clips: Crops, generator: torch.Generator) -> Crops:
        if self.color_jitter:
            clips = jitter_colors(clips, self.color_jitter, generator)
        if chance(self.grayscale, generator):
            clips = v2.functional.rgb_to_grayscale(clips, num_output_channels=3)
        if self.rand_augment:
            num_ops, strength = self.rand_augment, self.rand_augment_magnitude
            clips = rand_augment(clips, num_ops, strength, generator)
        if chance(self.erase, generator):
            clips = erase_box(clips, generator)
        return clips


class TrainTransform:
    """A random box, resized to its crop, and its looks changed: each clip has a draw of its own."""

    random = True
    mirrors = False

    def __init__(self, box: CropBox, looks: ColorAugment | None = None) -> None:
        self.box = box
        self.looks = looks or ColorAugment()

    def boxes(self, height: int, width: int, generator: torch.Generator) -> list[Box]:
        return [self.box(height, width, generator)]

    def size(self, height: int, width: int) -> tuple[int, int]:
        return self.box.crop

    def finish(self, crops: Crops, generator: torch.Generator) -> Crops:
        return self.looks(crops, generator)


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


def rand_augment(clips: Crops, num_ops: int, magnitude: int, generator: torch.Generator) -> Crops:
    """The same operations for all frames; what they uncover is grey."""
    augment = v2.RandAugment(
        num_ops, magnitude, interpolation=v2.InterpolationMode.BILINEAR, fill=GREY
    )
    with _in_place_of_the_global_state(generator):
        out: Tensor = augment(clips)
    return out


def erase_box(clips: Crops, generator: torch.Generator) -> Crops:
    """A grey rectangle, 2 to 33 % of the crop, width over height 0.3 to 3.3, in every frame."""
    height, width = clips.shape[-2:]
    share, ratio, y, x = torch.rand(4, generator=generator).tolist()
    area = height * width * (0.02 + share * 0.31)
    aspect = math.exp((2 * ratio - 1) * math.log(3.3))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    box = place(height, width, h, w, (y, x))
    clips = clips.clone()
    clips[..., box.y0 : box.y1, box.x0 : box.x1] = GREY
    return clips


def chance(probability: float, generator: torch.Generator) -> bool:
    """Whether a thing of this probability happens; one that never does draws nothing."""
    return bool(probability) and float(torch.rand(1, generator=generator)) < probability


_global_state = threading.Lock()  # there is one for all threads


@contextmanager
def _in_place_of_the_global_state(generator: torch.Generator) -> Iterator[None]:
    """torchvision draws from torch's global state only: the generator's stands there meanwhile."""
    with _global_state:
        outside = torch.get_rng_state()
        torch.set_rng_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(torch.get_rng_state())
            torch.set_rng_state(outside)
