"""Residual attention (Wang et al., Residual Attention Network for Image Classification, CVPR 2017,
arXiv 1704.06904): a mask branch beside a trunk.

    out = F + M(u) · F

u is what enters the trunk, F what leaves it, M a small encoder and decoder over u with a value in
(0, 1) for every channel and position. As in the authors' network definition: D times {max pool 3 of
stride 2, r residual units}, with r more at the deepest level; then up again, resized to the level
above, plus that level's features through one unit, r units; the last resize is to F, without
either; then twice {norm, ReLU, 1x1x1 convolution}, and a sigmoid. Units are bottlenecks of a
quarter of the width with norms first. A well-known PyTorch port adds three more sums: we do not.

| activation | M from the last convolution's x                                              |
| mixed      | sigmoid(x)                                                                   |
| channel    | x / |x|, the length taken over the channels of a position: in (-1, 1)        |
| spatial    | sigmoid((x - mean) / deviation), both of a channel's map in a frame          |

Where we differ: the paper builds networks of such modules. Here the trunk is a stage that is there
already, and only the mask is new, so that a pretrained backbone can have it. Resizing has
align_corners=False. Time: by default a frame has its own mask, which is the 2-D module on each;
`temporal_kernel` and `temporal_mask` let frames mix.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.attention.record import GateMap
from videoattn.errors import one_of
from videoattn.layers import Conv3d
from videoattn.types import Video

ACTIVATIONS = ("mixed", "channel", "spatial")
STARTS = ("half", "identity")
_EPS = 1e-6


class ResidualMask(nn.Module):
    """The mask branch around a stage: u, trunk (N, C, T, H, W) -> the masked trunk, alike.

    depth: D, how often the mask halves the grid. None: what brings `grid` down to 7, so 3 at
        56 x 56, 2 at 28 x 28 and 1 at 14 x 14 (the paper's), and at least 1. Height or width that
        pooling would bring below 2 is left as it is at that level.
    grid: the side of the stage's features for 224 x 224 input; whoever attaches the mask knows it.
    units: r, residual units at each level.
    activation: of the table above.
    temporal_kernel: 1 or 3, frames of the units' 3x3 convolutions.
    temporal_mask: pool (and resize) time too. The clip must have 2^depth frames or more there; the
        "spatial" activation's mean and deviation are then those of all frames.
    gate_start: "half", the paper's, begins near out = 1.5·F. "identity" multiplies M by a learned
        number that begins at 0, so out = F to the bit, as a trained backbone wants it; the mask's
        own weights begin to learn when that number has left 0.

    Raises:
        ValueError: an option of another value; clips too short for `temporal_mask`.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: int | None = None,
        grid: int = 28,
        units: int = 1,
        activation: str = "mixed",
        temporal_kernel: int = 1,
        temporal_mask: bool = False,
        gate_start: str = "half",
    ) -> None:
        super().__init__()
        one_of("activation", activation, ACTIVATIONS)
        one_of("gate_start", gate_start, STARTS)
        if depth is None:
            depth = depth_for(grid)
        if depth < 1 or units < 1:
            raise ValueError(f"depth and units must be at least 1, got {depth} and {units}")
        if temporal_kernel not in (1, 3):
            raise ValueError(f"temporal_kernel must be 1 or 3, got {temporal_kernel}")
        self.depth = depth
        self.activation = activation
        self.temporal_mask = temporal_mask

        def run(count: int) -> nn.Sequential:
            return nn.Sequential(*(_Unit(channels, temporal_kernel) for _ in range(count)))

        self.down = nn.ModuleList(run(units) for _ in range(depth))
        self.bottom = run(units)
        # Of levels 1 to D - 1: the deepest has no level below to come up from.
        self.skips = nn.ModuleList(run(1) for _ in range(depth - 1))
        self.up = nn.ModuleList(run(units) for _ in range(depth - 1))
        self.out = nn.Sequential(
            *_norm_first(channels, channels, (1, 1, 1)),
            *_norm_first(channels, channels, (1, 1, 1)),
        )
        self.scale = nn.Parameter(torch.zeros(())) if gate_start == "identity" else None
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, u: Video, trunk: Video) -> Video:
        return trunk + self.mask(u, trunk).to(trunk.dtype) * trunk

    def mask(self, u: Video, trunk: Video) -> Video:
        """M, as it multiplies the trunk: with the learned scale, if there is one."""
        if self.temporal_mask and u.shape[2] < 2**self.depth:
            raise ValueError(
                f"temporal_mask=True with depth={self.depth} halves time {self.depth} times and "
                f"needs {2**self.depth} frames or more at this stage, got {u.shape[2]}; pass "
                "longer clips, lower depth, or set temporal_mask=False"
            )
        levels: list[Tensor] = []
        x = u
        for down in self.down:
            x = down(self._pool(x))
            levels.append(x)
        x = self.bottom(x)
        for level, skip, up in zip(
            reversed(levels[:-1]), reversed(self.skips), reversed(self.up), strict=True
        ):
            x = up(_resize(x, level) + skip(level))
        mask = self._activate(self.out(_resize(x, trunk)))
        return mask if self.scale is None else self.scale * mask

    def maps(self, u: Video, trunk: Video) -> dict[str, GateMap]:
        return {"": GateMap("mask", self.mask(u, trunk), identity_value=0.0)}

    def _pool(self, x: Tensor) -> Tensor:
        _, _, _, height, width = x.shape
        halved = (self.temporal_mask, height > 2, width > 2)
        return F.max_pool3d(
            x,
            kernel_size=[3 if half else 1 for half in halved],
            stride=[2 if half else 1 for half in halved],
            padding=[int(half) for half in halved],
        )

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "mixed":
            return x.sigmoid()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # sums of squares
        if self.activation == "channel":
            return wide * (wide.square().sum(1, keepdim=True) + _EPS**2).rsqrt()
        axes = (2, 3, 4) if self.temporal_mask else (3, 4)
        centred = wide - wide.mean(axes, keepdim=True)
        return (centred * (centred.square().mean(axes, keepdim=True) + _EPS).rsqrt()).sigmoid()


def depth_for(grid: int) -> int:
    """How often a grid is halved until it is about 7 wide, at least once: 56 -> 3, 28 -> 2, ..."""
    return max((grid // 7).bit_length() - 1, 1)


class _Unit(nn.Module):
    """A residual unit with norms first: 1x1x1 to a quarter of the width, k_t x 3 x 3, 1x1x1."""

    def __init__(self, channels: int, kernel_frames: int) -> None:
        super().__init__()
        width = max(channels // 4, 1)
        self.branch = nn.Sequential(
            *_norm_first(channels, width, (1, 1, 1)),
            *_norm_first(width, width, (kernel_frames, 3, 3)),
            *_norm_first(width, channels, (1, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


def _norm_first(channels: int, width: int, kernel: tuple[int, int, int]) -> list[nn.Module]:
    frames, height, side = (extent // 2 for extent in kernel)
    conv = Conv3d(channels, width, kernel, padding=(frames, height, side), bias=False)
    return [nn.BatchNorm3d(channels), nn.ReLU(inplace=True), conv]


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=False)
