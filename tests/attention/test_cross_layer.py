import pytest
import torch
from torch import Tensor

from tests.attention.test_hygiene import backbone
from tests.reference.blocks import (
    assert_equal,
    bfloat16_error,
    clip,
    permuted,
    trained,
    with_gradient,
)
from videoattn.attention.blocks.cross_layer import CrossLayerNonLocal
from videoattn.attention.blocks.non_local import NonLocal
from videoattn.attention.record import record_attention
from videoattn.attention.systems import SYSTEMS
from videoattn.models import info
from videoattn.models.resnet3d import ResNet3d

every_mode = pytest.mark.parametrize("mode", ["per_layer", "joint"])


def small(mode: str) -> CrossLayerNonLocal:
    return CrossLayerNonLocal(6, [3, 5], mode=mode, inner_channels=4)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Returns a query and two sources that differ in every axis."""
    return clip(2, 6, 2, 3, 1), clip(2, 3, 4, 5, 2, seed=1), clip(2, 5, 3, 2, 3, seed=2)


def by_definition(block: CrossLayerNonLocal, x: Tensor, *sources: Tensor) -> Tensor:
    """Computes the block position by position, with explicit sums."""
    theta, out = (layer.weight[:, :, 0, 0, 0] for layer in (block.theta, block.out))
    phis, gs = ([layer.weight[:, :, 0, 0, 0] for layer in part] for part in (block.phi, block.g))
    keys = [phi @ s.flatten(2) for phi, s in zip(phis, sources, strict=True)]  # (N, D, P_r)
    values = [g @ s.flatten(2) for g, s in zip(gs, sources, strict=True)]
    if block.mode == "joint":
        keys, values = [torch.cat(keys, dim=2)], [torch.cat(values, dim=2)]
    total = x
    for k, v, bn in zip(keys, values, block.bn, strict=True):
        y = torch.zeros_like(x)
        for n in range(len(x)):
            for position in range(x[0, 0].numel()):
                at = tuple(int(i) for i in torch.unravel_index(torch.tensor(position), x.shape[2:]))
                query = theta @ x[(n, slice(None), *at)]
                weights = (query @ k[n] * query.numel() ** -0.5).exp()
                y[(n, slice(None), *at)] = out @ (v[n] @ weights / weights.sum())
        total = total + bn(y)
    return total


@every_mode
def test_equals_the_definition(mode: str) -> None:
    block = trained(small(mode))
    assert_equal(block, by_definition, list(inputs()))


@every_mode
@pytest.mark.parametrize("training", [True, False])
def test_starts_as_exactly_the_identity(mode: str, training: bool) -> None:
    x, *sources = (y.float() for y in inputs())
    assert torch.equal(small(mode).train(training)(x, *sources), x)


@every_mode
def test_gradients_reach_the_norms_first_and_then_every_parameter(mode: str) -> None:
    block = small(mode).double()
    first = with_gradient(block, (block(*inputs()) ** 3).sum())
    assert first == {name for name, _ in block.named_parameters() if name.startswith("bn.")}
    trained(block)
    moved = with_gradient(block, (block(*inputs()) ** 3).sum())
    assert moved == {name for name, _ in block.named_parameters()}


@every_mode
def test_permuting_query_positions_permutes_the_output(mode: str) -> None:
    """Fails if the transpose is missing, as in the authors' code."""
    block = trained(small(mode))
    x, *sources = inputs()
    torch.testing.assert_close(block(permuted(x), *sources), permuted(block(x, *sources)))


@every_mode
def test_order_of_source_positions_does_not_matter(mode: str) -> None:
    block = trained(small(mode))
    x, first, second = inputs()
    expected = block(x, first, second)
    torch.testing.assert_close(block(x, permuted(first), permuted(second, 1)), expected)


@every_mode
def test_layer_that_attends_to_itself_is_the_non_local_block(mode: str) -> None:
    block = trained(CrossLayerNonLocal(6, [6], mode=mode, inner_channels=3))
    same = trained(NonLocal(6, key_pool=None, out_bias=False))
    state = {name.replace(".0.", "."): value for name, value in block.state_dict().items()}
    zeros = {f"{part}.bias": torch.zeros(3) for part in ("theta", "phi", "g")}
    same.load_state_dict({**state, **zeros})
    x = clip(2, 6, 2, 3, 2)
    torch.testing.assert_close(block(x, x), same(x))


