"""Augments training clips in uint8, with the same random values for all frames of a clip.

All randomness comes from the sample's generator, except for mixup and cutmix, which combine the
clips of a batch. Mirroring can change a label and is in mirror.py.
"""

import math
import threading
from dataclasses import dataclass
from itertools import product
from types import ModuleType

import torch
from torch import Tensor, nn

from videoattn.data.transforms import Box, CropBox, Crops, check_fits, place, source_size

GRAY = 128
"""The value of pixels that an operation uncovers or erases."""

QUARTERS = [*product((0, 2, 4), repeat=2), *product((1, 3), repeat=2)]
"""TSN's 13 positions, in quarters of the free space in y and x: a grid of 3 x 3, then of 2 x 2."""

_global_state = threading.Lock()


@dataclass(frozen=True)
class ShortSideCrop(CropBox):
    """Draws a box with scale jitter (Simonyan and Zisserman, ICLR 2015).

    The frame's short side is resized to a random number of pixels in `short_side`, both ends
    included, and the crop is at a random position.
    """

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
class MultiScaleCrop(CropBox):
    """Draws a box at a corner, with scale jitter (Wang et al., TSN, ECCV 2016).

    The largest box with the crop's shape is scaled in height and width by two factors of `scales`,
    equal or neighbors in that list. It is at one of 13 positions (`QUARTERS`). All pairs of factors
    and all positions are equally likely.
    """

    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"scales: got {self.scales}; need one or more, above 0 and at most 1")

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Box:
        boxes = self.boxes(height, width)
        return boxes[int(torch.randint(len(boxes), (1,), generator=generator))]

    def boxes(self, height: int, width: int) -> list[Box]:
        """Returns all possible boxes in a frame of this size."""
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
    """Changes the pixels of a crop, in the order of the attributes.

    Attributes:
        color_jitter: Brightness, contrast and saturation are multiplied by 1 ± this fraction at
            most. The hue is rotated by at most an eighth of it, in turns.
        grayscale: Probability of removing all color.
        rand_augment: Number of operations of RandAugment (Cubuk et al., CVPRW 2020).
        rand_augment_magnitude: Strength of each operation, 0 to 30.
        erase: Probability of a gray rectangle over 2 to 33 % of the crop, at the same position in
            every frame (Zhong et al., AAAI 2020).
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
            raise ValueError(f"color_jitter: got {self.color_jitter}; need a fraction, 0 to 1")
        if self.rand_augment < 0:
            raise ValueError(f"rand_augment: got {self.rand_augment}; need 0 operations or more")
        strength = self.rand_augment_magnitude
        if not 0 <= strength <= 30:
            raise ValueError(f"rand_augment_magnitude: got {strength}; need 0 to 30")
        if self.color_jitter or self.grayscale or self.rand_augment:
            _v2()  # before loader processes start, each of which would import it

    def __call__(self, clips: Crops, generator: torch.Generator) -> Crops:
        if self.color_jitter:
            clips = jitter_colors(clips, self.color_jitter, generator)
        if chance(self.grayscale, generator):
            clips = _v2().functional.rgb_to_grayscale(clips, num_output_channels=3)
        if self.rand_augment:
            num_ops, strength = self.rand_augment, self.rand_augment_magnitude
            clips = rand_augment(clips, num_ops, strength, generator)
        if chance(self.erase, generator):
            clips = erase_box(clips, generator)
        return clips


def jitter_colors(clips: Crops, strength: float, generator: torch.Generator) -> Crops:
    """Changes brightness, contrast, saturation and hue equally in all frames."""
    *factors, turn = (torch.rand(4, generator=generator) * 2 - 1).mul_(strength).tolist()
    change = _v2().functional
    functions = (change.adjust_brightness, change.adjust_contrast, change.adjust_saturation)
    for adjust, factor in zip(functions, factors, strict=True):
        clips = adjust(clips, 1 + factor)
    out: Tensor = change.adjust_hue(clips, turn / 8)  # in turns of the color circle
    return out


def rand_augment(clips: Crops, num_ops: int, magnitude: int, generator: torch.Generator) -> Crops:
    """Applies the same random operations to all frames. Uncovered pixels become gray."""
    v2 = _v2()
    augment = v2.RandAugment(
        num_ops, magnitude, interpolation=v2.InterpolationMode.BILINEAR, fill=GRAY
    )
    # torchvision draws from torch's global generator, which all threads share.
    with _global_state, torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        out: Tensor = augment(clips)
        generator.set_state(torch.get_rng_state())
    return out


def erase_box(clips: Crops, generator: torch.Generator) -> Crops:
    """Puts a gray rectangle on 2 to 33 % of every frame, with width over height 0.3 to 3.3."""
    height, width = clips.shape[-2:]
    fraction, ratio, y, x = torch.rand(4, generator=generator).tolist()
    area = height * width * (0.02 + fraction * 0.31)
    aspect = math.exp((2 * ratio - 1) * math.log(3.3))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    box = place(height, width, h, w, (y, x))
    clips = clips.clone()
    clips[..., box.y0 : box.y1, box.x0 : box.x1] = GRAY
    return clips


class Mix:
    """Applies mixup or cutmix, each to a fraction of the batches.

    Mixup: Zhang et al., ICLR 2018, with Beta(0.8, 0.8). Cutmix: Yun et al., ICCV 2019.

    Calling it with a video (N, C, T, H, W) and its target, labels (N,) or shares of the classes
    (N, K), returns the mixed video and the shares (N, K). Draws from torch's global generator.

    Args:
        mixup, cutmix: Fractions of the batches; at most 1 together.
        num_clips: Clips per video, which are next to each other in a batch. Clips of one video are
            not mixed with each other.

    Raises:
        ValueError: If a fraction is negative, or their sum is more than 1.
    """

    def __init__(
        self, num_classes: int, *, mixup: float = 0.0, cutmix: float = 0.0, num_clips: int = 1
    ) -> None:
        if min(mixup, cutmix) < 0 or mixup + cutmix > 1:
            raise ValueError(
                f"mixup={mixup} and cutmix={cutmix} are fractions of the batches; need 0 or more "
                "each, and at most 1 together"
            )
        self.num_classes = num_classes
        self.num_clips = num_clips
        self.fractions = (mixup, cutmix)
        self._mixes: list[nn.Module] = []
        if any(self.fractions):
            self._mixes = [
                _v2().MixUp(alpha=0.8, num_classes=num_classes),
                _v2().CutMix(num_classes=num_classes),
            ]

    def __call__(self, video: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        drawn = float(torch.rand(()))
        if drawn >= sum(self.fractions):
            if target.ndim == 1:
                target = nn.functional.one_hot(target, self.num_classes)
            return video, target.float()
        from torchvision import tv_tensors

        mix = self._mixes[drawn >= self.fractions[0]]
        # torchvision accepts five axes only in a tv_tensors.Video, of any layout: cutmix cuts along
        # the last two. It mixes neighbors, so clips of one video are moved apart first.
        order = torch.arange(len(video)).view(-1, self.num_clips).T.flatten()
        if self.num_clips > 1:
            video, target = video[order], target[order]
        mixed, target = mix(tv_tensors.Video(video), target)
        mixed = mixed.as_subclass(Tensor)
        if self.num_clips > 1:
            mixed, target = mixed[order.argsort()], target[order.argsort()]
        return mixed, target


def chance(probability: float, generator: torch.Generator) -> bool:
    """Returns True with the given probability. Probability 0 consumes no random numbers."""
    return bool(probability) and float(torch.rand(1, generator=generator)) < probability


def _v2() -> ModuleType:
    from torchvision.transforms import v2  # takes as long to import as torch

    module: ModuleType = v2
    return module
