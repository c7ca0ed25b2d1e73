"""The pyramid and its head, in float64 against the definition."""

import copy
import inspect
import io
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from tests.reference import interaction as reference
from videoattn.attention import record_attention
from videoattn.attention.blocks.interaction import InteractionPyramid
from videoattn.attention.blocks.pyramid import (
    FORMS,
    PoolingOptions,
    PyramidPooling,
    diversity_loss,
    interaction_loss,
)
from videoattn.attention.common import auxiliary_losses
from videoattn.attention.insert import output_shapes
from videoattn.attention.systems import SYSTEMS
from videoattn.errors import check_options
from videoattn.models.resnet3d import ResNet3d
from videoattn.models.tsn import TSN

CHANNELS = (4, 6, 8)
FUSIONS = pytest.mark.parametrize("fusion", ["sum", "mean", "max", "learned"])
POOLS = pytest.mark.parametrize("pool_with", ["l2", "simplex"])


def levels(frames: int = 2, n: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, CHANNELS[0], frames, 8, 12), (n, CHANNELS[1], frames, 4, 6)]
    shapes += [(n, CHANNELS[2], frames, 2, 3)]
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def pyramid(rows: object = 5, **options: object) -> PyramidPooling:
    """Returns a pyramid with large weights, so that its maps are far from uniform."""
    torch.manual_seed(0)
    made = PyramidPooling(CHANNELS, rows=rows, **options).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return made


@POOLS
@pytest.mark.parametrize("center", ["none", "channel_mean"])
@pytest.mark.parametrize("fusion", ["sum", "mean", "max"])
def test_equals_the_definition(fusion: str, center: str, pool_with: str) -> None:
    module = pyramid(fusion=fusion, center=center, pool_with=pool_with)
    expected, fused, every = reference.pyramid(module, levels())
    for training in (False, True):
        torch.testing.assert_close(module.train(training)(*levels()), expected)
    got, own = module.weightings(*levels())
    torch.testing.assert_close(got.flatten(2), fused)
    for ours, theirs in zip(own, every, strict=True):
        torch.testing.assert_close(ours.flatten(2), theirs)
    assert got.shape == (2, 5, 2, 2, 3)


def test_earlier_levels_can_be_average_pooled() -> None:
    module, xs = pyramid(down_sampling="avg"), levels()
    small = [F.avg_pool3d(xs[0], (1, 4, 4)), F.avg_pool3d(xs[1], (1, 2, 2)), xs[2]]
    torch.testing.assert_close(module(*xs), module(*small))
    assert not torch.allclose(module(*xs), pyramid()(*xs))


def test_learned_fusion_starts_as_the_mean_and_stays_convex() -> None:
    module, mean = pyramid(fusion="learned"), pyramid(fusion="mean")
    mean.load_state_dict({k: v for k, v in module.state_dict().items() if k != "mixture"})
    with torch.no_grad():
        module.mixture.zero_()
        torch.testing.assert_close(module(*levels()), mean(*levels()))
        module.mixture.copy_(torch.tensor([0.0, 60.0, 0.0]))  # the second level only
        fused, own = module.weightings(*levels())
    torch.testing.assert_close(fused, own[1])


