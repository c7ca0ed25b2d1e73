"""Inception-I3D as two public projects compute it, from their state dicts alone.

Both pad with zeros before each layer. piergiaj's pads depend on the size: what ceil(size / stride)
windows lack, half in front. hassony2's do not, but for the stem's frames: kernel - stride, half in
front, and its pools then round up, which lets the last window hang over the border.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
MIXED = {"3": "bc", "4": "bcdef", "5": "bc"}


def piergiaj(state: State, x: Tensor) -> Tensor:
    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv3d.weight"]
        x = F.conv3d(_padded(x, [weight.shape[-1]] * 3, [stride] * 3), weight, stride=stride)
        return _norm(state, f"{name}.bn", x)

    def pool(x: Tensor, kernel: list[int], stride: list[int]) -> Tensor:
        return F.max_pool3d(_padded(x, kernel, stride), kernel, stride)

    def mixed(name: str, x: Tensor) -> Tensor:
        b0, b1, b2 = (conv(f"{name}.{unit}", x) for unit in ("b0", "b1a", "b2a"))
        b3 = conv(f"{name}.b3b", pool(x, [3, 3, 3], [1, 1, 1]))
        return torch.cat([b0, conv(f"{name}.b1b", b1), conv(f"{name}.b2b", b2), b3], 1)

    return _network(x, conv, pool, mixed, "Conv3d", "Mixed", state, "logits")


def hassony2(state: State, x: Tensor) -> Tensor:
    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv3d.weight"]
        side = weight.shape[-1]
        front, back = _halves(side - stride)
        of_time = _halves(side - (x.shape[2] % stride or stride))
        x = F.conv3d(F.pad(x, (front, back) * 2 + of_time), weight, stride=stride)
        return _norm(state, f"{name}.batch3d", x)

    def pool(x: Tensor, kernel: list[int], stride: list[int]) -> Tensor:
        pads = [n for k, s in zip(kernel[::-1], stride[::-1], strict=True) for n in _halves(k - s)]
        return F.max_pool3d(F.pad(x, pads), kernel, stride, ceil_mode=True)

    def mixed(name: str, x: Tensor) -> Tensor:
        ends = [conv(f"{name}.branch_0", x)]
        for branch in ("branch_1", "branch_2"):
            ends.append(conv(f"{name}.{branch}.1", conv(f"{name}.{branch}.0", x)))
        ends.append(conv(f"{name}.branch_3.1", pool(x, [3, 3, 3], [1, 1, 1])))
        return torch.cat(ends, 1)

    return _network(x, conv, pool, mixed, "conv3d", "mixed", state, "conv3d_0c_1x1")


def _network(
    x: Tensor, conv: Callable, pool: Callable, mixed: Callable, stem: str, block: str,
    state: State, classifier: str,
) -> Tensor:  # fmt: skip
    x = pool(conv(f"{stem}_1a_7x7", x, stride=2), [1, 3, 3], [1, 2, 2])
    x = conv(f"{stem}_2c_3x3", conv(f"{stem}_2b_1x1", x))
    x = pool(x, [1, 3, 3], [1, 2, 2])
    for stage, letters in MIXED.items():
        if stage == "4":
            x = pool(x, [3, 3, 3], [2, 2, 2])
        if stage == "5":
            x = pool(x, [2, 2, 2], [2, 2, 2])
        for letter in letters:
            x = mixed(f"{block}_{stage}{letter}", x)
    # Theirs fail on less than (2, 7, 7); the window is then what there is.
    x = F.avg_pool3d(x, [min(2, x.shape[2]), min(7, x.shape[3]), min(7, x.shape[4])], stride=1)
    weight, bias = state[f"{classifier}.conv3d.weight"], state[f"{classifier}.conv3d.bias"]
    return F.conv3d(x, weight, bias).mean((2, 3, 4))  # logits of each window, then their mean


def _padded(x: Tensor, kernel: list[int], stride: list[int]) -> Tensor:
    pads: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        pads = [*_halves(total), *pads]  # F.pad begins with the last axis
    return F.pad(x, pads)


def _halves(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{end}"] for end in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, var, weight, bias, eps=1e-3).relu()
