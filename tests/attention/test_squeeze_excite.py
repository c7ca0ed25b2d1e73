import math
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.reference.blocks import assert_equal
from tests.reference.gates import STARTS, clip, fill, mlp, permuted
from videoattn.attention.blocks.gates import hidden_channels
from videoattn.attention.blocks.squeeze_excite import SqueezeExcite
from videoattn.attention.record import record_attention
from videoattn.attention.systems import SYSTEMS
from videoattn.models.resnet3d import ResNet3d

every_scope = pytest.mark.parametrize("scope", ["clip", "frame"])
every_start = pytest.mark.parametrize("gate_start", ["half", "identity"])
KINDS = {
    "squeeze_excite": partial(SqueezeExcite, reduction=2),
    "self_gating": partial(SqueezeExcite, reduction=None),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def gates(block: SqueezeExcite, x: Tensor) -> Tensor:
    return block.maps(x)[""].weights


@every_kind
@every_start
@pytest.mark.parametrize("add_maxpool", [False, True])
def test_equals_the_definition(kind: str, gate_start: str, add_maxpool: bool) -> None:
    block = fill(KINDS[kind](4, gate_start=gate_start, add_maxpool=add_maxpool))

    def formula(block: SqueezeExcite, x: Tensor) -> Tensor:
        return torch.stack([gated(one) for one in x])

    def gated(x: Tensor) -> Tensor:
        s = torch.stack([channel.sum() / channel.numel() for channel in x])
        if add_maxpool:
            s = (s + torch.stack([channel.max() for channel in x])) / 2
        if kind == "self_gating":
            logits = block.excite.weight.flatten(1) @ s + block.excite.bias
        else:
            logits = mlp(block.excite, s)
        return torch.stack([x[c] * STARTS[gate_start](logits[c]) for c in range(4)])

    assert_equal(block, formula, [clip(2, 4, 3, 5, 4)])


@every_kind
@every_scope
def test_gates_lie_between_0_and_1_and_multiply_the_clip(kind: str, scope: str) -> None:
    block = fill(KINDS[kind](4, scope=scope))
    x = clip(2, 4, 3, 5, 4)
    weights = gates(block, x)
    assert weights.shape == ((2, 4, 3) if scope == "frame" else (2, 4))
    assert weights.min() > 0
    assert weights.max() < 1
    factor = weights[..., None, None] if scope == "frame" else weights[..., None, None, None]
    assert torch.equal(block(x), x * factor)


@every_kind
def test_gates_ignore_positions(kind: str) -> None:
    x = clip(2, 4, 3, 5, 4)
    block = fill(KINDS[kind](4))
    torch.testing.assert_close(gates(block, permuted(x)), gates(block, x))
    block = fill(KINDS[kind](4, scope="frame"))
    torch.testing.assert_close(gates(block, permuted(x, (3, 4))), gates(block, x))
    assert not torch.allclose(gates(block, permuted(x)), gates(block, x))


def test_zero_last_layer_halves_exactly_and_a_large_bias_gives_the_identity() -> None:
    x = clip(2, 4, 3, 5, 4).float()
    block = SqueezeExcite(4, reduction=2)
    torch.nn.init.zeros_(block.excite.fc2.weight)
    assert torch.equal(block(x), 0.5 * x)
    torch.nn.init.constant_(block.excite.fc2.bias, 40.0)
    assert torch.equal(block(x), x)  # in float32, sigmoid(40) is 1


@every_kind
@every_scope
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_identity_start_is_exactly_the_identity(kind: str, scope: str, dtype: torch.dtype) -> None:
    block = KINDS[kind](4, scope=scope, gate_start="identity").to(dtype)
    x = clip(2, 4, 3, 5, 4).to(dtype)
    assert torch.equal(block(x), x)
    assert torch.equal(gates(block, x), torch.ones_like(gates(block, x)))


@every_kind
def test_frame_scope_is_one_2d_block_for_each_frame(kind: str) -> None:
    by_clip, by_frame = fill(KINDS[kind](4)), fill(KINDS[kind](4, scope="frame"))
    x = clip(2, 4, 3, 5, 4)
    apart = torch.cat([by_clip(x[:, :, t : t + 1]) for t in range(3)], dim=2)
    torch.testing.assert_close(by_frame(x), apart, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(by_clip(x), apart)


@pytest.mark.parametrize(
    ("channels", "reduction", "divisor", "hidden"),
    # timm rounds halves up and to the divisor at least.
    [(64, 16, 1, 4), (32, 16, 8, 8), (64, 16, 8, 8), (192, 16, 8, 16), (320, 16, 8, 24)],
)
def test_hidden_width(channels: int, reduction: int, divisor: int, hidden: int) -> None:
    assert hidden_channels(channels, reduction, divisor) == hidden
    block = SqueezeExcite(channels, reduction=reduction, divisor=divisor)
    count = sum(p.numel() for p in block.parameters())
    assert count == 2 * channels * hidden + hidden + channels
    assert sum(p.numel() for p in SqueezeExcite(channels, reduction=None).parameters()) == (
        channels * channels + channels
    )


def test_biases_start_at_zero_and_can_be_left_out() -> None:
    for block in (SqueezeExcite(32), SqueezeExcite(32, reduction=None)):
        biases = [p for key, p in block.named_parameters() if key.endswith("bias")]
        assert biases
        assert not any(bias.any() for bias in biases)
    for reduction in (16, None):
        block = SqueezeExcite(32, reduction=reduction, bias=False)
        assert not [key for key, _ in block.named_parameters() if key.endswith("bias")]
        assert block(clip(1, 32, 2, 2, 2).float()).shape == (1, 32, 2, 2, 2)


def test_squeeze_excite_adds_251_million_weights_to_r50() -> None:
    model = ResNet3d("i3d", depth=50, num_classes=3)
    system = SYSTEMS["squeeze_excite"]
    before = {key for key, _ in model.named_parameters()}
    with torch.device("meta"):
        system.attach(model, model.info, system.make, (), "squeeze_excite")
    added = {key: p for key, p in model.named_parameters() if key not in before}
    blocks = {256: 3, 512: 4, 1024: 6, 2048: 3}  # channels: blocks
    weights = sum(p.numel() for key, p in added.items() if key.endswith("weight"))
    assert weights == sum(n * 2 * c * c // 16 for c, n in blocks.items()) == 2_514_944
    biases = sum(n * (c + c // 16) for c, n in blocks.items())
    assert sum(p.numel() for p in added.values()) == weights + biases == 2_530_992


def test_mean_does_not_overflow_float16() -> None:
    block = SqueezeExcite(2, reduction=None).half()
    x = torch.full((1, 2, 8, 32, 32), 60.0, dtype=torch.float16)  # 8192 of them: 491,520
    y = block(x)
    assert y.dtype == torch.float16
    assert y.isfinite().all()
    gate = torch.sigmoid(block.excite.weight.flatten(1).float().sum(1) * 60)
    assert (y[0, :, 0, 0, 0].float() - 60 * gate).abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_input_dtype(dtype: torch.dtype) -> None:
    block = SqueezeExcite(4, reduction=2)
    x = clip(2, 4, 3, 5, 4)
    exact = block.double()(x)
    block.float()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x.to(dtype))
    assert y.dtype == dtype
    assert (y.double() - exact).abs().max() / exact.abs().max() < 2e-2


@every_kind
def test_gradients_by_finite_differences(kind: str) -> None:
    block = fill(KINDS[kind](4, add_maxpool=True))
    x = clip(1, 4, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(block, (x,))


@every_scope
def test_recorded_maps_are_gates_with_identity_value_1(scope: str) -> None:
    model = ResNet3d("i3d", depth=18, num_classes=3, width=16).eval()
    system = SYSTEMS["squeeze_excite"]
    system.attach(
        model, model.info, partial(system.make, scope=scope), ["layer2.0"], "squeeze_excite"
    )
    with torch.no_grad(), record_attention(model) as maps:
        model(clip(2, 3, 4, 32, 32).float())  # layer2 has half the frames
    assert list(maps) == ["layer2.0.bn2.squeeze_excite"]
    found = maps["layer2.0.bn2.squeeze_excite"]
    assert found.kind == "channel"
    assert found.identity_value == 1.0
    assert found.weights.shape == ((2, 32, 2) if scope == "frame" else (2, 32))
    assert math.isclose(float(found.weights.mean()), 0.5, abs_tol=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "video"}, "scope: 'video' does not exist; choose from clip, frame"),
        ({"gate_start": "one"}, "gate_start: 'one' does not exist; choose from half, identity"),
        (
            {"reduction": 16},
            "24 channels are not divisible by reduction=16; choose a divisor of 24, such as 8",
        ),
        ({"reduction": 0}, "reduction and divisor: got 0 and"),
        ({"reduction": 4, "divisor": 0}, "got 4 and 0; need at least 1"),
        ({"reduction": None, "divisor": 8}, "divisor=8 rounds C/reduction, which does not"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SqueezeExcite(24, **options)