@pytest.mark.parametrize("fusion", ["sum", "mean", "learned"])
def test_simplex_pooling_is_attention_with_learned_queries(fusion: str) -> None:
    module, xs = pyramid(fusion=fusion, pool_with="simplex", bias="row"), levels()
    fused, _ = module.weightings(*xs)
    expected = torch.einsum("ndthw,ncthw->ndc", fused, xs[-1])
    torch.testing.assert_close(module.train()(*xs), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(module.eval()(*xs), expected, rtol=1e-12, atol=1e-14)


@FUSIONS
def test_uniform_scores_give_the_average(fusion: str) -> None:
    module, xs = pyramid(fusion=fusion), levels()
    simple = pyramid(fusion=fusion, pool_with="simplex")
    mean = xs[-1].mean((2, 3, 4)).unsqueeze(1).expand(-1, 5, -1)
    with torch.no_grad():
        for made in (module, simple):
            for parameter in made.scores.parameters():
                parameter.zero_()
        torch.testing.assert_close(module(*xs), math.sqrt(2 * 2 * 3) * mean)
        torch.testing.assert_close(simple(*xs), mean)


@POOLS
@FUSIONS
def test_bias_per_row_cancels_except_with_max_fusion(fusion: str, pool_with: str) -> None:
    module = pyramid(fusion=fusion, bias="row", pool_with=pool_with, loss="literal").train()
    before = module(*levels()).detach()
    losses = auxiliary_losses(module)
    (before.sum() + module(*levels()).square().sum() + sum(auxiliary_losses(module).values())
     ).backward()  # fmt: skip
    gradients = [linear.bias.grad.abs().max().item() for linear in module.scores]
    with torch.no_grad():
        for index, linear in enumerate(module.scores):
            linear.bias += torch.arange(5) * (index - 1.0)
        after = module(*levels())
    changed = auxiliary_losses(module)
    if fusion == "max":
        assert not torch.allclose(after, before, rtol=1e-2)
        assert max(gradients) > 1e-2
        return
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)
    assert max(gradients) < 1e-12
    for name, loss in losses.items():
        torch.testing.assert_close(changed[name], loss, rtol=1e-10, atol=0)


def test_bias_per_position_is_a_prior() -> None:
    for rows, grid in (([2, 3], (1, 2, 3)), ([2, 2, 3], (2, 2, 3))):
        module, xs = pyramid(rows, bias="position"), levels()
        assert module.position is not None
        with torch.no_grad():
            before = module(*xs)
            module.position[1].view(grid)[0, 1, 2] += 50.0
            fused, _ = module.weightings(*xs)
        assert not torch.allclose(module(*xs), before)
        frames = fused[..., 1, 2].sum(2) if grid[0] == 1 else fused[:, :, 0, 1, 2]
        torch.testing.assert_close(frames, torch.ones_like(frames))
    message = (
        r"bias='position' has rows=\[2, 2, 3\], but the features of the last level are \[3, 2, 3\]"
    )
    with pytest.raises(ValueError, match=message):
        module(*levels(frames=3))


def test_single_frame_gives_the_spatial_layer() -> None:
    """With several frames, positions of all frames compete; with one frame they do not."""
    module, xs = pyramid(), levels(frames=1)
    flat = [x[:, :, 0] for x in xs]
    y = sum(
        torch.einsum("dc,nchw->ndhw", linear.weight, F.adaptive_max_pool2d(x, (2, 3)))
        for x, linear in zip(flat, module.scores, strict=True)
    )
    assert isinstance(y, Tensor)
    a = y.flatten(2).softmax(-1)
    expected = (a / a.norm(dim=-1, keepdim=True)) @ flat[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(module(*xs), expected)
    both = module(*levels(frames=2))
    alone = [module(*(x[:, :, t : t + 1] for x in levels(frames=2))) for t in range(2)]
    assert not torch.allclose(both, alone[0] + alone[1])


@POOLS
def test_tokens_do_not_depend_on_the_order_of_frames(pool_with: str) -> None:
    module, xs = pyramid(pool_with=pool_with), levels(frames=4)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(module(*(x[:, :, order] for x in xs)), module(*xs))
    assert not torch.allclose(module(xs[0][:, :, order], *xs[1:]), module(*xs))


def test_rows_on_a_grid_form_a_feature_map() -> None:
    for rows, shape in (([2, 3], (2, 8, 1, 2, 3)), ([2, 2, 3], (2, 8, 2, 2, 3))):
        module = pyramid(rows)
        tokens = module(*levels())
        video = module.to_video(tokens)
        assert video.shape == shape
        torch.testing.assert_close(video[:, :, 0, 1, 2], tokens[:, 5])


def test_rows_start_different() -> None:
    """Equal rows would get equal gradients and stay equal."""
    torch.manual_seed(0)
    module = PyramidPooling((64, 64), rows=16)
    for linear in module.scores:
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.1)
    same = pyramid()
    with torch.no_grad():
        for linear in same.scores:
            linear.weight.copy_(linear.weight[:1].expand(5, -1))
    same.train()(*levels()).square().sum().backward(retain_graph=True)
    sum(auxiliary_losses(same).values()).backward()
    for linear in same.scores:
        torch.testing.assert_close(linear.weight.grad, linear.weight.grad[:1].expand(5, -1))


