import pytest
import torch
from torch import Tensor

from tests.reference import fill
from tests.reference.blocks import (
    assert_equal,
    bfloat16_error,
    clip,
    permuted,
    trained,
    with_gradient,
)
from tests.reference.cgnl import cgnl
from videoattn.attention.blocks.cgnl import CompactNonLocal, compact_dot, compact_gaussian

KINDS = [
    {"kernel": "dot"},
    {"kernel": "gaussian"},
    {"kernel": "gaussian", "order": 2, "gamma": 0.3},
    {"kernel": "gaussian", "exact_beta": True, "gamma": 0.3},
]
every_kind = pytest.mark.parametrize("options", KINDS, ids=lambda o: "-".join(map(str, o.values())))


def small(**options: object) -> CompactNonLocal:
    return CompactNonLocal(8, **{"groups": 2, **options})


@every_kind
@pytest.mark.parametrize("scale", ["none", "root", "count"])
@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_equals_the_map_between_all_entries(options: dict, scale: str, norm: str) -> None:
    block = trained(small(**options, scale=scale, norm=norm))
    x = clip(2, 8, 2, 3, 2)
    assert_equal(block, cgnl, [x])


@every_kind
@pytest.mark.parametrize("norm", ["gn", "bn"])
@pytest.mark.parametrize("training", [True, False])
def test_starts_as_exactly_the_identity(options: dict, norm: str, training: bool) -> None:
    x = clip(2, 8, 3, 4, 5).float()
    assert torch.equal(small(**options, norm=norm).train(training)(x), x)


@every_kind
def test_gradients_reach_the_norm_first_and_then_every_parameter(options: dict) -> None:
    block = small(**options).double()
    x = clip(2, 8, 2, 3, 2)
    assert with_gradient(block, (block(x) ** 3).sum()) == {"norm.weight", "norm.bias"}
    trained(block)
    assert with_gradient(block, (block(x) ** 3).sum()) == {n for n, _ in block.named_parameters()}


@pytest.mark.parametrize("options", [{"kernel": "dot"}, {"kernel": "gaussian", "gamma": 0.3}])
def test_each_group_is_a_block_on_a_slice_of_the_channels(options: dict) -> None:
    """A group has its own inner channels and norm, and reads all input channels."""
    whole = trained(small(**options))
    x = clip(2, 8, 2, 3, 2)
    for index in range(2):
        one = trained(CompactNonLocal(8, inner_channels=2, groups=1, **options))
        own, inner = slice(4 * index, 4 * index + 4), slice(2 * index, 2 * index + 2)
        for name in ("theta", "phi", "g"):
            getattr(one, name).weight.data = getattr(whole, name).weight.data[inner]
        first, higher = one.respond(one.theta(x), one.phi(x), one.g(x))
        y = torch.nn.functional.conv3d((first + higher).flatten(1, 2), whole.out.weight[own])
        y = torch.nn.functional.group_norm(y, 1, whole.norm.weight[own], whole.norm.bias[own])
        torch.testing.assert_close(whole(x)[:, own], x[:, own] + y)


@every_kind
@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_permuting_positions_permutes_the_output(options: dict, norm: str) -> None:
    block = trained(small(**options, norm=norm))
    x = clip(2, 8, 2, 3, 2)
    torch.testing.assert_close(block(permuted(x)), permuted(block(x)))


def test_group_norm_removes_the_magnitude_of_the_dot_kernel() -> None:
    block = trained(small())
    x = clip(2, 8, 2, 3, 2)
    change = block(x) - x
    bias = block.norm.bias.view(1, -1, 1, 1, 1)
    block.g.weight.data *= 1000
    larger = block(x) - x
    assert (larger - change).abs().max() < 1e-3 * change.abs().max()
    block.g.weight.data *= -1
    torch.testing.assert_close(block(x) - x - bias, -(larger - bias))


def test_batch_norm_and_the_gaussian_kernel_keep_the_magnitude() -> None:
    x = clip(2, 8, 2, 3, 2)
    for options in ({"norm": "bn"}, {"kernel": "gaussian", "gamma": 0.3}):
        block = trained(small(**options))
        before = block(x)
        block.phi.weight.data *= 3
        assert (block(x) - before).abs().max() > 1e-2


def test_response_can_differ_between_clips_only_with_batch_norm() -> None:
    """Clip 1 is clip 0 with a <φ, g> four times as large."""
    x = clip(1, 8, 2, 3, 2)
    both = torch.cat([x, 2 * x])
    for norm, grows in (("bn", True), ("gn", False)):
        block = trained(small(norm=norm)).train()
        change = block(both) - both - block.norm.bias.view(1, -1, 1, 1, 1)
        spread = change.std(dim=(1, 2, 3, 4))
        assert (spread[1] > 3 * spread[0]) == grows


