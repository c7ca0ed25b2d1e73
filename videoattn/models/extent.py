"""Measures the receptive field of a layer: how much of a clip one of its positions depends on."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from videoattn.attention.capture import capture
from videoattn.models import as_video, info
from videoattn.types import Grid


@torch.no_grad()
def receptive_field(model: nn.Module, clip: Grid, layer: str) -> Grid:
    """Returns how many frames, rows and columns of a clip a position of a layer can depend on.

    Each number counts the planes of pixels from the first to the last that changes the position,
    for the position where it is largest. A copy of the network with positive weights runs on clips
    that are zero except in one plane, so the result depends on the structure alone.

    Args:
        model: The network. A position that attends to all others depends on the whole clip.
        clip: T, H and W of the network's input.
        layer: The dotted name of a module.
    """
    structure = info(model)
    model = _positive(model)
    extents = []
    for axis, size in enumerate(clip, start=2):
        x = torch.zeros(size, 3, *clip, dtype=torch.float64)
        for plane in range(size):
            x[plane].select(axis - 1, plane).fill_(1)
        x = x if structure.axes == "NCTHW" else x.transpose(1, 2)
        with capture(model, [layer], stop=True) as outputs:
            model(x)
        reached = as_video(outputs[layer], structure, x) > 0
        extents.append(_longest(reached.any(tuple({1, 2, 3, 4} - {axis}))))
    return extents[0], extents[1], extents[2]


def _positive(model: nn.Module) -> nn.Module:
    """Returns a float64 copy with positive weights, zero biases and batch norms that do nothing."""
    model = copy.deepcopy(model).double().eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
    for name, parameter in model.named_parameters():
        is_bias = name.rpartition(".")[2] == "bias"
        parameter.fill_(0.0 if is_bias else 1 / max(parameter[0].numel(), 1))
    return model


def _longest(reached: Tensor) -> int:
    """Returns the largest extent, over positions, of the planes in a table (planes, positions)."""
    size = len(reached)
    planes = torch.arange(size)[:, None]
    first = torch.where(reached, planes, size).amin(0)
    last = torch.where(reached, planes, -1).amax(0)
    return int((last - first + 1).max())