# --- losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@POOLS
def test_training_stores_both_losses(pool_with: str, form: str) -> None:
    """The losses use unit rows and the centered X, for both values of `pool_with`."""
    module = pyramid(pool_with=pool_with, loss=form, center="channel_mean")
    module(*levels())
    assert auxiliary_losses(module) == {}
    module.train()(*levels())
    _, fused, own = reference.pyramid(module, levels())
    rows = fused / fused.norm(dim=-1, keepdim=True)
    x = levels()[-1].flatten(2).transpose(1, 2)
    x = x - x.mean(2, keepdim=True)
    found = auxiliary_losses(module)
    assert list(found) == ["interaction", "diversity"]
    torch.testing.assert_close(found["interaction"], interaction_loss(rows, x, form).mean())
    torch.testing.assert_close(found["diversity"], diversity_loss(fused, own, form).mean())
    assert auxiliary_losses(module) == {}  # losses are collected once


def test_default_losses_have_no_gradient_for_the_last_features() -> None:
    xs = [x.requires_grad_() for x in levels()]
    for form, reaches in (("balanced", False), ("normalized", False), ("literal", True)):
        module = PyramidPooling(CHANNELS[-1:], loss=form).double().train()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()  # so that x gets no gradient from the scores
        module(xs[-1])
        (gradient,) = torch.autograd.grad(auxiliary_losses(module)["interaction"], xs[-1])
        assert bool(gradient.abs().max() > 0) == reaches


def test_stored_losses_are_not_copied_or_saved() -> None:
    model = nn.ModuleList([pyramid().train(), pyramid(7).train()])
    one, two = model
    first, second = one(*levels()), two(*levels())
    assert first.requires_grad
    assert second.requires_grad
    twin = copy.deepcopy(model)  # a tensor with a graph cannot be copied
    assert auxiliary_losses(twin) == {}
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert auxiliary_losses(torch.load(file, weights_only=False)) == {}
    assert not any("loss" in key for key in model.state_dict())
    both = auxiliary_losses(model)  # losses with the same name are added
    one(*levels()), two(*levels())
    apart = [auxiliary_losses(one), auxiliary_losses(two)]
    for name, loss in both.items():
        torch.testing.assert_close(loss, apart[0][name] + apart[1][name])


# --- head and block -----------------------------------------------------------------------------


