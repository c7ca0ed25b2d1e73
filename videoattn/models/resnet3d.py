"""The networks I3D-ResNet, C2D and Slow, as one ResNet with a table of temporal kernels.

I3D inflates the first convolution of some blocks to 3 frames (Wang et al., CVPR 2018, after
Carreira & Zisserman, CVPR 2017). C2D has no temporal kernels. Slow (Feichtenhofer et al., ICCV
2019) has them in the last two stages and does not pool time. Parameters have the names of
torchvision's 2-D ResNets, so that a 2-D checkpoint inflates key by key.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from videoattn.errors import one_of
from videoattn.layers import Conv3d
from videoattn.models.structure import residual_info
from videoattn.types import Logits, Video


@dataclass(frozen=True)
class TemporalKernels:
    """The temporal kernel sizes of conv1 (`stem`) and of the first blocks of each stage, which the
    later blocks repeat in turn; and the temporal stride of the max pool after layer1."""

    stem: int
    stages: tuple[tuple[int, ...], ...]
    pool_frames: int


KERNELS: dict[str, TemporalKernels] = {
    "i3d": TemporalKernels(stem=5, stages=((3,), (3, 1), (3, 1), (1, 3)), pool_frames=2),
    "c2d": TemporalKernels(stem=1, stages=((1,), (1,), (1,), (1,)), pool_frames=2),
    "slow": TemporalKernels(stem=1, stages=((1,), (1,), (3,), (3,)), pool_frames=1),
}
BLOCKS: dict[int, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}


@dataclass(frozen=True)
class Stem:
    """The strides, kernels and padding of conv1 and the first pool; published networks differ here.

    The defaults are those of the 8x8 models of PySlowFast and pytorchvideo. mmaction2's 32x2 models
    have conv1_stride_frames=2 and pool1_stride_frames=2; the authors' own also have
    pool1_kernel_frames=2 (32x2) and pool1_padding=0.
    """

    conv1_stride_frames: int = 1
    pool1_kernel_frames: int = 1
    pool1_stride_frames: int = 1
    pool1_padding: int = 1


class BasicBlock(nn.Module):
    """A residual block of (k_t, 3, 3) and (1, 3, 3) convolutions; returns (N, width, T, H', W')."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, *, kernel_frames: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, (kernel_frames, 3, 3), stride)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = _conv(width, width, (1, 3, 3))
        self.bn2 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Video) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """A residual block of k_t x 1 x 1, strided 1x3x3 and 1x1x1 kernels: (N, 4·width, T, H', W')."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, kernel_frames: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, (kernel_frames, 1, 1))
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = _conv(width, width, (1, 3, 3), stride)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = _conv(width, width * 4, (1, 1, 1))
        self.bn3 = nn.BatchNorm3d(width * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width * 4, stride)

    def forward(self, x: Video) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + self.downsample(x))


class ResNet3d(nn.Module):
    """A 3-D ResNet: (N, 3, T, H, W) -> logits (N, K).

    With 400 classes, i3d, slow and c2d at depth 50 have 28,043,472, 32,454,096 and 24,327,632
    parameters.

    Args:
        kind: The row of temporal kernels: "i3d", "c2d" or "slow".
        depth: 18 and 34 have basic blocks, 50 and 101 bottlenecks.
        num_classes: K.
        stem: Settings of conv1 and the first pool.
        width: Channels of the stem; 64 in every published network.
        dropout: Dropout before the classifier.
        zero_init_residual: Start the last norm of each block at zero, so that blocks start as the
            identity (Goyal et al., 2017); for training from scratch.
        head_window: Frames, height and width of a window that slides over the output of layer4;
            the head reads the mean of its averages. None is one average over all positions. The
            two differ if the output is larger than the window, as in networks of PySlowFast and
            pytorchvideo that were trained with 224 pixels and run with 256. An axis shorter than
            the window is averaged whole.
        strides: For each stage, the stride of its first block in height and width. (1, 2, 1, 1)
            gives the last stages the grid of layer2, so that their maps have more positions.

    Raises:
        ValueError: If the kind or the depth does not exist, or there are not four strides.
    """

    def __init__(
        self,
        kind: str,
        *,
        depth: int = 50,
        num_classes: int,
        stem: Stem | None = None,
        width: int = 64,
        dropout: float = 0.5,
        zero_init_residual: bool = False,
        head_window: tuple[int, int, int] | None = None,
        strides: Sequence[int] = (1, 2, 2, 2),
    ) -> None:
        super().__init__()
        kernels = KERNELS[one_of("kind", kind, KERNELS)]
        if depth not in BLOCKS:
            raise ValueError(f"depth: got {depth}; choose from {', '.join(map(str, BLOCKS))}")
        if len(strides) != 4 or min(strides) < 1:
            raise ValueError(f"strides: got {list(strides)}; need four numbers of 1 or more")
        stem = stem or Stem()
        self.conv1 = Conv3d(
            3,
            width,
            (kernels.stem, 7, 7),
            stride=(stem.conv1_stride_frames, 2, 2),
            padding=(kernels.stem // 2, 3, 3),
            bias=False,
        )
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(
            (stem.pool1_kernel_frames, 3, 3),
            stride=(stem.pool1_stride_frames, 2, 2),
            padding=(0, stem.pool1_padding, stem.pool1_padding),
        )
        block = BasicBlock if depth < 50 else Bottleneck
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(
            block, BLOCKS[depth], kernels.stages, width, strides
        )
        channels = 8 * width * block.expansion
        self.pool_frames = kernels.pool_frames
        self.head_window = head_window
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self._reset(zero_init_residual)
        self.info = residual_info(self)

    def forward(self, x: Video) -> Logits:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer1(x)
        if x.shape[2] >= self.pool_frames:  # a single frame is not pooled
            x = nn.functional.max_pool3d(x, (self.pool_frames, 1, 1))
        return self.forward_head(self.layer4(self.layer3(self.layer2(x))))

    def forward_head(self, x: Video) -> Logits:
        """Returns the logits for the output of layer4."""
        if self.head_window is not None:
            sizes = zip(self.head_window, x.shape[2:], strict=True)
            x = nn.functional.avg_pool3d(x, [min(pair) for pair in sizes], stride=1)
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))

    def _reset(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                nn.init.zeros_(last.weight)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)


def _conv(
    in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int = 1
) -> Conv3d:
    return Conv3d(
        in_channels,
        out_channels,
        kernel,
        stride=(1, stride, stride),
        padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2),
        bias=False,
    )


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return nn.Sequential(
        _conv(in_channels, out_channels, (1, 1, 1), stride), nn.BatchNorm3d(out_channels)
    )


def _stages(
    block: type[BasicBlock] | type[Bottleneck],
    num_blocks: Sequence[int],
    patterns: Sequence[Sequence[int]],
    width: int,
    strides: Sequence[int],
) -> list[nn.Sequential]:
    """Returns the stages: i has width * 2^i * expansion channels, and starts with strides[i]."""
    channels, stages = width, []
    for stage, (count, pattern) in enumerate(zip(num_blocks, patterns, strict=True)):
        blocks = nn.Sequential()
        for index in range(count):
            kernel_frames = pattern[index % len(pattern)]
            stride = 1 if index else strides[stage]
            blocks.append(
                block(channels, width * 2**stage, kernel_frames=kernel_frames, stride=stride)
            )
            channels = width * 2**stage * block.expansion
        stages.append(blocks)
    return stages
