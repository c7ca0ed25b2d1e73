import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from tests.reference.residual_attention import activated, mask_of_image
from videoattn.attention.blocks.residual_attention import ACTIVATIONS, ResidualMask, depth_for
from videoattn.attention.maps import GateMap
from videoattn.attention.record import record_attention
from videoattn.attention.systems import SYSTEMS
from videoattn.models.resnet3d import ResNet3d
from videoattn.models.tsn import TSN

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(mask: ResidualMask) -> ResidualMask:
    """Sets random weights and statistics, float64 and evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for tensor in [*mask.parameters(), *(b for b in mask.buffers() if b.is_floating_point())]:
        tensor.data = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.4
    for module in mask.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_var.abs_().add_(0.5)
    return mask.eval()


@every_activation
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    ("units", "upsample"), [(1, "resize"), (2, "resize"), (1, "deconvolution")]
)
def test_equals_the_image_module_on_each_frame(
    activation: str, depth: int, units: int, upsample: str
) -> None:
    options = {"depth": depth, "units": units, "activation": activation, "upsample": upsample}
    mask = trained(ResidualMask(8, **options))
    u, trunk = clip(2, 8, 3, 17, 20), clip(2, 8, 3, 17, 20, seed=1)
    out, gate = mask(u, trunk), mask.mask(u, trunk)
    for frame in range(3):
        image = mask_of_image(mask, u[:, :, frame], trunk[:, :, frame])
        expected = activated(activation, image)
        torch.testing.assert_close(gate[:, :, frame], expected, rtol=1e-9, atol=1e-11)
        expected = (1 + expected) * trunk[:, :, frame]
        torch.testing.assert_close(out[:, :, frame], expected, rtol=1e-9, atol=1e-11)


@every_activation
def test_gradients_equal_those_of_the_image_module(activation: str) -> None:
    mask = trained(ResidualMask(4, depth=2, activation=activation))
    u, trunk = clip(2, 4, 1, 9, 8).requires_grad_(), clip(2, 4, 1, 9, 8, seed=1).requires_grad_()
    image = activated(activation, mask_of_image(mask, u[:, :, 0], trunk[:, :, 0]))
    expected = ((1 + image) * trunk[:, :, 0]).unsqueeze(2)
    wanted_of, weight = [u, trunk, *mask.parameters()], clip(*expected.shape, seed=2)
    got, wanted = (
        torch.autograd.grad((y * weight).sum(), wanted_of) for y in (mask(u, trunk), expected)
    )
    for one, other in zip(got, wanted, strict=True):
        error = (one - other).abs().max() / other.abs().max().clamp(min=1.0)
        # The epsilon in the norm of "channel", and small deviations below "spatial"'s fraction.
        assert error < {"mixed": 1e-12, "channel": 1e-7, "spatial": 1e-10}[activation]


def test_deconvolution_starts_as_bilinear_interpolation() -> None:
    """Inside the frame, of a ramp; at other places the two differ by half a cell."""
    mask = ResidualMask(2, depth=1, upsample="deconvolution").double()
    ramp = torch.arange(8.0).double().expand(1, 2, 1, 8, 8)
    up = mask.resizes[0](ramp, torch.zeros(1, 2, 1, 16, 16))
    expected = torch.arange(15.0).double() / 2
    torch.testing.assert_close(up[0, 0, 0, 3, :15], expected)
    assert mask.resizes[0](ramp, ramp).shape == ramp.shape  # an axis that is not halved


@pytest.mark.parametrize(("depth", "shift"), [(1, 0.5), (2, 1.5), (3, 3.5)])
def test_pooling_and_resizing_moves_a_blob_to_the_lower_right(depth: int, shift: float) -> None:
    """By 1.5 cells at depth 2 and 3.5 at depth 3, averaged over places, as the docstring says."""
    found = []
    for place in range(28, 36):
        x = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
        x[..., place, place] = 1
        for _ in range(depth):
            x = F.max_pool2d(x, 3, 2, 1)
        x = F.interpolate(x, (64, 64), mode="bilinear", align_corners=False)[0, 0]
        found.append(float((x.sum(0) * torch.arange(64)).sum() / x.sum()) - place)
    assert sum(found) / 8 == pytest.approx(shift)


@pytest.mark.parametrize("temporal_kernel", [1, 3])
@pytest.mark.parametrize("temporal_mask", [False, True])
def test_frames_mix_only_with_temporal_kernel_or_temporal_mask(
    temporal_kernel: int, temporal_mask: bool
) -> None:
    mask = trained(
        ResidualMask(8, depth=1, temporal_kernel=temporal_kernel, temporal_mask=temporal_mask)
    )
    u, trunk = clip(1, 8, 6, 6, 6), clip(1, 8, 6, 6, 6, seed=1)
    other = u.clone()
    other[:, :, 2] += 1
    changed = (mask(u, trunk) != mask(other, trunk)).flatten(3).any(3).any(1)[0]
    assert changed[2]
    assert changed.sum() == 1 if not temporal_mask and temporal_kernel == 1 else changed.sum() > 1


@pytest.mark.parametrize("activation", ["mixed", "spatial"])
def test_output_is_the_trunk_plus_the_masked_trunk(activation: str) -> None:
    mask = trained(ResidualMask(8, depth=2, activation=activation))
    u, trunk = clip(2, 8, 2, 9, 9), clip(2, 8, 2, 9, 9, seed=1).relu()
    gate = mask.mask(u, trunk)
    assert 0 < float(gate.detach().min()) < float(gate.detach().max()) < 1
    out = mask(u, trunk)
    assert (out >= trunk).all()
    assert (out <= 2 * trunk).all()


def test_channel_activation_has_length_one_at_each_position() -> None:
    mask = trained(ResidualMask(8, depth=1, activation="channel"))
    gate = mask.mask(clip(2, 8, 2, 5, 5), clip(2, 8, 2, 5, 5, seed=1))
    torch.testing.assert_close(gate.norm(dim=1), torch.ones(2, 2, 5, 5).double())


@pytest.mark.parametrize("temporal_mask", [False, True])
def test_spatial_activation_normalizes_each_map(temporal_mask: bool) -> None:
    options = {"depth": 1, "activation": "spatial", "temporal_mask": temporal_mask}
    mask = trained(ResidualMask(4, **options))
    mask.out[-1].weight.data *= 100  # far above the epsilon
    logits = mask.mask(clip(2, 4, 4, 5, 5), clip(2, 4, 4, 5, 5, seed=1)).logit()
    axes = (2, 3, 4) if temporal_mask else (3, 4)
    torch.testing.assert_close(logits.mean(axes), torch.zeros_like(logits.mean(axes)))
    spread = logits.var(axes, correction=0)
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=1e-3, atol=1e-3)


@every_activation
@pytest.mark.parametrize("training", [True, False])
def test_identity_start_is_exactly_the_trunk(activation: str, training: bool) -> None:
    torch.manual_seed(0)
    mask = ResidualMask(32, depth=2, activation=activation, gate_start="identity").train(training)
    u, trunk = clip(2, 32, 2, 9, 8).float(), clip(2, 32, 2, 9, 8, seed=1).float()
    u.requires_grad_()
    trunk.requires_grad_()
    out = mask(u, trunk)
    assert torch.equal(out, trunk)
    weight = clip(*out.shape, seed=2).float()
    (out * weight).sum().backward()
    assert torch.equal(trunk.grad, weight)  # as without a mask
    moved = {name for name, p in mask.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"scale"}
    with torch.no_grad():
        mask.scale.fill_(0.1)
    mask.zero_grad()
    (mask(u, trunk) * weight).sum().backward()
    for name, p in mask.named_parameters():
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.any(), name


def test_half_start_lies_between_the_trunk_and_twice_the_trunk() -> None:
    torch.manual_seed(0)
    mask = ResidualMask(32, depth=2).train()
    u = torch.randn(2, 32, 2, 16, 16)
    gate = mask.mask(u, u)
    assert abs(float(gate.detach().mean()) - 0.5) < 0.1
    assert "scale" not in dict(mask.named_parameters())


@pytest.mark.parametrize(
    ("depth", "size", "sizes"),
    [
        (3, (56, 56), [(28, 28), (14, 14), (7, 7)]),
        (2, (28, 28), [(14, 14), (7, 7)]),
        (1, (14, 14), [(7, 7)]),
        (3, (33, 17), [(17, 9), (9, 5), (5, 3)]),
        (3, (9, 2), [(5, 2), (3, 2), (2, 2)]),  # at least 2
        (2, (1, 3), [(1, 2), (1, 2)]),
    ],
)
def test_levels_have_the_sizes_of_the_paper(depth: int, size: tuple, sizes: list) -> None:
    mask = ResidualMask(4, depth=depth).eval()
    captured = []
    for down in mask.down:
        down.register_forward_hook(lambda m, i, o: captured.append(tuple(o.shape[2:])))
    u = torch.randn(1, 4, 3, *size)
    assert mask(u, u).shape == u.shape
    assert captured == [(3, *level) for level in sizes]


def test_temporal_mask_also_halves_time() -> None:
    mask = ResidualMask(4, depth=2, temporal_mask=True).eval()
    captured = []
    for down in mask.down:
        down.register_forward_hook(lambda m, i, o: captured.append(tuple(o.shape[2:])))
    u = torch.randn(1, 4, 5, 9, 8)
    assert mask(u, u).shape == u.shape
    assert captured == [(3, 5, 4), (2, 3, 2)]


def test_number_of_units_per_level_matches_the_paper() -> None:
    """r per level down, r more at the deepest, one per skip connection, r per level up."""
    for depth, count in ((1, 2), (2, 2 + 1 + 2), (3, 3 + 1 + 2 + 2)):
        channels, quarter = 16, 4
        one = 2 * channels * quarter + 9 * quarter**2 + 2 * (channels + 2 * quarter)
        end = 2 * (channels**2 + 2 * channels)
        mask = ResidualMask(channels, depth=depth)
        assert sum(p.numel() for p in mask.parameters()) == count * one + end


def test_depth_follows_the_grid() -> None:
    assert [depth_for(grid) for grid in (56, 28, 14, 7, 4, 1, 112)] == [3, 2, 1, 1, 1, 1, 4]
    assert ResidualMask(4, grid=56).depth == 3
    assert ResidualMask(4).depth == 2
    assert ResidualMask(4, grid=56, depth=1).depth == 1


@pytest.mark.parametrize("kind", ["i3d", "tsn"])
def test_masks_surround_the_first_three_stages(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "i3d":
        model: nn.Module = ResNet3d("i3d", depth=18, num_classes=3, width=16)
    else:
        model = TSN(torchvision.models.resnet18(), num_classes=3)
    x, system = torch.randn(1, 3, 4, 64, 64), SYSTEMS["residual_attention"]
    model.eval()
    with torch.no_grad():
        before = model(x)
    keys = list(model.state_dict())
    make = partial(system.make, gate_start="identity")
    system.attach(model, model.info, make, (), "residual_attention")
    masks = {key: m.depth for key, m in model.named_modules() if isinstance(m, ResidualMask)}
    block = ".block" if kind == "tsn" else ""
    assert masks == {
        f"layer1.residual_attention{block}": 3,
        f"layer2.residual_attention{block}": 2,
        f"layer3.residual_attention{block}": 1,
    }
    assert [key for key in model.state_dict() if "residual_attention" not in key] == keys
    with torch.no_grad(), record_attention(model.eval()) as maps:
        assert torch.equal(model(x), before)
    assert list(maps) == [f"layer{n}.residual_attention" for n in (1, 2, 3)]
    for found in maps.values():
        assert not found.weights.any()
        assert found.identity_value == 0.0


def test_mask_of_the_first_stage_is_deeper() -> None:
    system = SYSTEMS["residual_attention"]
    model = ResNet3d("i3d", depth=18, num_classes=3, width=8)
    system.attach(model, model.info, system.make, ["layer1", "layer4"], "residual_attention")
    depths = [m.depth for m in model.modules() if isinstance(m, ResidualMask)]
    assert depths == [3, 1]


def test_several_masks_in_a_stage_split_its_blocks() -> None:
    """As in Attention-92: 1, 2 and 3 modules. A module's output is the next one's input."""
    system = SYSTEMS["residual_attention"]
    after = ["layer1", *["layer2"] * 2, *["layer3"] * 3]
    model = ResNet3d("c2d", depth=34, num_classes=3, width=8)
    keys = set(model.state_dict())
    system.attach(model, model.info, system.make, after, "residual_attention")
    assert keys < set(model.state_dict())
    names = [name for name, m in model.named_modules() if isinstance(m, ResidualMask)]
    assert names == [
        "layer1.residual_attention",
        *(f"layer2.residual_attention{end}" for end in ("", "2")),
        *(f"layer3.residual_attention{end}" for end in ("", "2", "3")),
    ]
    stage = model.double().eval().layer2
    assert list(dict(stage.named_children())) == [
        "0", "1", "residual_attention", "2", "3", "residual_attention2",
    ]  # fmt: skip
    x = clip(1, 8, 2, 12, 12)
    u = stage[0](x)
    masks = [stage.residual_attention, stage.residual_attention2]
    middle = masks[0](u, stage[1](u))
    expected = masks[1](middle, stage[4](stage[3](middle)))
    assert torch.equal(stage(x), expected)
    model = ResNet3d("c2d", depth=18, num_classes=3, width=8)
    with pytest.raises(ValueError, match=r"'layer2' has nothing to mask; need a stage of 3 or "):
        system.attach(model, model.info, system.make, ["layer2"] * 2, "residual_attention")


def test_recorded_mask_multiplies_the_trunk() -> None:
    for start in ("half", "identity"):
        mask = trained(ResidualMask(4, depth=1, gate_start=start))
        u, trunk = clip(2, 4, 3, 6, 6), clip(2, 4, 3, 6, 6, seed=1)
        found = mask.maps(u, trunk)[""]
        assert isinstance(found, GateMap)
        assert found.kind == "mask"
        torch.testing.assert_close((1 + found.weights) * trunk, mask(u, trunk))


@every_activation
def test_bfloat16_stays_near_float32(activation: str) -> None:
    torch.manual_seed(0)
    mask = ResidualMask(16, depth=2, activation=activation).train()
    u, trunk = torch.randn(2, 16, 4, 12, 12), torch.randn(2, 16, 4, 12, 12).relu()
    expected = mask(u, trunk)
    with torch.autocast("cpu", torch.bfloat16):
        got = mask(u, trunk)
    assert got.dtype == torch.float32  # the dtype of the trunk
    assert (got - expected).abs().max() < 2e-2 * expected.abs().max()
    got.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in mask.parameters())


def test_temporal_mask_rejects_short_clips() -> None:
    mask = ResidualMask(4, depth=2, temporal_mask=True).eval()
    short = torch.zeros(1, 4, 3, 8, 8)
    with pytest.raises(ValueError, match=r"depth=2 needs 4 frames .* got 3; use longer clips"):
        mask(short, short)
    long = torch.zeros(1, 4, 4, 8, 8)
    assert mask(long, long).shape == long.shape


def test_invalid_options_are_rejected() -> None:
    with pytest.raises(
        ValueError, match="activation: 'tanh' does not exist; choose from mixed, channel, spatia"
    ):
        ResidualMask(4, activation="tanh")
    with pytest.raises(
        ValueError, match="gate_start: 'zero' does not exist; choose from half, identity"
    ):
        ResidualMask(4, gate_start="zero")
    with pytest.raises(ValueError, match="depth and units: got 0 and 1; need at least 1"):
        ResidualMask(4, depth=0)
    with pytest.raises(ValueError, match="depth and units: got 2 and 0; need at least 1"):
        ResidualMask(4, depth=2, units=0)
    with pytest.raises(ValueError, match=r"gate_start='identity' makes M zero, so M · F is zero;"):
        ResidualMask(4, gate_start="identity", residual=False)
    with pytest.raises(ValueError, match="upsample='deconvolution' keeps time; set temporal_mask"):
        ResidualMask(4, upsample="deconvolution", temporal_mask=True)
    with pytest.raises(ValueError, match="upsample: 'bilinear' does not exist; choose from resiz"):
        ResidualMask(4, upsample="bilinear")
    with pytest.raises(ValueError, match="temporal_kernel: got 2; choose 1 or 3"):
        ResidualMask(4, temporal_kernel=2)


WHOLE = """
import torch
from videoattn.attention.blocks.residual_attention import ResidualMask
torch.manual_seed(0)
for options in ({}, {"temporal_mask": True, "activation": "spatial", "gate_start": "identity"}):
    mask = ResidualMask(8, depth=2, temporal_kernel=3, **options).eval()
    args = (torch.randn(2, 8, 5, 9, 10), torch.randn(2, 8, 5, 9, 10))
    expected = mask(*args)
    exported = torch.export.export(mask, args).module()(*args)
    assert torch.allclose(exported, expected, atol=1e-5), "export"
    compiled = torch.compile(mask, fullgraph=True, backend="aot_eager")(*args)
    assert torch.allclose(compiled, expected, atol=1e-5), "compile"
"""


def test_block_compiles_and_exports() -> None:
    done = subprocess.run([sys.executable, "-c", WHOLE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
