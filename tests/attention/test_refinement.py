from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from tests.reference.blocks import assert_equal
from tests.reference.gates import STARTS, bn, clip, fill, permuted
from videoattn.attention.blocks.refinement import AttentionRefinement
from videoattn.attention.blocks.squeeze_excite import SqueezeExcite
from videoattn.attention.record import record_attention
from videoattn.attention.systems import SYSTEMS
from videoattn.models.resnet3d import ResNet3d
from videoattn.models.tsn import TSN
from videoattn.types import ModelInfo

every_norm = pytest.mark.parametrize("norm", ["bn", "ln", "none"])
every_scope = pytest.mark.parametrize("scope", ["clip", "frame"])


def gates(block: AttentionRefinement, x: Tensor) -> Tensor:
    return block.maps(x)[""].weights


@every_norm
@pytest.mark.parametrize("pre_conv", [False, True])
@pytest.mark.parametrize("gate_start", ["half", "identity"])
def test_equals_the_definition(norm: str, pre_conv: bool, gate_start: str) -> None:
    block = fill(AttentionRefinement(4, norm=norm, pre_conv=pre_conv, gate_start=gate_start))

    def formula(block: AttentionRefinement, x: Tensor) -> Tensor:
        f = x
        if pre_conv:
            kernel, own = block.conv.weight[:, :, 0], block.bn
            frames = [F.conv2d(x[:, :, t], kernel, padding=1) for t in range(3)]
            f = torch.stack(frames, dim=2)
            scale = (own.weight / torch.sqrt(own.running_var + own.eps)).view(-1, 1, 1, 1)
            f = (f - own.running_mean.view(-1, 1, 1, 1)) * scale + own.bias.view(-1, 1, 1, 1)
            f = f.clamp(min=0)
        return torch.stack([gated(one) for one in f])

    def gated(f: Tensor) -> Tensor:
        pooled = torch.stack([channel.sum() / channel.numel() for channel in f])
        logits = block.gate_conv.weight.flatten(1) @ pooled
        own = block.gate_norm
        if norm == "bn":
            logits = torch.stack([bn(own, z, c) for c, z in enumerate(logits)])
        if norm == "ln":
            spread = torch.sqrt(logits.var(unbiased=False) + own.eps)
            logits = (logits - logits.mean()) / spread * own.weight + own.bias
        return torch.stack([f[c] * STARTS[gate_start](logits[c]) for c in range(4)])

    assert_equal(block, formula, [clip(2, 4, 3, 5, 4)])


@every_norm
def test_frame_scope_is_one_2d_block_for_each_frame(norm: str) -> None:
    by_clip = fill(AttentionRefinement(4, norm=norm))
    by_frame = fill(AttentionRefinement(4, norm=norm, scope="frame"))
    x = clip(2, 4, 3, 5, 4)
    apart = torch.cat([by_clip(x[:, :, t : t + 1]) for t in range(3)], dim=2)
    torch.testing.assert_close(by_frame(x), apart, rtol=1e-12, atol=1e-14)
    assert gates(by_frame, x).shape == (2, 4, 3)
    assert gates(by_clip, x).shape == (2, 4)


@every_norm
def test_gates_lie_between_0_and_1_and_ignore_positions(norm: str) -> None:
    block = fill(AttentionRefinement(4, norm=norm))
    x = clip(2, 4, 3, 5, 4)
    weights = gates(block, x)
    assert weights.min() > 0
    assert weights.max() < 1
    torch.testing.assert_close(gates(block, permuted(x)), weights)
    assert torch.equal(block(x), x * weights[..., None, None, None])


@pytest.mark.parametrize("training", [True, False])
def test_zero_norm_halves_features_exactly(training: bool) -> None:
    block = AttentionRefinement(4, pre_conv=True).train(training)
    nn.init.zeros_(block.gate_norm.weight)
    x = clip(2, 4, 3, 5, 4).float()
    f = F.relu(block.bn(block.conv(x)))
    assert torch.equal(block(x), 0.5 * f)


def test_zero_weights_halve_x_exactly() -> None:
    x = clip(2, 4, 3, 5, 4).float()
    for norm in ("bn", "none"):
        block = AttentionRefinement(4, norm=norm)
        nn.init.zeros_(block.gate_conv.weight)
        assert torch.equal(block(x), 0.5 * x)


def test_without_a_norm_the_block_is_squeeze_excite_with_one_layer() -> None:
    block = fill(AttentionRefinement(4, norm="none"))
    twin = SqueezeExcite(4, reduction=None, bias=False).double()
    twin.load_state_dict({"excite.weight": block.gate_conv.weight})
    x = clip(2, 4, 3, 5, 4)
    assert torch.equal(block(x), twin(x))


@every_norm
@every_scope
@pytest.mark.parametrize("training", [True, False])
def test_identity_start_is_exactly_the_identity(norm: str, scope: str, training: bool) -> None:
    block = AttentionRefinement(4, norm=norm, scope=scope, gate_start="identity").train(training)
    x = clip(2, 4, 3, 5, 4).float()
    assert torch.equal(block(x), x)
    block = AttentionRefinement(4, norm=norm, scope=scope, gate_start="identity", pre_conv=True)
    block.train(training)
    assert torch.equal(block(x), F.relu(block.bn(block.conv(x))))  # the gates are 1


