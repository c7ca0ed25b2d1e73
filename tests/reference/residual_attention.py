"""The paper's mask branch on images, read off the authors' network definition level by level.

Explicit 2-D operations with the weights of a `ResidualMask`, in evaluation mode.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.attention.blocks.residual_attention import ResidualMask


def norm_relu_conv(layers: list[nn.Module], x: Tensor) -> Tensor:
    norm, _, conv = layers
    mean, var = norm.running_mean.view(-1, 1, 1), norm.running_var.view(-1, 1, 1)
    x = (x - mean) / (var + norm.eps).sqrt()
    x = (x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).clamp(min=0)
    weight = conv.weight[:, :, 0]
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def unit(layers: nn.Module, x: Tensor) -> Tensor:
    branch = list(layers.branch)
    y = norm_relu_conv(branch[0:3], x)
    y = norm_relu_conv(branch[3:6], y)
    return x + norm_relu_conv(branch[6:9], y)


def units(layers: nn.Module, x: Tensor) -> Tensor:
    for one in layers:
        x = unit(one, x)
    return x


def pool(x: Tensor) -> Tensor:
    """Caffe's 3x3 of stride 2 without padding, ceil mode, has as many cells. Its windows lie one
    cell to the lower right of these."""
    return F.max_pool2d(x, 3, 2, 1)


def up(mask: ResidualMask, number: int, x: Tensor, like: Tensor) -> Tensor:
    """Resizes images bilinearly, or by the transposed convolution of this number."""
    size = like.shape[-2:]
    kernel = getattr(mask.resizes[number], "weight", None)
    if kernel is None:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    out = x.new_zeros(*x.shape[:2], *size)
    for i, j, a, b in np.ndindex(*x.shape[2:], 3, 3):
        row, column = 2 * i + a - 1, 2 * j + b - 1
        if 0 <= row < size[0] and 0 <= column < size[1]:
            spread = x[..., i, j] * kernel[:, 0, 0, a, b]
            out[..., row, column] = out[..., row, column] + spread
    return out


def last(mask: ResidualMask, x: Tensor) -> Tensor:
    layers = list(mask.out)
    return norm_relu_conv(layers[3:6], norm_relu_conv(layers[0:3], x))


def mask_of_image(mask: ResidualMask, u: Tensor, trunk: Tensor) -> Tensor:
    """Returns the input of the sigmoid for images (N, C, H, W), at the three published depths."""
    one = units(mask.down[0], pool(u))
    if mask.depth == 1:  # stage 3
        return last(mask, up(mask, 0, units(mask.bottom, one), trunk))
    two = units(mask.down[1], pool(one))
    if mask.depth == 2:  # stage 2
        y = up(mask, 1, units(mask.bottom, two), one) + units(mask.skips[0], one)
        return last(mask, up(mask, 0, units(mask.up[0], y), trunk))
    three = units(mask.down[2], pool(two))  # stage 1
    y = up(mask, 1, units(mask.bottom, three), two) + units(mask.skips[1], two)
    y = units(mask.up[1], y)
    y = up(mask, 2, y, one) + units(mask.skips[0], one)
    return last(mask, up(mask, 0, units(mask.up[0], y), trunk))


def activated(activation: str, x: Tensor) -> Tensor:
    """The three activations, for images."""
    if activation == "mixed":
        return 1 / (1 + (-x).exp())
    if activation == "channel":
        return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
    centred = x - x.mean((2, 3), keepdim=True)
    deviation = (x.var((2, 3), keepdim=True, correction=0) + 1e-6).sqrt()
    return 1 / (1 + (-centred / deviation).exp())
