from functools import partial
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from tests.reference.blocks import assert_equal
from tests.reference.gates import cbam, clip, fill, permuted
from videoattn.attention.blocks.cbam import CBAM, GATES
from videoattn.attention.blocks.gates import keep_statistics
from videoattn.attention.blocks.squeeze_excite import SqueezeExcite
from videoattn.attention.record import record_attention
from videoattn.attention.systems import SYSTEMS
from videoattn.models.resnet3d import ResNet3d
from videoattn.models.tsn import TSN

ORDERS = [order for count in (1, 2, 3) for order in permutations(GATES, count)]
every_order = pytest.mark.parametrize("gates", ORDERS, ids="-".join)
TEMPORAL = {"conv": {}, "channel": {}, "mlp": {"num_frames": 3}}
every_temporal = pytest.mark.parametrize("temporal", TEMPORAL)
Small = partial(CBAM, 4, reduction=2)


def trained(**options: object) -> CBAM:
    block = fill(Small(**options))
    assert isinstance(block, CBAM)
    return block


@every_order
def test_any_order_equals_the_definition(gates: tuple[str, ...]) -> None:
    block = trained(gates=list(gates))
    x = clip(2, 4, 3, 4, 5)
    assert_equal(block, partial(cbam, temporal="conv", start="half"), [x])


@every_temporal
@pytest.mark.parametrize("scope", ["clip", "frame"])
@pytest.mark.parametrize("gate_start", ["half", "identity"])
@pytest.mark.parametrize("kernel", [(1, 7, 7), (3, 7, 7)])
def test_every_option_equals_the_definition(
    temporal: str, scope: str, gate_start: str, kernel: tuple[int, ...]
) -> None:
    block = trained(
        temporal=temporal, scope=scope, gate_start=gate_start, kernel=kernel, **TEMPORAL[temporal]
    )
    x = clip(2, 4, 3, 4, 5)
    assert_equal(block, partial(cbam, temporal=temporal, start=gate_start), [x])


@pytest.mark.parametrize("kernel", [(7, 7, 7), (3, 5, 3)])
@pytest.mark.parametrize("pools", [["avg"], ["lse", "lp"], ["avg", "max", "lp", "lse"]])
def test_volume_kernels_and_other_pools_equal_the_definition(
    kernel: tuple[int, ...], pools: list[str]
) -> None:
    block = trained(kernel=kernel, pools=pools)
    x = clip(1, 4, 3, 4, 5)
    assert_equal(block, partial(cbam, temporal="conv", start="half"), [x])


def test_order_of_gates_changes_the_result() -> None:
    x = clip(2, 4, 3, 4, 5)
    outputs = []
    for order in permutations(GATES):
        block = Small(gates=list(order))
        block.load_state_dict(trained().state_dict())  # keys do not depend on the order
        outputs.append(block.double().eval()(x))
    for index, one in enumerate(outputs):
        for other in outputs[:index]:
            assert (one - other).abs().max() > 1e-6


@every_temporal
@pytest.mark.parametrize("scope", ["clip", "frame"])
def test_maps_are_the_gates_that_multiply_the_clip(temporal: str, scope: str) -> None:
    block = trained(temporal=temporal, scope=scope, **TEMPORAL[temporal])
    x = clip(2, 4, 3, 4, 5)
    maps = block.maps(x)
    assert list(maps) == list(GATES)
    channel, spatial, time = (maps[name].weights for name in GATES)
    assert channel.shape == ((2, 4, 3) if scope == "frame" else (2, 4))
    assert spatial.shape == (2, 3, 4, 5)
    assert time.shape == ((2, 4, 3) if temporal == "channel" else (2, 3))
    kinds = ["channel", "spatial", "channel" if temporal == "channel" else "temporal"]
    assert [found.kind for found in maps.values()] == kinds
    for found in maps.values():
        assert found.identity_value == 1.0
        assert found.weights.min() > 0
        assert found.weights.max() < 1
    y = x * (channel[..., None, None] if scope == "frame" else channel[..., None, None, None])
    y = y * spatial[:, None]
    y = y * (time[..., None, None] if temporal == "channel" else time[:, None, :, None, None])
    assert torch.equal(block(x), y)


@every_temporal
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_identity_start_is_exactly_the_identity(
    temporal: str, training: bool, dtype: torch.dtype
) -> None:
    block = Small(temporal=temporal, gate_start="identity", **TEMPORAL[temporal])
    block.to(dtype).train(training)
    x = clip(2, 4, 3, 4, 5).to(dtype)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("training", [True, False])
