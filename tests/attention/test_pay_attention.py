"""Compares learn-to-pay attention with its definition, in float64."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from tests.reference import fill
from videoattn.attention import record_attention
from videoattn.attention.blocks.pay_attention import LearnToPay, LevelAttention
from videoattn.attention.systems import SYSTEMS
from videoattn.models.resnet3d import ResNet3d
from videoattn.models.tsn import TSN

FORMS = pytest.mark.parametrize("compatibility", ["pc", "dp", "pc_mlp"])
NORMALIZERS = pytest.mark.parametrize("normalizer", ["softmax", "sigmoid"])
SCOPES = pytest.mark.parametrize("scope", ["joint", "per_frame"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOCAL, GLOBAL = random(2, 6, 3, 2, 4), random(2, 9, seed=1)


def level(channels: int = 6, global_channels: int = 9, **options: str) -> LevelAttention:
    torch.manual_seed(0)
    made = LevelAttention(channels, global_channels, **options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    return made


def definition(made: LevelAttention, local: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the attended vector and c, computed position by position."""
    n, _, *grid = local.shape
    c = torch.zeros(n, *grid, dtype=local.dtype)
    if made.project_local is not None:
        local = torch.einsum("ncthw,dc->ndthw", local, made.project_local.weight)
    if made.project_global is not None:
        g = g @ made.project_global.weight.T
    for t, i, j in np.ndindex(*grid):
        x = local[:, :, t, i, j]
        if made.form == "dp":
            c[:, t, i, j] = (g * x).sum(1)
        elif made.form == "pc_mlp":
            hidden = x @ made.mix_local.weight.T + made.mix_local.bias
            c[:, t, i, j] = torch.tanh(hidden + g @ made.mix_global.weight.T) @ made.u
        else:
            c[:, t, i, j] = (x + g if g.shape[1] == x.shape[1] else x) @ made.u
    if made.normalizer == "sigmoid":
        a = torch.sigmoid(c) / c[0].numel()
    elif made.scope == "joint":
        a = (c.exp().flatten(1) / c.exp().sum((1, 2, 3))[:, None]).view_as(c)
    else:
        a = c.exp() / c.exp().sum((2, 3), keepdim=True) / grid[0]
    return (a.unsqueeze(1) * local).sum((2, 3, 4)), c


@FORMS
@NORMALIZERS
@SCOPES
@pytest.mark.parametrize("project", ["global", "local"])
@pytest.mark.parametrize("width", [9, 6])
def test_equals_the_definition(
    compatibility: str, normalizer: str, scope: str, project: str, width: int
) -> None:
    made = level(
        6, width, compatibility=compatibility, normalizer=normalizer, scope=scope, project=project
    )
    g = random(2, width, seed=1)
    vector, c = definition(made, LOCAL, g)
    got = made(LOCAL, g)
    torch.testing.assert_close(got, vector)
    assert got.shape == (2, width if project == "local" else 6)
    torch.testing.assert_close(made.compatibility(LOCAL, g), c)
    weights = made.weights(LOCAL, g)
    if normalizer == "softmax":
        torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(2).double())
        per_frame = weights.sum((2, 3))
        assert torch.allclose(per_frame, torch.full((2, 3), 1 / 3).double()) == (
            scope == "per_frame"
        )
    else:
        torch.testing.assert_close(weights, torch.sigmoid(c))
    got = made(LOCAL.clone().requires_grad_(), g)  # dp may have no parameters
    got.square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_softmax_removes_the_global_feature_in_pc() -> None:
    """u · g is the same at every position, so g affects nothing and has no projection."""
    made, g = level(6, 6), random(2, 6, seed=1).requires_grad_()
    other = 100 * random(2, 6, seed=2)
    torch.testing.assert_close(definition(made, LOCAL, g)[0], definition(made, LOCAL, other)[0])
    assert torch.equal(made(LOCAL, g), made(LOCAL, other))
    torch.testing.assert_close(made.weights(LOCAL, g), made.weights(LOCAL, other))
    made.weights(LOCAL, g)[0, 0, 0, 0].backward()
    assert g.grad is not None
    assert g.grad.abs().max() < 1e-15
    assert level(6, 9).project_global is None


