"""Temporal convolutions in bfloat16 on a CPU, and the bug that `layers.Conv3d` avoids."""

import pytest
import torch
import torchvision
from torch import nn

from videoattn.attention import NonLocal, insert_attention
from videoattn.layers import Conv3d
from videoattn.models.resnet3d import KERNELS, ResNet3d
from videoattn.models.structure import unsafe_convolutions
from videoattn.models.tsn import TSN


def poison(num_bytes: int = 1 << 26) -> None:
    """Fills freed memory with 1e4, so that a kernel that reads uninitialized memory is noticed."""
    for size in (1 << 12, 1 << 16, 1 << 20, num_bytes // 4):
        torch.full((size,), 1e4)


def weight_gradients(
    model: nn.Module, x: torch.Tensor, *, bfloat16: bool
) -> dict[str, torch.Tensor]:
    poison()
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        y = model(x)
    poison()
    (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("num_frames", range(1, 9))
@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 1), (3, 3, 3), (5, 7, 7)])
@pytest.mark.parametrize("channels", [3, 16])
def test_output_and_gradient_of_a_convolution(
    kernel: tuple[int, int, int], num_frames: int, channels: int
) -> None:
    torch.manual_seed(0)
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = Conv3d(channels, 32, kernel, padding=padding, bias=False)
    x = torch.randn(2, channels, num_frames, 8, 8).to(memory_format=torch.channels_last_3d)
    conv = conv.to(memory_format=torch.channels_last_3d)
    expected = weight_gradients(conv, x, bfloat16=False)["weight"]
    got = weight_gradients(conv, x, bfloat16=True)["weight"]
    poison()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert (y - conv(x)).abs().max() <= 2e-2 * conv(x).abs().max()
    assert (got - expected).abs().max() <= 2e-2 * expected.abs().max()


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 2), (2, 7), (3, 3), (4, 1)])
@pytest.mark.parametrize("kernel", [(1, 5, 5), (1, 7, 7), (3, 7, 7), (1, 9, 9)])
def test_maps_lower_than_the_padding(kernel: tuple[int, int, int], size: tuple[int, int]) -> None:
    """As in the spatial gate of CBAM (7x7, from 2 channels to 1) at the end of a network."""
    torch.manual_seed(0)
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = Conv3d(2, 1, kernel, padding=padding, bias=False)
    for num_frames in (1, 4):
        x = torch.randn(2, 2, num_frames, *size).to(memory_format=torch.channels_last_3d)
        expected = weight_gradients(conv, x, bfloat16=False)["weight"]
        got = weight_gradients(conv, x, bfloat16=True)["weight"]
        assert (got - expected).abs().max() <= 2e-2 * expected.abs().max()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        assert (y - conv(x)).abs().max() <= 2e-2 * conv(x).abs().max()


def backbones() -> dict[str, nn.Module]:
    made: dict[str, nn.Module] = {
        f"{kind}_r{depth}": ResNet3d(kind, depth=depth, num_classes=5, width=16, dropout=0.0)
        for kind in KERNELS
        for depth in (18, 50)
    }
    made["tsn_r18"] = TSN(torchvision.models.resnet18(), num_classes=5, dropout=0.0)
    return made


@pytest.mark.parametrize("name", list(backbones()))
def test_gradients_of_every_backbone(name: str) -> None:
    """T = 1..8. A deep network also rounds its activations, and gradients far from the loss drift
    with them. So each convolution is compared with float32 on the input and output gradient that
    it had in the bfloat16 pass."""
    torch.manual_seed(0)
    model = backbones()[name].eval()  # batch norm of few positions would amplify rounding
    insert_attention(model, NonLocal, ["layer2.1"])
    for num_frames in range(1, 9):
        x = torch.randn(2, 3, num_frames, 32, 32)
        for conv, inputs, output_gradient, got in recorded_convolutions(model, x):
            expected = reference_gradient(conv, inputs, output_gradient)
            assert (got - expected).abs().max() <= 2e-2 * expected.abs().max(), (name, num_frames)


def recorded_convolutions(model: nn.Module, x: torch.Tensor) -> list[tuple]:
    seen: dict[nn.Module, list[torch.Tensor]] = {}
    handles = []
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.Conv2d):

            def forward_hook(conv: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
                seen[conv] = [inputs[0].detach()]
                output.register_hook(lambda gradient: seen[conv].append(gradient.detach()))

            handles.append(module.register_forward_hook(forward_hook))
    weight_gradients(model, x, bfloat16=True)
    for handle in handles:
        handle.remove()
    return [
        (conv, inputs.float(), gradient.float(), conv.weight.grad.float())
        for conv, (inputs, gradient) in seen.items()
    ]


def reference_gradient(
    conv: nn.Conv3d | nn.Conv2d, x: torch.Tensor, output_gradient: torch.Tensor
) -> torch.Tensor:
    x, weight = x.bfloat16().float(), conv.weight.detach().bfloat16().float().requires_grad_()
    forward = nn.functional.conv3d if isinstance(conv, nn.Conv3d) else nn.functional.conv2d
    y = forward(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return torch.autograd.grad(y, weight, output_gradient)[0]


def test_padding_by_hand_is_the_same_function() -> None:
    conv = Conv3d(3, 4, (5, 3, 3), stride=(2, 1, 1), padding=(2, 1, 1))
    x = torch.randn(1, 3, 3, 6, 6).bfloat16()
    own, plain = conv.bfloat16()(x), nn.Conv3d.forward(conv, x)
    torch.testing.assert_close(own, plain, rtol=2e-2, atol=2e-2)


def test_unsafe_convolutions_of_other_libraries_are_named() -> None:
    model = torchvision.models.video.r3d_18()
    clip = torch.zeros(1, 3, 8, 32, 32)
    found = unsafe_convolutions(model, clip)
    assert "layer3.0.conv2.0" in found  # two frames are left there, under kernels of three
    assert "layer1.0.conv1.0" not in found
    assert model.training
    assert not unsafe_convolutions(ResNet3d("i3d", depth=18, num_classes=2, width=8), clip)
