"""A mask branch next to a trunk (Wang et al., Residual Attention Network for Image Classification,
CVPR 2017, arXiv 1704.06904).

    out = F + M(u) · F          attention residual learning, the paper's equation 3
    out = M(u) · F              naive attention learning, what the paper compares it with

u is the input of the trunk, F its output, and M a small encoder and decoder that computes a value
for every channel and position of F from u. As in the authors' network definition, M consists of

- D levels down, each with a max pool of size 3 and stride 2 and r residual units;
- r more units at the deepest level;
- D - 1 levels up, each resized to the level above, plus the features of that level through one
  unit, followed by r units;
- a resize to the size of F, two times {norm, ReLU, 1x1x1 convolution}, and an activation.

A unit is a pre-activation bottleneck with a quarter of the width. A well-known PyTorch port adds
three more skip connections; we do not.

| activation | M as a function of the last convolution's output x                         |
| mixed      | sigmoid(x)                                                                 |
| channel    | x / |x| with the norm over the channels of a position: in (-1, 1)          |
| spatial    | sigmoid((x - mean) / std) with mean and std of a channel's map in a frame  |

Masks surround the first three stages by default, at 56x56, 28x28 and 14x14 positions with D = 3, 2
and 1, as in Attention-56. Attention-92 has 1, 2 and 3 modules in them:
`after=[layer1, layer2, layer2, layer3, layer3, layer3]`.

Where we differ: the paper builds whole networks from such modules. Here the trunk is an existing
stage, so a pretrained backbone can have masks. By default each frame has its own mask, which is the
2-D module per frame; `temporal_kernel` and `temporal_mask` mix frames.

Resizing uses align_corners=False. The authors' pools have no padding and a rounded-up size, ours
have padding 1: the number of cells is equal, and the windows lie one cell apart (8 cells are pooled
to windows centered on 0, 2, 4, 6 here, on 1, 3, 5, 7 there). On average, a pooled and resized blob
moves by 1.5 cells to the lower right at depth 2, and by 3.5 at depth 3, before learned convolutions
correct it; with the authors' windows and aligned corners it moves about as far to the upper left.
Neither is centered.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.attention.blocks.gates import STARTS
from videoattn.attention.functional import widen
from videoattn.attention.maps import GateMap
from videoattn.errors import one_of
from videoattn.layers import Conv3d
from videoattn.types import Video

ACTIVATIONS = ("mixed", "channel", "spatial")
_EPS = 1e-6


class ResidualMask(nn.Module):
    """The mask branch of a stage: forward(u, trunk) returns out, all (N, C, T, H, W).

    Args:
        depth: D, the number of times the mask halves the grid. Default: `depth_for(grid)`. A level
            does not halve a height or width of 2 or less.
        grid: Height and width of the stage's features for an input of 224 x 224.
        units: r, the number of residual units per level.
        activation: A name from the table above.
        residual: Return out = F + M · F (the paper); otherwise M · F.
        upsample: "resize" (the paper) or "deconvolution": a learned transposed convolution of 3x3
            and stride 2 for each channel, which starts as bilinear interpolation.
        temporal_kernel: Number of frames, 1 or 3, of the 3x3 convolutions in the units.
        temporal_mask: Also pool and resize time. This needs 2^depth frames or more, and the
            "spatial" activation then uses the mean and std over all frames.
        gate_start: "half" (the paper) starts near out = 1.5·F. "identity" multiplies M by a learned
            scalar that starts at 0, so out = F exactly, which suits a trained backbone; the weights
            of the mask get no gradient until the scalar is nonzero. Requires `residual`.

    Raises:
        ValueError: If an option is invalid; on forward, if clips are too short for `temporal_mask`.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: int | None = None,
        grid: int = 28,
        units: int = 1,
        activation: str = "mixed",
        residual: bool = True,
        upsample: str = "resize",
        temporal_kernel: int = 1,
        temporal_mask: bool = False,
        gate_start: str = "half",
    ) -> None:
        super().__init__()
        one_of("gate_start", gate_start, STARTS)
        one_of("upsample", upsample, ("resize", "deconvolution"))
        if gate_start == "identity" and not residual:
            raise ValueError("gate_start='identity' makes M zero, so M · F is zero; set residual")
        if upsample == "deconvolution" and temporal_mask:
            raise ValueError("upsample='deconvolution' keeps time; set temporal_mask=False")
        if depth is None:
            depth = depth_for(grid)
        if depth < 1 or units < 1:
            raise ValueError(f"depth and units: got {depth} and {units}; need at least 1 each")
        if temporal_kernel not in (1, 3):
            raise ValueError(f"temporal_kernel: got {temporal_kernel}; choose 1 or 3")
        self.depth = depth
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.temporal_mask = temporal_mask
        self.residual = residual

        def run(count: int) -> nn.Sequential:
            return nn.Sequential(*(_Unit(channels, temporal_kernel) for _ in range(count)))

        self.down = nn.ModuleList(run(units) for _ in range(depth))
        self.bottom = run(units)
        # For levels 1 to D - 1; nothing is resized to the deepest level.
        self.skips = nn.ModuleList(run(1) for _ in range(depth - 1))
        self.up = nn.ModuleList(run(units) for _ in range(depth - 1))
        last = [_norm_first(channels, channels, (1, 1, 1)) for _ in range(2)]
        self.out = nn.Sequential(*last[0], *last[1])
        self.scale = nn.Parameter(torch.zeros(())) if gate_start == "identity" else None
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.resizes = nn.ModuleList(
            _Deconvolution(channels) if upsample == "deconvolution" else _Resize()
            for _ in range(depth)
        )

    def forward(self, u: Video, trunk: Video) -> Video:
        masked = self.mask(u, trunk).to(trunk.dtype) * trunk
        return trunk + masked if self.residual else masked

    def mask(self, u: Video, trunk: Video) -> Video:
        """Returns M, including the learned scalar if there is one."""
        if self.temporal_mask and u.shape[2] < 2**self.depth:
            raise ValueError(
                f"temporal_mask=True with depth={self.depth} needs {2**self.depth} frames or more "
                f"at this stage, got {u.shape[2]}; use longer clips, lower depth, or set "
                "temporal_mask=False"
            )
        levels: list[Tensor] = []
        x = u
        for down in self.down:
            x = down(self._pool(x))
            levels.append(x)
        x = self.bottom(x)
        last, *resizes = self.resizes
        for level, skip, up, resize in zip(
            reversed(levels[:-1]), reversed(self.skips), reversed(self.up), resizes, strict=True
        ):
            x = up(resize(x, level) + skip(level))
        mask = self._activate(self.out(last(x, trunk)))
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
        wide = widen(x)
        if self.activation == "channel":
            return wide * (wide.square().sum(1, keepdim=True) + _EPS**2).rsqrt()
        axes = (2, 3, 4) if self.temporal_mask else (3, 4)
        centered = wide - wide.mean(axes, keepdim=True)
        return (centered * (centered.square().mean(axes, keepdim=True) + _EPS).rsqrt()).sigmoid()