def test_joint_is_per_layer_weighted_by_the_mass_of_each_layer() -> None:
    block = trained(small("joint"))
    x, *sources = inputs()
    q, keys, values = block.project(x, *sources)
    logits = [q @ k.mT * block.logit_scale for k in keys]
    share = torch.stack([part.logsumexp(2) for part in logits]).softmax(0)  # (n, N, P)
    each = [part.softmax(2) @ v for part, v in zip(logits, values, strict=True)]
    y = sum(w.unsqueeze(2) * part for w, part in zip(share, each, strict=True))
    expected = x + block.bn[0](block.out(y.mT.unflatten(2, x.shape[2:])))
    torch.testing.assert_close(block(x, *sources), expected, rtol=1e-12, atol=1e-12)
    for index in range(2):
        rows = block.maps(x, *sources)[f"source{index}"].rows(torch.arange(q.shape[1]))
        torch.testing.assert_close(rows.flatten(2).sum(2), share[index])


@every_mode
def test_source_with_one_position_gives_every_query_the_same_output(mode: str) -> None:
    block = trained(CrossLayerNonLocal(6, [3], mode=mode))
    x, source = clip(2, 6, 2, 3, 2), clip(2, 3, 1, 1, 1)
    change = block(x, source) - x
    torch.testing.assert_close(change, change[:, :, :1, :1, :1].expand_as(change))
    value = block.bn[0](block.out(block.g[0](source)))
    torch.testing.assert_close(change[:, :, :1, :1, :1], value)


def test_maps_are_the_weights_that_forward_uses() -> None:
    positions = torch.tensor([0, 4])
    x, *sources = inputs()
    for mode in ("per_layer", "joint"):
        block = trained(small(mode))
        q, keys, _ = block.project(x, *sources)
        logits = [q[:, positions] @ k.mT / 2 for k in keys]
        if mode == "joint":
            expected = torch.cat(logits, dim=2).softmax(2).split([k.shape[1] for k in keys], 2)
        else:
            expected = [part.softmax(2) for part in logits]
        for index, found in enumerate(block.maps(x, *sources).values()):
            assert found.grid_q == (2, 3, 1)
            assert found.grid_k == tuple(sources[index].shape[2:])
            assert found.normalized == (mode == "per_layer")
            torch.testing.assert_close(found.rows(positions).flatten(2), expected[index])


def test_each_source_is_recorded_separately() -> None:
    model = backbone("i3d").eval()
    SYSTEMS["cross_layer"].attach(model, info(model), CrossLayerNonLocal, (), "cross_layer")
    with torch.no_grad(), record_attention(model, queries=[(1, 8, 8)]) as maps:
        model(torch.randn(1, 3, 4, 32, 32))
    name = "layer4.0_cross_layer"
    assert set(maps) == {f"{name}.source0", f"{name}.source1"}
    for found in maps.values():
        torch.testing.assert_close(found.weights.flatten(2).sum(2), torch.ones(1, 1))


@pytest.mark.parametrize("depth", [50, 101])
def test_parameter_count_of_the_published_network(depth: int) -> None:
    with torch.device("meta"):
        model = ResNet3d("i3d", depth=depth, num_classes=2)
        before = sum(p.numel() for p in model.parameters())
        SYSTEMS["cross_layer"].attach(model, model.info, CrossLayerNonLocal, (), "cross_layer")
    block = dict(model.named_modules())["layer4.1_cross_layer"].block
    convolutions = 2 * 2048 * 256 + 2 * 2 * 512 * 256 + 2 * 3 * 1024 * 256
    assert convolutions == 3_145_728
    assert sum(p.numel() for p in block.parameters() if p.ndim == 5) == convolutions
    added = sum(p.numel() for p in model.parameters()) - before
    assert added == convolutions + 5 * 2 * 2048
    third = {50: ["1", "3", "5"], 101: ["6", "13", "20"]}[depth]
    positions = ["layer2.1", "layer2.3", *(f"layer3.{index}" for index in third)]
    assert list(dict(model.named_modules())["layer4.1_cross_layer"].sources) == positions


@every_mode
def test_bfloat16_stays_near_float32(mode: str) -> None:
    assert bfloat16_error(trained(small(mode)), *inputs()) < 2e-2


def test_invalid_options_are_rejected() -> None:
    with pytest.raises(
        ValueError, match="mode: 'sum' does not exist; choose from per_layer, joint"
    ):
        CrossLayerNonLocal(6, [3], mode="sum")
    with pytest.raises(ValueError, match="source_channels is empty; name one or more layers"):
        CrossLayerNonLocal(6, [])
    with pytest.raises(ValueError, match="sources: got 1; this block needs 2"):
        small("joint")(*(y.float() for y in inputs()[:2]))


def test_scale_can_be_turned_off() -> None:
    scaled, unscaled = (
        trained(CrossLayerNonLocal(6, [3], inner_channels=4, scale=scale))
        for scale in (True, False)
    )
    unscaled.theta.weight.data /= 2  # 1/sqrt(4)
    torch.testing.assert_close(scaled(*inputs()[:2]), unscaled(*inputs()[:2]))
