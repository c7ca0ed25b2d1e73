"""Default positions: those of the papers, where the paper has some."""

import pytest
import torchvision
from torch import nn

from videoattn.attention.attach import stage_outputs, temporal_outputs
from videoattn.attention.systems import SYSTEMS
from videoattn.models.i3d import InceptionI3d
from videoattn.models.resnet3d import ResNet3d
from videoattn.models.tsn import TSN
from videoattn.types import ModelInfo


def gates(model: nn.Module) -> list[str]:
    system = SYSTEMS["self_gating"]
    model = system.attach(model, model.info, system.make, (), "self_gating")
    return [
        name.removesuffix(".block").removesuffix(".self_gating")
        for name, module in model.named_modules()
        if name.removesuffix(".block").endswith("self_gating") and hasattr(module, "excite")
    ]


def test_self_gating_follows_the_temporal_convolutions() -> None:
    model = ResNet3d("i3d", depth=18, num_classes=3, width=8)
    convolutions = [
        name for name, m in model.named_modules()
        if isinstance(m, nn.Conv3d) and m.kernel_size[0] > 1 and name != "conv1"
    ]  # fmt: skip
    assert len(convolutions) == 5  # 2 in layer1, and one in each other stage
    assert gates(model) == [name.replace("conv1", "bn1") for name in convolutions]
    deep = ResNet3d("slow", depth=50, num_classes=3, width=8)
    assert gates(deep) == [f"layer3.{n}.bn1" for n in range(6)] + [
        f"layer4.{n}.bn1" for n in range(3)
    ]
    inception = gates(InceptionI3d(num_classes=3, width=0.125))
    assert inception[:2] == ["Mixed_3b.b1b", "Mixed_3b.b2b"]
    assert len(inception) == 18


def test_networks_without_temporal_convolutions_have_gates_at_residual_ends() -> None:
    model = TSN(torchvision.models.resnet18(), num_classes=3)
    assert temporal_outputs(model, model.info) == []
    assert gates(model) == [f"layer{s}.{b}.bn2" for s in (1, 2, 3, 4) for b in (0, 1)]


def test_networks_without_stages_have_no_default_positions() -> None:
    with pytest.raises(ValueError, match="after: Linear does not have the four stages of a ResNet"):
        stage_outputs(nn.Linear(1, 1), ModelInfo(""), 1)