def depth_for(grid: int) -> int:
    """Returns how many halvings reduce a grid to about 7: 56 -> 3, 28 -> 2, 14 or less -> 1."""
    return max((grid // 7).bit_length() - 1, 1)


class _Unit(nn.Module):
    """A pre-activation bottleneck: 1x1x1 to a quarter of the width, k_t x 3 x 3, 1x1x1."""

    def __init__(self, channels: int, kernel_frames: int) -> None:
        super().__init__()
        width = max(channels // 4, 1)
        self.branch = nn.Sequential(
            *_norm_first(channels, width, (1, 1, 1)),
            *_norm_first(width, width, (kernel_frames, 3, 3)),
            *_norm_first(width, channels, (1, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _norm_first(channels: int, width: int, kernel: tuple[int, int, int]) -> list[nn.Module]:
    frames, height, side = (extent // 2 for extent in kernel)
    conv = Conv3d(channels, width, kernel, padding=(frames, height, side), bias=False)
    return [nn.BatchNorm3d(channels), nn.ReLU(inplace=True), conv]


class _Resize(nn.Module):
    """Resizes x to the grid of another feature map."""

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        if x.shape[2:] == like.shape[2:]:
            return x
        return F.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=False)


class _Deconvolution(nn.Module):
    """A transposed convolution for each channel, to a grid of up to twice the height and width.
    Cell i of the result lies between cells ⌊i/2⌋ and ⌈i/2⌉ of x, as in pools with padding 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        bilinear = torch.tensor([0.5, 1.0, 0.5])
        kernel = bilinear[:, None] * bilinear
        self.weight = nn.Parameter(kernel.expand(channels, 1, 1, 3, 3).clone())

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        doubled = [new > old for old, new in zip(x.shape[-2:], like.shape[-2:], strict=True)]
        weight: Tensor = self.weight
        for axis, grows in zip((3, 4), doubled, strict=True):
            weight = weight if grows else weight.narrow(axis, 1, 1)
        stride = [1, *(2 if grows else 1 for grows in doubled)]
        sizes = zip(x.shape[2:], like.shape[2:], stride, strict=True)
        return F.conv_transpose3d(
            x,
            weight,
            stride=stride,
            padding=[0, *map(int, doubled)],
            output_padding=[new - (old - 1) * step - 1 for old, new, step in sizes],
            groups=x.shape[1],
        )


class MaskedStage(nn.Sequential):
    """A stage whose blocks after the first are the trunk F of a mask branch M.

    u = first(x), out = mask(u, F(u)). With several masks the blocks after the first are split into
    as many trunks, and the output of a mask is the u of the next. Children that are added later run
    after the masks. The blocks keep their names, so the keys of the state dict do not change.
    Blocks that read the output of the stage read the output of the last mask.
    """

    runs_last_child = True

    def __init__(self, stage: nn.Sequential, masks: Sequence[nn.Module], name: str) -> None:
        super().__init__()
        (first_name, first), *trunk = stage.named_children()
        self.add_module(first_name, first)
        self._mask_names = [name, *(f"{name}{n}" for n in range(2, len(masks) + 1))]
        for index, (mask_name, mask) in enumerate(zip(self._mask_names, masks, strict=True)):
            start, end = (len(trunk) * n // len(masks) for n in (index, index + 1))
            for child_name, child in trunk[start:end]:
                self.add_module(child_name, child)
            self.add_module(mask_name, mask)
        for hook in stage._forward_hooks.values():
            self.register_forward_hook(hook)

    def forward(self, x: Tensor) -> Tensor:
        (_, first), *children = self.named_children()
        x = u = first(x)
        for name, child in children:
            if name in self._mask_names:
                x = u = child(u, x)
            else:
                x = child(x)
        return x
