"""The network Inception-I3D: Inception-v1 with every kernel inflated (Carreira & Zisserman, Quo
Vadis, Action Recognition? A New Model and the Kinetics Dataset, CVPR 2017, arXiv 1705.07750).

Parameters have the names of piergiaj/pytorch-i3d, and modules those of the authors' code. Only the
classifier differs: a 1x1x1 convolution there, the linear layer `fc` here. The function is the same,
since the mean over time of a linear layer is the layer applied to the mean.

Padding is TensorFlow's SAME: an axis of n positions becomes ceil(n / stride), after padding with
zeros, the larger half at the end. The amount depends on n, so each forward pass computes it.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.errors import one_of
from videoattn.layers import Conv3d
from videoattn.types import Logits, ModelInfo, Video

WINDOW = (2, 7, 7)


class Convolution(NamedTuple):
    channels: int
    side: int
    stride: int = 1


class Pool(NamedTuple):
    """The kernel and stride of a pool, each (frames, height, width)."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]


class Branches(NamedTuple):
    """Channels of a `Mixed` block's units."""

    b0: int
    b1a: int
    b1b: int
    b2a: int
    b2b: int
    b3b: int


TABLE: dict[str, Convolution | Pool | Branches] = {
    "Conv3d_1a_7x7": Convolution(64, 7, stride=2),
    "MaxPool3d_2a_3x3": Pool((1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1": Convolution(64, 1),
    "Conv3d_2c_3x3": Convolution(192, 3),
    "MaxPool3d_3a_3x3": Pool((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": Branches(64, 96, 128, 16, 32, 32),
    "Mixed_3c": Branches(128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": Pool((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": Branches(192, 96, 208, 16, 48, 64),
    "Mixed_4c": Branches(160, 112, 224, 24, 64, 64),
    "Mixed_4d": Branches(128, 128, 256, 24, 64, 64),
    "Mixed_4e": Branches(112, 144, 288, 32, 64, 64),
    "Mixed_4f": Branches(256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": Pool((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": Branches(256, 160, 320, 32, 128, 128),
    "Mixed_5c": Branches(384, 192, 384, 48, 128, 128),
}


class InceptionI3d(nn.Sequential):
    """The network Inception-I3D: (N, 3, T, H, W) -> logits (N, K), for any T, H and W.

    The head averages windows of (2, 7, 7) of the last features, and then their averages. An axis
    shorter than the window is averaged whole.

    Args:
        num_classes: K.
        width: Factor of the table's channels, rounded to multiples of 16. 1 is the published
            network, with 12,697,264 parameters for 400 classes.
        dropout: Dropout of the averaged features.
        padding: "same" is TensorFlow's. "fixed" is the padding of hassony2/kinetics_i3d_pytorch:
            height and width, and all axes of the pools, are padded at the start as if their size
            were even (a size of 1 is not allowed). The two are equal if T is a multiple of 4, and
            H and W are multiples of 16.

    Raises:
        ValueError: If the padding does not exist.
    """

    def __init__(
        self, *, num_classes: int, width: float = 1.0, dropout: float = 0.5, padding: str = "same"
    ) -> None:
        super().__init__()
        fixed, channels = one_of("padding", padding, ("same", "fixed")) == "fixed", 3
        for name, row in TABLE.items():
            layer: nn.Module
            if isinstance(row, Pool):
                layer = MaxPool(*row, fixed=fixed)
            elif isinstance(row, Convolution):
                out_channels = _scaled(row.channels, width)
                layer = Unit(channels, out_channels, row.side, stride=row.stride, fixed=fixed)
                channels = out_channels
            else:
                layer = Mixed(channels, Branches(*(_scaled(count, width) for count in row)))
                channels = layer.channels
            self.add_module(name, layer)
        self.avgpool = WindowAverage()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        stages = {
            stage: tuple(name for name in TABLE if name.startswith(stage))
            for stage in ("Mixed_3", "Mixed_4", "Mixed_5")
        }
        self.info = ModelInfo("fc", stages, features="Mixed_5c")

    def forward(self, x: Video) -> Logits:
        return super().forward(x)

    def forward_head(self, features: Video) -> Logits:
        """Returns the logits for the output of Mixed_5c."""
        return self.fc(self.dropout(self.avgpool(features)))


class Mixed(nn.Module):
    """A block of four branches, (N, C, T, H, W) -> (N, channels, T, H, W): a 1x1x1 unit; two of a
    1x1x1 and a 3x3x3 unit; and a 3x3x3 max pool with a 1x1x1 unit."""

    def __init__(self, in_channels: int, widths: Branches) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.channels = b0 + b1b + b2b + b3b
        self.b0 = Unit(in_channels, b0, 1)
        self.b1a = Unit(in_channels, b1a, 1)
        self.b1b = Unit(b1a, b1b, 3)
        self.b2a = Unit(in_channels, b2a, 1)
        self.b2b = Unit(b2a, b2b, 3)
        self.b3a = MaxPool((3, 3, 3), (1, 1, 1))
        self.b3b = Unit(in_channels, b3b, 1)

    def forward(self, x: Video) -> Tensor:
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(branches, dim=1)


class Unit(nn.Module):
    """A convolution, batch norm and ReLU; returns (N, out_channels, ceil(T/stride), ...)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        side: int,
        *,
        stride: int = 1,
        fixed: bool = False,
    ) -> None:
        super().__init__()
        if stride == 1:  # the same padding on both sides, for any size
            self.conv3d = Conv3d(in_channels, out_channels, side, padding=side // 2, bias=False)
        else:
            self.conv3d = SameConv3d(in_channels, out_channels, side, stride=stride, bias=False)
            self.conv3d.fixed = fixed
        self.bn = nn.BatchNorm3d(out_channels, eps=1e-3, momentum=0.01)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Video) -> Tensor:
        return self.relu(self.bn(self.conv3d(x)))


class SameConv3d(Conv3d):
    """A cubic convolution with SAME padding; `fixed` pads H and W as if they were even."""

    fixed = False

    def forward(self, x: Tensor) -> Tensor:
        side, stride = self.kernel_size[0], self.stride[0]
        pads = [_same(size, side, stride) for size in x.shape[2:]]
        if self.fixed:
            pads[1:] = [_same(stride, side, stride)] * 2
        return super().forward(_pad(x, pads))


class MaxPool(nn.Module):
    """A max pool after SAME padding with zeros.

    With `fixed`, the start is padded as for a size that is a multiple of the stride.
    """

    def __init__(
        self, kernel: tuple[int, int, int], stride: tuple[int, int, int], *, fixed: bool = False
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.fixed = fixed

    def forward(self, x: Video) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[2:], self.kernel, self.stride, strict=True):
            front, back = _same(size, kernel, stride)
            start = _same(stride, kernel, stride)[0] if self.fixed else front
            pads.append((start, front + back - start))
        return F.max_pool3d(_pad(x, pads), self.kernel, self.stride)


class WindowAverage(nn.Module):
    """Averages the means of all windows: (N, C, T, H, W) -> (N, C)."""

    def forward(self, x: Video) -> Tensor:
        for size, extent in zip(reversed(x.shape[2:]), reversed(WINDOW), strict=True):
            x = (x * _window_weights(size, extent, x.device)).sum(-1)
        return x


def _window_weights(size: int, extent: int, device: torch.device) -> Tensor:
    """Returns the weight (size,) of each position in the mean over all windows along an axis. An
    average pool would tie an exported graph to one size of clip."""
    ahead = torch.arange(size, device=device) + 1
    windows = ahead.minimum(ahead.flip(0)).clamp(max=size - extent + 1).clamp(1, extent)
    return windows / windows.sum()


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Returns the padding (start, end) for ceil(size / stride) outputs; kernel >= stride."""
    total = (size - 1) // stride * stride + kernel - size
    return total // 2, total - total // 2


def _pad(x: Tensor, pads: list[tuple[int, int]]) -> Tensor:
    return F.pad(x, [zeros for axis in reversed(pads) for zeros in axis])


def _scaled(channels: int, width: float) -> int:
    unit = math.gcd(channels, 16)  # reductions, groups and heads of attention divide it
    return max(unit, round(channels * width / unit) * unit)
