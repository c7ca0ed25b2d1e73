"""Receptive fields, computed by hand from kernels and strides."""

import pytest
import torch
from torch import nn

from videoattn.models.extent import receptive_field
from videoattn.models.resnet3d import ResNet3d
from videoattn.types import ModelInfo


class Stack(nn.Module):
    """Two convolutions, and a pool between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(3, 4, (3, 5, 1), padding=(1, 2, 0))
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.second = nn.Conv3d(4, 2, 3, padding=1)
        self.info = ModelInfo("")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.pool(self.first(x)))


def test_kernels_and_strides() -> None:
    model = Stack()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert receptive_field(model, (12, 24, 24), "first") == (3, 5, 1)
    assert receptive_field(model, (12, 24, 24), "pool") == (3, 6, 2)
    # Rows: 6 of a pooled row, and 2 more for each of its two neighbors.
    assert receptive_field(model, (12, 24, 24), "second") == (5, 10, 6)
    assert receptive_field(model, (4, 8, 8), "second") == (4, 8, 6)  # the clip is smaller
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("kind", "frames"), [("c2d", 2), ("slow", 9), ("i3d", 22)])
def test_the_temporal_extent_of_networks(kind: str, frames: int) -> None:
    """C2D has a pool of two frames only. Slow has four convolutions of three frames. I3D has 5 in
    the stem and 3 in both blocks of layer1: 9 frames, 10 of a pooled one, and 2 more on each side
    for each of the three later convolutions: 10 + 3 * 4 = 22."""
    model = ResNet3d(kind, depth=18, num_classes=2, width=4)
    found = receptive_field(model, (24, 16, 16), "layer4")
    assert found[0] == frames
