"""Parity with recorded outputs of the authors' CBAM and of timm's squeeze-and-excitation."""

import re

import pytest
import torch
from torch import Tensor, nn

from tests.reference import fill
from videoattn.attention.blocks.cbam import CBAM
from videoattn.attention.blocks.squeeze_excite import SqueezeExcite

KEYS = {
    r"^ChannelGate\.mlp\.1\.": "gates.channel.mlp.fc1.",
    r"^ChannelGate\.mlp\.3\.": "gates.channel.mlp.fc2.",
    r"^SpatialGate\.spatial\.": "gates.spatial.",
    r"^fc(?=[12]\.)": "excite.fc",
}


def _cbam(options: dict[str, int], scope: str) -> nn.Module:
    reduction = options["reduction_ratio"]
    gates = ["channel", "spatial"]
    return CBAM(options["gate_channels"], reduction=reduction, gates=gates, scope=scope)


def _squeeze_excite(options: dict[str, int], scope: str) -> nn.Module:
    return SqueezeExcite(options["channels"], reduction=options["reduction"], scope=scope)


BLOCKS = {"jongchan_cbam2d": _cbam, "timm_se": _squeeze_excite}


def _our_state(block: nn.Module, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reshapes their 2-D kernels and linear layers to 3-D kernels with axes of size 1."""
    shapes = {key: value.shape for key, value in block.state_dict().items()}
    ours = {}
    for key, value in theirs.items():
        for pattern, replacement in KEYS.items():
            key = re.sub(pattern, replacement, key)
        ours[key] = value.reshape(shapes[key])
    return ours


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("layout", ["one frame a clip", "frames of one clip"])
def test_block_reproduces_the_outputs_of_the_public_code(name: str, layout: str) -> None:
    record = fill.read("blocks", name)
    by_frame = layout == "frames of one clip"
    block = BLOCKS[name](record["options"], "frame" if by_frame else "clip").eval()
    block.load_state_dict(
        _our_state(block, fill.state_dict(record))
    )  # strict, so every key matches
    images = fill.clip(record)
    x = images.transpose(0, 1)[None] if by_frame else images[:, :, None]
    with torch.no_grad():
        y = block(x)
    y = y[0].transpose(0, 1) if by_frame else y[:, :, 0]
    assert list(y.shape) == record["output_shape"]
    expected = torch.tensor(record["output"])
    error = (y.flatten()[: len(expected)] - expected).abs().max() / record["output_std"]
    assert error < 1e-5
    assert y.mean().item() == pytest.approx(record["output_mean"], abs=1e-5)
    assert y.std(correction=0).item() == pytest.approx(record["output_std"], rel=1e-5)