@pytest.mark.parametrize(
    "options",
    [{"normalizer": "sigmoid"}, {"compatibility": "dp"}, {"compatibility": "pc_mlp"}],
)
def test_global_feature_matters_in_other_forms(options: dict[str, str]) -> None:
    made = level(**options)
    assert not torch.allclose(made(LOCAL, GLOBAL), made(LOCAL, random(2, 9, seed=2)), rtol=1e-2)


def test_dp_with_a_zero_global_feature_is_the_average() -> None:
    made = level(compatibility="dp")
    torch.testing.assert_close(made(LOCAL, torch.zeros_like(GLOBAL)), LOCAL.mean((2, 3, 4)))


@pytest.mark.parametrize("compatibility", ["pc", "dp"])
def test_level_is_scaled_dot_product_attention_with_one_query(compatibility: str) -> None:
    made = level(6, 6, compatibility=compatibility)
    g = random(2, 6, seed=1)
    query = made.u.expand(2, 6) if compatibility == "pc" else g
    tokens = LOCAL.flatten(2).transpose(1, 2)
    expected = F.scaled_dot_product_attention(query[:, None], tokens, tokens, scale=1.0)
    torch.testing.assert_close(made(LOCAL, g), expected[:, 0])


@FORMS
@NORMALIZERS
def test_order_of_positions_does_not_matter(compatibility: str, normalizer: str) -> None:
    made = level(compatibility=compatibility, normalizer=normalizer)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = LOCAL.flatten(2)[:, :, order].view_as(LOCAL)
    torch.testing.assert_close(made(shuffled, GLOBAL), made(LOCAL, GLOBAL))


@FORMS
def test_single_frame_gives_the_image_model(compatibility: str) -> None:
    made, image = level(compatibility=compatibility), LOCAL[:, :, :1]
    apart = level(compatibility=compatibility, scope="per_frame")
    torch.testing.assert_close(made(image, GLOBAL), definition(made, image, GLOBAL)[0])
    torch.testing.assert_close(made(image, GLOBAL), apart(image, GLOBAL))
    frames = [made(LOCAL[:, :, t : t + 1], GLOBAL) for t in range(3)]
    torch.testing.assert_close(apart(LOCAL, GLOBAL), torch.stack(frames).mean(0))


# --- the head -----------------------------------------------------------------------------------