def test_expansion_with_the_exact_factor_converges_to_the_kernel() -> None:
    theta, phi, g = (clip(1, 1, 6, seed=seed) for seed in range(3))
    gamma = 0.05
    distance = (theta.unsqueeze(3) - phi.unsqueeze(2)).square()
    exact = ((-gamma * distance).exp() @ g.unsqueeze(3)).squeeze(3)
    errors = []
    for order in (1, 2, 3, 12):
        first, higher = compact_gaussian(theta, phi, g, order=order, gamma=gamma, exact_beta=True)
        errors.append(float((first + higher - exact).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-13
    small_gamma = compact_gaussian(theta, phi, g, order=3, gamma=1e-4, exact_beta=True)
    exact = ((-1e-4 * distance).exp() @ g.unsqueeze(3)).squeeze(3)
    assert (sum(small_gamma) - exact).abs().max() < 1e-13


def test_linear_paths_pass_gradcheck() -> None:
    entries = tuple(clip(2, 2, 5, seed=seed).requires_grad_() for seed in range(3))
    assert torch.autograd.gradcheck(compact_dot, entries)
    for exact_beta in (True, False):
        assert torch.autograd.gradcheck(
            lambda *e, exact=exact_beta: compact_gaussian(*e, order=3, gamma=0.3, exact_beta=exact),
            entries,
        )


def test_map_is_the_strength_of_each_positions_response() -> None:
    block = trained(small(scale="count"))
    x = clip(2, 8, 2, 3, 2)
    theta, phi, g = (y.unflatten(1, (2, 2)) for y in (block.theta(x), block.phi(x), block.g(x)))
    s = (phi * g).mean((2, 3, 4, 5), keepdim=True)
    expected = (theta.abs() * s.abs()).sum((1, 2))
    found = block.maps(x)[""]
    assert found.kind == "spatial"
    torch.testing.assert_close(found.weights, expected)


def test_map_of_the_gaussian_kernel_omits_the_constant_term() -> None:
    block = trained(small(kernel="gaussian", gamma=0.3))
    x = clip(2, 8, 2, 3, 2)
    x[:, :, 1] = 0  # θ = 0 there, so only the term of order 0 remains
    weights = block.maps(x)[""].weights
    assert not weights[:, 1].any()
    assert (weights[:, 0] > 0).all()


@every_kind
@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_bfloat16_stays_near_float32(options: dict, norm: str) -> None:
    block = trained(small(**options, norm=norm))
    assert bfloat16_error(block, clip(2, 8, 4, 6, 6).relu()) < 2e-2


def test_inner_product_is_computed_in_float32_under_bfloat16_autocast() -> None:
    """Sums 32,768 ones; a bfloat16 sum would stop at 256."""
    block = trained(CompactNonLocal(2, inner_channels=1, groups=1, norm="bn")).float()
    for layer in (block.theta, block.phi, block.g, block.out):
        torch.nn.init.constant_(layer.weight, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        weights = block.maps(torch.ones(1, 2, 8, 64, 64))[""].weights
    torch.testing.assert_close(weights, torch.full((1, 8, 64, 64), 8.0 * 64 * 64))


def test_half_precision_input_keeps_its_dtype() -> None:
    block = trained(small()).to(torch.bfloat16)
    assert block(clip(1, 8, 2, 3, 2).to(torch.bfloat16)).dtype == torch.bfloat16


def test_parameter_count() -> None:
    block = CompactNonLocal(512)
    count = sum(p.numel() for p in block.parameters())
    assert count == 3 * 512 * 256 + 512 * 256 // 8 + 2 * 512


def _our_state(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"t": "theta", "p": "phi", "g": "g", "z": "out", "gn": "norm"}
    ours = {}
    for key, value in theirs.items():
        part, end = key.split(".")
        ours[f"{names[part]}.{end}"] = value[..., None] if value.ndim == 4 else value
    return ours


def test_block_reproduces_the_outputs_of_the_authors_code() -> None:
    record = fill.read("blocks", "cgnl_SpatialCGNL_g4")
    options = record["options"]
    block = CompactNonLocal(
        options["inplanes"], inner_channels=options["planes"], groups=options["groups"],
        scale="root" if options["use_scale"] else "none",
    ).eval()  # fmt: skip
    block.load_state_dict(_our_state(fill.state_dict(record)))  # strict, so every key matches
    with torch.no_grad():
        y = block(fill.clip(record).unsqueeze(2)).squeeze(2)
    assert list(y.shape) == record["output_shape"]
    expected = torch.tensor(record["output"])
    error = (y.flatten()[: len(expected)] - expected).abs().max() / record["output_std"]
    assert error < 1e-5
    assert y.mean().item() == pytest.approx(record["output_mean"], abs=1e-5)


def test_invalid_options_are_rejected() -> None:
    with pytest.raises(ValueError, match="kernel: 'rbf' does not exist; choose from dot, gaussian"):
        CompactNonLocal(8, kernel="rbf")
    with pytest.raises(
        ValueError, match="scale: 'n' does not exist; choose from none, root, count"
    ):
        CompactNonLocal(8, scale="n")
    with pytest.raises(ValueError, match="norm: 'ln' does not exist; choose from gn, bn"):
        CompactNonLocal(8, norm="ln")
    with pytest.raises(ValueError, match="groups=3 does not divide both 8 channels and 4 inner"):
        CompactNonLocal(8, groups=3)
    with pytest.raises(ValueError, match="groups=8 does not divide both 8 channels and 4 inner"):
        CompactNonLocal(8)
    with pytest.raises(ValueError, match="order: got -1; need at least 0"):
        CompactNonLocal(8, groups=2, order=-1)
    with pytest.raises(ValueError, match=r"gamma: got 0\.0; need more than 0"):
        CompactNonLocal(8, groups=2, gamma=0.0)