def head(width: int = 8, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return InteractionPyramid(width, CHANNELS, 3, **options).double().eval()


def test_head_classifies_the_mean_token() -> None:
    made, xs = head(classify="mean"), levels()
    expected = made.linear(made.pyramid(*xs).mean(1))
    torch.testing.assert_close(made(torch.zeros(2, 8, dtype=torch.float64), *xs), expected)
    segments = made(torch.zeros(2, 4, 8, dtype=torch.float64), *xs)
    torch.testing.assert_close(segments, expected.unsqueeze(1))


@pytest.mark.parametrize("classify", ["rows", "mean"])
def test_residual_head_starts_as_a_plain_classifier(classify: str) -> None:
    made, xs = head(residual=True, classify=classify), levels()
    plain = made.linear if classify == "mean" else made.plain
    pooled = xs[-1].mean((2, 3, 4))
    assert torch.equal(made(pooled, *xs), plain(pooled))
    per_segment = xs[-1].mean((3, 4)).transpose(1, 2)
    torch.testing.assert_close(made(per_segment, *xs)[:, 0], plain(pooled))
    made.train()(pooled, *xs).sum().backward()
    assert made.gamma.grad.abs() > 0


@pytest.mark.parametrize("classify", ["rows", "mean"])
def test_scope_of_a_frame_classifies_each_frame_of_a_tsn(classify: str) -> None:
    made, xs = head(scope="frame", classify=classify), levels(frames=3)
    segments = torch.zeros(2, 3, 8, dtype=torch.float64)
    logits = made(segments, *xs)
    assert logits.shape == (2, 3, 3)
    for t in range(3):  # each frame by itself
        alone = made(segments[:, :1], *(x[:, :, t : t + 1] for x in xs))
        torch.testing.assert_close(logits[:, t], alone[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made(segments[:, 0], *xs), logits.mean(1))  # of a network of clips
    maps = made.maps(segments, *xs)
    assert maps[""].weights.shape == (2, 8, 3, 2, 3)
    torch.testing.assert_close(maps[""].weights.sum((2, 3, 4)), torch.ones(2, 8).double())


@pytest.mark.parametrize("kind", ["i3d", "tsn"])
def test_maps_are_distributions_for_every_level(kind: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = ResNet3d("i3d", depth=18, num_classes=3, width=8)
    if kind == "tsn":
        model = TSN(torchvision.models.resnet18(), num_classes=3)
    system = SYSTEMS["interaction"]
    model = system.attach(model, model.info, partial(system.make, rows=5), (), "interaction").eval()
    frames = 2 if kind == "i3d" else 4  # I3D pools frames by two
    with torch.no_grad(), record_attention(model) as maps:
        assert model(torch.randn(2, 3, 4, 64, 96)).shape == (2, 3)
    assert list(maps) == ["fc", "fc.0", "fc.1", "fc.2"]
    for found in maps.values():
        assert (found.kind, found.normalized) == ("pooling", True)
        assert found.weights.shape == (2, 5, frames, 2, 3)
        torch.testing.assert_close(found.weights.sum((2, 3, 4)), torch.ones(2, 5))


def test_parameter_count() -> None:
    """49 rows over three levels of a ResNet-50 add 0.18 M parameters."""
    made = PyramidPooling((512, 1024, 2048), rows=[7, 7])
    assert sum(p.numel() for p in made.parameters()) == 49 * (512 + 1024 + 2048) == 175_616


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"fusion": "product"},
            "fusion: 'product' does not exist; choose from sum, mean, max, learned",
        ),
        ({"down_sampling": "min"}, "down_sampling: 'min' does not exist; choose from max, avg"),
        ({"bias": "column"}, "bias: 'column' does not exist; choose from none, row, position"),
        ({"center": "mean"}, "center: 'mean' does not exist; choose from none, channel_mean"),
        ({"pool_with": "l1"}, "pool_with: 'l1' does not exist; choose from l2, simplex"),
        (
            {"loss": "plain"},
            "loss: 'plain' does not exist; choose from balanced, normalized, scaled, literal",
        ),
        ({"scope": "video"}, "scope: 'video' does not exist; choose from clip, frame"),
        ({"classify": "all"}, "classify: 'all' does not exist; choose from rows, mean"),
        ({"rows": 0}, r"rows: got 0; need a number of 1 or more, or a grid \[height, width\] or"),
        ({"rows": [7]}, r"rows: got \[7\]; need a number of 1"),
        ({"rows": [7, 0]}, r"rows: got \[7, 0\]; need a number of 1"),
        ({"rows": []}, r"rows: got \[\]; need a number of 1"),
        ({"bias": "position"}, r"a value for each position of a grid, got rows=8; give"),
        (
            {"residual": True, "width": 5},
            "residual=True: got 8 channels in the last level; need 5",
        ),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(**options)


def test_options_include_those_of_the_pooling() -> None:
    check_options("options", InteractionPyramid, {"rows": 8, "residual": True})
    with pytest.raises(ValueError, match=r"options: unknown 'row' \(did you mean rows\?\); it may"):
        check_options("options", InteractionPyramid, {"row": 8})
    signature = inspect.signature(PyramidPooling).parameters.values()
    assert {p.name for p in signature if p.kind is p.KEYWORD_ONLY} == set(
        PoolingOptions.__annotations__
    )


def test_unknown_levels_are_rejected() -> None:
    model = ResNet3d("i3d", depth=18, num_classes=3, width=8)
    system = SYSTEMS["interaction"]
    with pytest.raises(ValueError, match=r"cannot insert after 'layer9'.*; choose from layer1"):
        system.attach(model, model.info, system.make, ("layer2", "layer9"), "interaction")
    system.attach(model, model.info, system.make, ("layer3", "layer4"), "interaction")
    scores = model.fc.block.pyramid.scores
    assert [linear.in_features for linear in scores] == [
        output_shapes(model, [name])[name][1] for name in ("layer3", "layer4")
    ]