def head(channels: tuple[int, ...] = (4, 6), **options: str) -> LearnToPay:
    torch.manual_seed(0)
    made = LearnToPay(9, channels, 3, **options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    return made


LEVELS = (random(2, 4, 3, 4, 4, seed=5), LOCAL)


def test_one_level_with_uniform_weights_is_the_pooling_classifier() -> None:
    made = head((6,))
    with torch.no_grad():
        made.levels[0].u.zero_()
    pooled = LOCAL.mean((2, 3, 4))
    torch.testing.assert_close(made(GLOBAL, LOCAL), made.classifiers[0](pooled))


@pytest.mark.parametrize("classifier", ["concat", "indep"])
def test_classifiers_match_their_definitions(classifier: str) -> None:
    made = head(classifier=classifier, compatibility="dp")
    vectors = [lev(x, GLOBAL) for lev, x in zip(made.levels, LEVELS, strict=True)]
    logits = made(GLOBAL, *LEVELS)
    if classifier == "concat":
        torch.testing.assert_close(logits, made.classifiers[0](torch.cat(vectors, 1)))
    else:
        pairs = zip(made.classifiers, vectors, strict=True)
        expected = sum(linear(x).softmax(1) for linear, x in pairs) / 2
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(logits.exp().sum(1), torch.ones(2).double())
        torch.testing.assert_close(logits.softmax(1), expected)
        labels = torch.tensor([2, 0])
        nll = -expected[torch.arange(2), labels].log().mean()
        torch.testing.assert_close(F.cross_entropy(logits, labels), nll)
    segments = GLOBAL.unsqueeze(1).expand(-1, 4, -1)
    torch.testing.assert_close(made(segments, *LEVELS), logits.unsqueeze(1))


def test_logits_of_confident_levels_stay_finite() -> None:
    made = head(classifier="indep")
    logits = made(GLOBAL, *(1e4 * x for x in LEVELS))
    assert logits.isfinite().all()
    assert logits.exp().sum(1).tolist() == pytest.approx([1.0, 1.0])


def test_global_feature_is_the_mean_over_segments() -> None:
    made = head(compatibility="dp")
    segments = random(2, 4, 9, seed=3)
    torch.testing.assert_close(made(segments, *LEVELS)[:, 0], made(segments.mean(1), *LEVELS))


@NORMALIZERS
@pytest.mark.parametrize("kind", ["i3d", "tsn"])
def test_every_level_has_a_map(kind: str, normalizer: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = ResNet3d("i3d", depth=18, num_classes=3, width=8)
    if kind == "tsn":
        model = TSN(torchvision.models.resnet18(), num_classes=3)
    system = SYSTEMS["pay_attention"]
    make = partial(system.make, normalizer=normalizer, compatibility="dp")
    model = system.attach(model, model.info, make, (), "pay_attention").eval()
    with torch.no_grad(), record_attention(model) as maps:
        assert model(torch.randn(2, 3, 4, 64, 96)).shape == (2, 3)
    assert list(maps) == ["fc.0", "fc.1", "fc.2"]
    frames = 2 if kind == "i3d" else 4
    for found, size in zip(maps.values(), ((8, 12), (4, 6), (2, 3)), strict=True):
        assert found.kind == "pooling"
        assert found.normalized == (normalizer == "softmax")
        assert found.weights.shape == (2, 1, frames, *size)
        if found.normalized:
            torch.testing.assert_close(found.weights.sum((1, 2, 3, 4)), torch.ones(2))
        else:
            assert ((found.weights >= 0) & (found.weights <= 1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"compatibility": "sum"},
            "compatibility: 'sum' does not exist; choose from pc, dp, pc_mlp",
        ),
        ({"classifier": "vote"}, "classifier: 'vote' does not exist; choose from concat, indep"),
        (
            {"normalizer": "count"},
            "normalizer: 'count' does not exist; choose from softmax, sigmoid",
        ),
        ({"scope": "frame"}, r"scope: 'frame' does not exist \(did you mean per_frame\?\)"),
        ({"project": "up"}, "project: 'up' does not exist; choose from global, local"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(**options)


def test_unknown_levels_are_rejected() -> None:
    model = ResNet3d("i3d", depth=18, num_classes=3, width=8)
    system = SYSTEMS["pay_attention"]
    with pytest.raises(ValueError, match=r"cannot insert after 'layer5'.*; choose from layer1"):
        system.attach(model, model.info, system.make, ("layer5",), "pay_attention")


# --- the public code's answers ------------------------------------------------------------------


def test_block_reproduces_the_outputs_of_the_public_code() -> None:
    """SaoYan's LinearAttentionBlock, where op is u and images are clips of one frame."""
    record = fill.read("blocks", "saoyan_pc_softmax")
    made = LevelAttention(16, 16, normalizer=record["options"]["normalize"])
    made.load_state_dict({"u": fill.state_dict(record)["op.weight"].flatten()})
    g = np.random.RandomState(1).standard_normal((2, 16, 1, 1)).astype(np.float32)
    with torch.no_grad():
        y = made(fill.clip(record).unsqueeze(2), torch.from_numpy(g).flatten(1))
    assert list(y.shape) == record["output_shape"]
    expected = torch.tensor(record["output"])
    error = (y.flatten()[: len(expected)] - expected).abs().max() / record["output_std"]
    assert error < 1e-5
    assert y.mean().item() == pytest.approx(record["output_mean"], abs=1e-5)
    assert y.std(unbiased=False).item() == pytest.approx(record["output_std"], rel=2e-2)


@NORMALIZERS
def test_local_projection_and_sigmoid_match_the_public_code(normalizer: str) -> None:
    """Follows SaoYan's code: a 1x1 convolution projects l to the width of g, another without a bias
    scores l + g, and the product with the sigmoid is averaged."""
    made = level(6, 9, normalizer=normalizer, project="local")
    assert made.project_local is not None
    image = LOCAL[:, :, 0]
    up = F.conv2d(image, made.project_local.weight[:, :, None, None])
    c = F.conv2d(up + GLOBAL[:, :, None, None], made.u[None, :, None, None])
    if normalizer == "softmax":
        expected = (c.flatten(2).softmax(2).view_as(c) * up).sum((2, 3))
    else:
        expected = F.adaptive_avg_pool2d(torch.sigmoid(c) * up, 1).flatten(1)
    torch.testing.assert_close(made(image.unsqueeze(2), GLOBAL), expected)
    torch.testing.assert_close(made.compatibility(image.unsqueeze(2), GLOBAL), c)