@every_norm
@pytest.mark.parametrize(("clips", "frames", "scope"), [(1, 4, "clip"), (1, 1, "frame")])
def test_training_on_one_clip_uses_running_statistics(
    norm: str, clips: int, frames: int, scope: str
) -> None:
    block = AttentionRefinement(4, norm=norm, scope=scope).double().train()
    state = {key: value.clone() for key, value in block.state_dict().items()}
    one = clip(clips, 4, frames, 5, 4)
    y = block(one)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    # The gate is not constant: with statistics of one value, every logit would be the norm's bias.
    assert gates(block, one).std() > 1e-3
    assert not torch.allclose(gates(block, one), gates(block, 2 * one)) or norm == "ln"
    assert all(torch.equal(state[key], value) for key, value in block.state_dict().items())
    assert torch.equal(y, block.eval()(one))


def test_training_on_two_clips_uses_and_updates_batch_statistics() -> None:
    block = AttentionRefinement(4).double().train()
    y = block(clip(2, 4, 3, 5, 4))
    assert int(block.gate_norm.num_batches_tracked) == 1
    assert not torch.allclose(y, block.eval()(clip(2, 4, 3, 5, 4)))


def test_maps_in_training_mode_do_not_update_statistics() -> None:
    block = AttentionRefinement(4, pre_conv=True).double().train()
    x = clip(2, 4, 3, 5, 4)
    state = {key: value.clone() for key, value in block.state_dict().items()}
    weights = gates(block, x)
    assert all(torch.equal(state[key], value) for key, value in block.state_dict().items())
    f = F.relu(block.bn(block.conv(x)))
    assert torch.equal(block(x), f * weights[..., None, None, None])


@pytest.mark.parametrize("out_channels", [None, 6])
def test_parameter_counts_and_width(out_channels: int | None) -> None:
    width = out_channels or 4
    block = AttentionRefinement(4, pre_conv=True, out_channels=out_channels)
    count = sum(p.numel() for p in block.parameters())
    assert count == width * width + 2 * width + 9 * 4 * width + 2 * width
    assert block(clip(2, 4, 3, 5, 4).float()).shape == (2, width, 3, 5, 4)
    assert sum(p.numel() for p in AttentionRefinement(4).parameters()) == 16 + 8


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_stays_close(norm: str, dtype: torch.dtype) -> None:
    block = fill(AttentionRefinement(8, norm=norm, pre_conv=True))
    x = clip(2, 8, 3, 6, 6)
    exact = block(x)
    block.float()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x.to(dtype))
    assert y.dtype == dtype
    assert (y.double() - exact).abs().max() / exact.abs().max() < 2e-2


@every_norm
@pytest.mark.parametrize("pre_conv", [False, True])
def test_gradients_by_finite_differences(norm: str, pre_conv: bool) -> None:
    block = fill(AttentionRefinement(4, norm=norm, pre_conv=pre_conv))
    assert torch.autograd.gradcheck(block, (clip(1, 4, 2, 3, 3).requires_grad_(),))


@pytest.mark.parametrize("kind", ["i3d", "tsn"])
def test_default_positions_are_after_the_last_two_stages(kind: str) -> None:
    model: nn.Module = ResNet3d("i3d", depth=18, num_classes=3, width=16)
    if kind == "tsn":
        model = TSN(torchvision.models.resnet18(), num_classes=3)
    system = SYSTEMS["refinement"]
    system.attach(model, model.info, partial(system.make, scope="frame"), (), "refinement")
    model.eval()
    with torch.no_grad(), record_attention(model) as maps:
        model(clip(2, 3, 4, 64, 64).float())
    assert list(maps) == ["layer3.1_refinement", "layer4.1_refinement"]
    for found in maps.values():
        assert found.kind == "channel"
        assert found.identity_value == 1.0
        assert found.weights.ndim == 3


def test_named_positions_replace_the_default() -> None:
    model = ResNet3d("i3d", depth=18, num_classes=3, width=16)
    system = SYSTEMS["refinement"]
    system.attach(
        model, model.info, partial(system.make, pre_conv=True), ["layer2.0"], "refinement"
    )
    assert isinstance(model.get_submodule("layer2.0_refinement"), AttentionRefinement)
    assert not isinstance(model.layer4[-1], AttentionRefinement)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "gn"}, "norm: 'gn' does not exist; choose from bn, ln, none"),
        ({"scope": "video"}, "scope: 'video' does not exist; choose from clip, frame"),
        ({"gate_start": "one"}, "gate_start: 'one' does not exist; choose from half, identity"),
        ({"out_channels": 8}, "out_channels=8 differs from the 4 input channels, which"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionRefinement(4, **options)


def test_model_without_four_stages_has_no_default_positions() -> None:
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv3d(3, 4, 1))))
    with pytest.raises(ValueError, match="does not have the four stages of a ResNet"):
        SYSTEMS["refinement"].attach(model, ModelInfo(""), AttentionRefinement, (), "refinement")