def test_gates_with_a_norm_start_at_one_half(training: bool) -> None:
    x = clip(2, 4, 3, 4, 5).float()
    for gates in (["spatial"], ["temporal"]):
        assert torch.equal(Small(gates=gates).train(training)(x), 0.5 * x)
    block = Small(gates=["temporal"], temporal="channel").train(training)
    assert torch.equal(block(x), 0.5 * x)
    # The last layer of the channel gate starts at random: its gate is about 1/2. (With some seeds
    # both hidden units are zero, and the gate is exactly 1/2.)
    torch.manual_seed(0)
    assert not torch.equal(Small(gates=["channel"])(x), 0.5 * x)


def test_two_steps_update_every_parameter() -> None:
    block = Small(gate_start="identity").double().train()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    x = clip(4, 4, 3, 4, 5)
    moved: set[str] = set()
    for _ in range(2):  # the first step updates what starts at zero, the second the rest
        optimizer.zero_grad()
        (block(x) ** 3).sum().backward()
        moved |= {key for key, p in block.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
    assert moved == {key for key, _ in block.named_parameters()}


def test_a_spatially_constant_clip_doubles_the_squeeze_excite_logit() -> None:
    block = trained(gates=["channel"])
    twin = SqueezeExcite(4, reduction=2).double()
    theirs = block.gates["channel"].mlp.state_dict()
    twin.load_state_dict({f"excite.{key}": value for key, value in theirs.items()})
    x = clip(2, 4, 1, 1, 1).expand(2, 4, 2, 4, 4)
    # Up to rounding: some processors use another kernel for two rows than for one.
    torch.testing.assert_close(
        block.gates["channel"].logits(x), 2 * twin.logits(x), atol=1e-14, rtol=1e-14
    )


def test_channel_gate_ignores_positions() -> None:
    x = clip(2, 4, 3, 4, 5)
    block = trained(gates=["channel"], pools=["avg", "max", "lp", "lse"])
    torch.testing.assert_close(block(permuted(x)), permuted(block(x)))
    block = trained(gates=["channel"], scope="frame")
    torch.testing.assert_close(block(permuted(x, (3, 4))), permuted(block(x), (3, 4)))


def test_increasing_one_element_changes_the_maximum_fully_and_the_mean_by_its_share() -> None:
    block = Small(gates=["channel"]).double()
    captured: list[Tensor] = []
    block.gates["channel"].mlp.register_forward_pre_hook(
        lambda module, inputs: captured.append(inputs[0].flatten())
    )
    x = clip(1, 4, 3, 4, 5)
    block(x)
    grown = x.clone()
    position = x[0, 2].flatten().argmax()
    grown[0, 2].view(-1)[position] += 3.0
    block(grown)
    mean, largest = (
        after - before for before, after in zip(captured[:2], captured[2:], strict=True)
    )
    unit = torch.eye(4, dtype=torch.float64)[2]
    torch.testing.assert_close(mean, 3.0 / 60 * unit)
    torch.testing.assert_close(largest, 3.0 * unit)


def test_kernel_of_one_frame_is_the_2d_gate_on_each_frame() -> None:
    block = trained(gates=["spatial"])
    gate = block.gates["spatial"]
    x = clip(2, 4, 3, 9, 8)
    images = x.transpose(1, 2).flatten(0, 1)
    pooled = torch.cat([images.amax(1, keepdim=True), images.mean(1, keepdim=True)], dim=1)
    logits = F.conv2d(pooled, gate.conv.weight[:, :, 0], padding=3)
    norm = gate.bn
    logits = F.batch_norm(
        logits, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    expected = (images * logits.sigmoid()).unflatten(0, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-14)
    wider = trained(gates=["spatial"], kernel=(3, 7, 7))
    frame = x.clone()
    frame[:, :, 0] += 1
    same = (block(frame)[:, :, 1:] - block(x)[:, :, 1:]).abs().max()
    assert same == 0
    assert (wider(frame)[:, :, 1] - wider(x)[:, :, 1]).abs().max() > 1e-6


@pytest.mark.parametrize("temporal", ["conv", "channel"])
@pytest.mark.parametrize("frames", [1, 3, 4, 16])
def test_temporal_kernel_accepts_clips_of_any_length(temporal: str, frames: int) -> None:
    block = trained(gates=["temporal"], temporal=temporal)
    x = clip(2, 4, 1, 3, 3).expand(2, 4, frames, 3, 3)
    weights = block.maps(x)["temporal"].weights
    assert weights.shape[-1] == frames
    inside = weights[..., 3:-3]  # a kernel of 7 frames reaches the border from 3 frames away
    if frames == 16:
        torch.testing.assert_close(inside, inside[..., :1].expand_as(inside))
        assert not torch.allclose(weights[..., 0], weights[..., 8])


def test_temporal_gate_per_channel_does_not_mix_channels() -> None:
    block = trained(gates=["temporal"], temporal="channel")
    x = clip(2, 4, 5, 3, 3)
    other = x.clone()
    other[:, 1] += 1
    changed = (block(other) - block(x)).abs().amax((0, 2, 3, 4)) > 0
    assert changed.tolist() == [False, True, False, False]
    # This includes a single channel, which differs from the gate over all channels.
    assert CBAM(1, reduction=1, gates=["temporal"], temporal="channel").gates["temporal"].axes == (
        3,
        4,
    )


def test_parameter_counts() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    channel = 2 * 64 * 64 // 16 + 64 // 16 + 64
    assert count(CBAM(64, gates=["channel"])) == channel
    assert count(CBAM(64, gates=["channel", "spatial"])) == channel + 98 + 2
    assert count(CBAM(64)) == channel + 98 + 2 + 14 + 2
    assert count(CBAM(64, gates=["spatial"], kernel=(7, 7, 7))) == 7 * 98 + 2
    assert count(CBAM(64, gates=["temporal"], temporal="channel")) == 64 * (14 + 2)
    mlp = CBAM(64, gates=["temporal"], temporal="mlp", num_frames=8)
    assert count(mlp) == 2 * 8 * 4 + 4 + 8
    model = ResNet3d("i3d", depth=50, num_classes=3)
    before = count(model)
    with torch.device("meta"):
        SYSTEMS["cbam"].attach(model, model.info, SYSTEMS["cbam"].make, (), "cbam")
    assert count(model) - before == 2_530_992 + 16 * (98 + 2 + 14 + 2)


@every_temporal
def test_gradients_by_finite_differences(temporal: str) -> None:
    block = trained(temporal=temporal, pools=["avg", "max", "lp", "lse"], **TEMPORAL[temporal])
    assert torch.autograd.gradcheck(block, (clip(1, 4, 3, 2, 2).requires_grad_(),))


def test_clip_of_zeros_has_finite_gradients() -> None:
    block = Small(pools=["avg", "max", "lp", "lse"]).train()
    x = torch.zeros(2, 4, 3, 4, 4, requires_grad=True)
    block(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_training_on_one_frame_of_one_clip_works() -> None:
    block = Small(gates=["temporal"])
    state = {key: value.clone() for key, value in block.state_dict().items()}
    nn.init.ones_(block.gates["temporal"].bn.weight)
    x = clip(1, 4, 1, 3, 3).float()
    y = block.train()(
        x
    )  # the norm gets one value, for which batch norm raises an error in training mode
    y.sum().backward()
    assert torch.equal(y, block.eval()(x))
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        name = f"gates.temporal.bn.{key}"
        assert torch.equal(block.state_dict()[name], state[name])
    # Two frames have statistics, and update the running ones.
    block.train()(clip(1, 4, 2, 3, 3).float())
    assert int(block.state_dict()["gates.temporal.bn.num_batches_tracked"]) == 1


def test_maps_in_training_mode_do_not_update_statistics() -> None:
    block = Small().double().train()
    for norm in (block.gates["spatial"].bn, block.gates["temporal"].bn):
        nn.init.ones_(norm.weight)
    x = clip(2, 4, 3, 4, 5)
    state = {key: value.clone() for key, value in block.state_dict().items()}
    y = block.maps(x)
    assert all(torch.equal(state[key], value) for key, value in block.state_dict().items())
    gates = [block.maps(x)[name].weights for name in GATES]
    product = x * gates[0][..., None, None, None] * gates[1][:, None]
    product = product * gates[2][:, None, :, None, None]
    assert torch.equal(block(x), product)  # with the batch statistics that forward uses
    assert list(y) == list(GATES)
    assert int(block.state_dict()["gates.spatial.bn.num_batches_tracked"]) == 1
    with pytest.raises(RuntimeError), keep_statistics(block):
        raise RuntimeError
    assert block.gates["spatial"].bn.track_running_stats


@every_temporal
@pytest.mark.parametrize("kernel", [(1, 7, 7), (7, 7, 7)])
def test_bfloat16_stays_close_forward_and_backward(temporal: str, kernel: object) -> None:
    block = trained(temporal=temporal, kernel=kernel, **TEMPORAL[temporal]).requires_grad_()
    x = clip(2, 4, 3, 8, 8)  # fewer frames than the kernel
    exact = block(x)
    wanted = torch.autograd.grad((exact**2).sum(), list(block.parameters()))
    block.float()
    low = x.float()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(low)
    assert y.dtype == torch.float32
    assert (y.double() - exact).abs().max() / exact.abs().max() < 2e-2
    # Gradients of x are excluded: if two channels are almost equal, rounding selects the maximum.
    got = torch.autograd.grad((y**2).sum(), list(block.parameters()))
    for (key, _), g, w in zip(block.named_parameters(), got, wanted, strict=True):
        assert (g.double() - w).norm() <= 5e-2 * w.norm(), key
    whole = block.bfloat16()(low.bfloat16())
    assert whole.dtype == torch.bfloat16
    assert (whole.double() - exact).abs().max() / exact.abs().max() < 3e-2


@pytest.mark.parametrize(
    ("temporal", "time_kind"), [("conv", "temporal"), ("channel", "channel"), ("mlp", "temporal")]
)
def test_recording_in_a_tsn_covers_its_segments(temporal: str, time_kind: str) -> None:
    model = TSN(torchvision.models.resnet18(), num_classes=3).eval()
    system = SYSTEMS["cbam"]
    options = {"temporal": temporal, "num_frames": 5 if temporal == "mlp" else None}
    system.attach(
        model, model.info, partial(system.make, scope="frame", **options), ["layer3.1"], "cbam"
    )
    with torch.no_grad(), record_attention(model) as maps:
        model(clip(2, 3, 5, 64, 64).float())
    position = "layer3.1.bn2.cbam"
    assert list(maps) == [f"{position}.channel", f"{position}.spatial", f"{position}.temporal"]
    assert maps[f"{position}.channel"].weights.shape == (2, 256, 5)
    assert maps[f"{position}.spatial"].weights.shape == (2, 5, 4, 4)
    assert maps[f"{position}.temporal"].kind == time_kind
    assert maps[f"{position}.temporal"].weights.shape[-1] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gates": ["chanel"]},
            r"gates: 'chanel' does not exist \(did you mean channel\?\); choose",
        ),
        (
            {"gates": ["spatial", "channel", "spatial"]},
            r"gates: got \['spatial', 'channel', 'spatial'\]; choose one or more of channel, "
            "spatial, temporal, each once",
        ),
        ({"gates": []}, r"gates: got \[\]; choose one or more"),
        (
            {"pools": ["avg", "median"]},
            "pools: 'median' does not exist; choose from avg, max, lp, lse",
        ),
        ({"pools": ["avg", "avg"]}, r"pools: got \['avg', 'avg'\]; choose one or more of avg, max"),
        ({"scope": "video"}, "scope: 'video' does not exist; choose from clip, frame"),
        ({"gate_start": "zero"}, "gate_start: 'zero' does not exist; choose from half, identity"),
        ({"temporal": "lstm"}, "temporal: 'lstm' does not exist; choose from conv, mlp, channel"),
        ({"temporal": "mlp"}, "num_frames: got None with temporal='mlp'; 'mlp' needs"),
        ({"num_frames": 8}, "num_frames: got 8 with temporal='conv'; .* need None"),
        ({"temporal": "mlp", "num_frames": 0}, "num_frames: got 0; need at least 1"),
        ({"kernel": (1, 6, 7)}, r"kernel: got \[1, 6, 7\]; need three odd sizes"),
        ({"kernel": (7, 7)}, r"kernel: got \[7, 7\]; need three odd sizes"),
        (
            {"reduction": 16},
            "24 channels are not divisible by reduction=16; choose a divisor of 24, such as 8",
        ),
        ({"reduction": 0}, "reduction and divisor: got 0 and"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CBAM(24, **{"reduction": 8, **options})


def test_mlp_over_frames_rejects_other_clip_lengths() -> None:
    block = Small(temporal="mlp", num_frames=8)
    with pytest.raises(
        ValueError, match=r"num_frames: .* temporal='mlp' for 8 frames, got 4; change"
    ):
        block(clip(1, 4, 4, 3, 3).float())


def test_single_gate_can_be_a_string() -> None:
    assert list(Small(gates="spatial").gates) == ["spatial"]
