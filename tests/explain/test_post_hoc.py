"""Exact relations between post-hoc maps, on networks small enough to know the answer."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from videoattn.attention.insert import put_after
from videoattn.attention.maps import GateMap
from videoattn.explain.post_hoc import (
    METHODS,
    OF_A_LAYER,
    cam,
    deconvnet,
    grad_cam,
    guided_backprop,
    hires_cam,
    integrated_gradients,
    occlusion,
    saliency,
)
from videoattn.models.resnet3d import ResNet3d
from videoattn.models.tsn import TSN
from videoattn.types import ModelInfo

Method = Callable[..., GateMap]
TARGETS = torch.tensor([1, 2])


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Pooled(nn.Module):
    """Convolution, in-place ReLU, global average, one linear layer."""

    info = ModelInfo("fc")

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.body = nn.Conv3d(3, 5, 3, padding=1)
        self.relu = nn.ReLU(inplace=in_place)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.body(x)).mean((2, 3, 4)))


class Flat(nn.Module):
    """The linear layer reads every position; a `deep` head is positively homogeneous."""

    info = ModelInfo("fc")

    def __init__(self, *, deep: bool = False) -> None:
        super().__init__()
        self.body = nn.Conv3d(3, 2, 3, padding=1)
        self.fc = nn.Linear(2 * 2 * 4 * 4, 4)
        if deep:
            self.fc = nn.Sequential(
                nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).flatten(1))


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 4, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ncthw,kcthw->nk", x, self.weight)


def made(kind: type, **options: bool) -> nn.Module:
    torch.manual_seed(0)
    return kind(**options).double().eval()


@pytest.mark.parametrize("kind", ["i3d", "tsn"])
def test_after_a_mean_the_cams_agree(kind: str) -> None:
    """Before the ReLU, grad_cam and hires_cam are cam / positions, and sum to the logit minus its
    bias: in an I3D, and in a TSN, whose segments are T."""
    torch.manual_seed(0)
    model = ResNet3d("i3d", depth=18, num_classes=4, width=8) if kind == "i3d" else None
    model = model or TSN(torchvision.models.resnet18(), num_classes=4)
    model = model.double().eval()
    x = clip(2, 3, 4, 64, 96)
    plain = cam(model, x, TARGETS)
    exact = hires_cam(model, x, TARGETS)
    frames = 2 if kind == "i3d" else 4
    assert plain.weights.shape == exact.weights.shape == (2, frames, 2, 3)
    torch.testing.assert_close(exact.weights, plain.weights / (frames * 2 * 3))
    orders = [found.weights.flatten(1).argsort(dim=1) for found in (plain, exact)]
    assert torch.equal(*orders)  # so that removal scores them equally
    torch.testing.assert_close(grad_cam(model, x, TARGETS).weights, exact.weights.relu())
    scores = model(x).gather(1, TARGETS[:, None])[:, 0] - model.fc.bias[TARGETS]
    torch.testing.assert_close(exact.weights.sum((1, 2, 3)), scores.detach())


def test_hires_cam_is_complete_and_grad_cam_is_not() -> None:
    model, x = made(Flat), clip(2, 3, 2, 4, 4)
    scores = (model(x) - model.fc.bias).gather(1, TARGETS[:, None])[:, 0].detach()
    total = hires_cam(model, x, TARGETS, layer="body").weights.sum((1, 2, 3))
    torch.testing.assert_close(total, scores)
    other = grad_cam(model, x, TARGETS, layer="body").weights.sum((1, 2, 3))
    assert ((other - scores).abs() > 0.2 * scores.abs()).all()
    homogeneous = made(Flat, deep=True)
    total = hires_cam(homogeneous, x, TARGETS, layer="body").weights.sum((1, 2, 3))
    torch.testing.assert_close(total, homogeneous(x).gather(1, TARGETS[:, None])[:, 0].detach())


def test_an_in_place_activation_does_not_overwrite_captured_features() -> None:
    x = clip(2, 3, 4, 6, 6)
    for method in (grad_cam, hires_cam):
        kept = [method(made(Pooled, in_place=p), x, TARGETS, layer="body") for p in (False, True)]
        assert torch.equal(kept[0].weights, kept[1].weights)


def test_frozen_weights_are_explained_too() -> None:
    model, x = made(Pooled), clip(2, 3, 4, 6, 6)
    expected = hires_cam(model, x, TARGETS, layer="body").weights
    frozen = model.requires_grad_(False)
    assert torch.equal(hires_cam(frozen, x, TARGETS, layer="body").weights, expected)
    assert all(p.grad is None for p in model.parameters())


def test_linear_models_have_known_answers() -> None:
    model, x = made(Linear), clip(2, 3, 4, 6, 6)
    expected = model.weight[TARGETS].abs().amax(1)
    torch.testing.assert_close(saliency(model, x, TARGETS).weights, expected)
    patch, stride = (2, 3, 3), (2, 3, 3)  # side by side: each position is hidden once
    drops = occlusion(model, x, TARGETS, patch=patch, stride=stride, fill="zero").weights
    for t, y, w in ((0, 0, 0), (2, 3, 3), (0, 3, 0)):
        window = (..., slice(t, t + 2), slice(y, y + 3), slice(w, w + 3))
        total = (model.weight[TARGETS][window] * x[window]).sum((1, 2, 3, 4)).detach()
        torch.testing.assert_close(drops[window], total.view(2, 1, 1, 1).expand(2, 2, 3, 3))
    constant = made(Pooled)
    nn.init.zeros_(constant.fc.weight)
    assert not saliency(constant, x, TARGETS).weights.any()


def test_integrated_gradients_against_a_sum_and_the_difference_of_scores() -> None:
    """Exact for a linear network. For others, a naive sum, and nearly complete."""
    model, x = made(Linear), clip(2, 3, 4, 6, 6)
    shown = x - x.mean((2, 3, 4), keepdim=True)
    exact = (model.weight[TARGETS] * shown).sum(1).detach()
    found = integrated_gradients(model, x, TARGETS, num_steps=1).weights
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)
    model = made(Pooled)
    total = torch.zeros_like(x)
    for share in (torch.arange(300) + 0.5) / 300:
        point = (x - shown + share * shown).requires_grad_()
        score = model(point).gather(1, TARGETS[:, None]).sum()
        total += torch.autograd.grad(score, point)[0] / 300
    found = integrated_gradients(model, x, TARGETS, num_steps=300).weights
    torch.testing.assert_close(found, (total * shown).sum(1), rtol=0, atol=1e-5)
    change = (model(x) - model(x - shown)).gather(1, TARGETS[:, None])[:, 0].detach()
    torch.testing.assert_close(found.sum((1, 2, 3)), change, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fill", ["mean", "zero", "blur"])
def test_a_patch_over_everything_is_the_filled_clip(fill: str) -> None:
    model, x = made(Pooled), clip(2, 3, 4, 6, 6)
    filled = {
        "mean": x.mean((2, 3, 4), keepdim=True).expand_as(x),
        "zero": torch.zeros_like(x),
        "blur": nn.functional.avg_pool3d(x, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False),
    }[fill]
    drop = (model(x) - model(filled)).gather(1, TARGETS[:, None]).detach()
    found = occlusion(model, x, TARGETS, patch=(4, 6, 6), stride=(4, 6, 6), fill=fill).weights
    torch.testing.assert_close(found, drop.view(2, 1, 1, 1).expand(2, 4, 6, 6))


def test_freeze_hides_motion_only() -> None:
    model, x = made(Pooled), clip(2, 3, 4, 6, 6)
    still = x[:, :, :1].expand(-1, -1, 4, -1, -1)
    everything = {"patch": (2, 3, 3), "fill": "freeze"}
    assert not occlusion(model, still, TARGETS, **everything).weights.any()
    assert occlusion(model, x, TARGETS, **everything).weights.any()
    hidden = x.clone()
    hidden[:, :, 2:] = x[:, :, 1:2]
    drop = (model(x) - model(hidden)).gather(1, TARGETS[:, None])[:, 0].detach()
    found = occlusion(model, x, TARGETS, patch=(2, 6, 6), stride=(2, 6, 6), fill="freeze").weights
    torch.testing.assert_close(found[:, 3, 0, 0], drop)


def test_overlapping_patches_are_averaged_up_to_the_borders() -> None:
    """Against a loop, with a stride that does not divide the clip; batches change nothing."""
    model, x = made(Pooled), clip(2, 3, 5, 7, 8)
    found = occlusion(model, x, TARGETS, patch=(2, 3, 3), stride=(2, 2, 3), fill="zero").weights
    total, count = torch.zeros(2, 5, 7, 8).double(), torch.zeros(5, 7, 8)
    with torch.no_grad():
        for t in (0, 2, 3):
            for y in (0, 2, 4):
                for w in (0, 3, 5):
                    window = (..., slice(t, t + 2), slice(y, y + 3), slice(w, w + 3))
                    hidden = x.clone()
                    hidden[window] = 0
                    drop = (model(x) - model(hidden)).gather(1, TARGETS[:, None])
                    total[window] += drop.view(2, 1, 1, 1)
                    count[window] += 1
    torch.testing.assert_close(found, total / count)
    one = occlusion(model, x, TARGETS, patch=(2, 3, 3), stride=(2, 2, 3), fill="zero", batch_size=1)
    torch.testing.assert_close(one.weights, found)


def test_guided_backprop_is_the_gradient_if_all_weights_are_positive() -> None:
    model, x = made(Pooled), clip(2, 3, 4, 6, 6)
    assert (
        guided_backprop(model, x, TARGETS).weights < saliency(model, x, TARGETS).weights - 1e-6
    ).any()
    with torch.no_grad():
        model.fc.weight.abs_()
    torch.testing.assert_close(
        guided_backprop(model, x, TARGETS).weights, saliency(model, x, TARGETS).weights
    )


@pytest.mark.parametrize("in_place", [False, True])
def test_the_rules_of_a_relu(in_place: bool) -> None:
    """By hand, for one ReLU: the gradient of each method at the ReLU goes through its convolution.

    A ReLU passes [x > 0] G in saliency, [x > 0] max(G, 0) in guided backprop, and max(G, 0) in a
    deconvnet, where G = w / positions.
    """
    model, x = made(Pooled, in_place=in_place), clip(2, 3, 4, 6, 6)
    inner = model.body(x).detach()
    above = model.fc.weight[TARGETS].detach()[:, :, None, None, None] / (4 * 6 * 6)
    above = above.expand_as(inner)
    rules = {
        saliency: above * (inner > 0),
        guided_backprop: above.clamp_min(0) * (inner > 0),
        deconvnet: above.clamp_min(0),
    }
    for method, passed in rules.items():
        gradient = nn.functional.conv_transpose3d(passed, model.body.weight, padding=1).detach()
        found = method(model, x, TARGETS)
        torch.testing.assert_close(found.weights, gradient.abs().amax(1), rtol=1e-12, atol=1e-14)
    assert model.relu.inplace == in_place
    assert "may hardly depend on the class or the weights" in found.description


def test_a_relu_with_a_block_after_it_keeps_the_block() -> None:
    model, x = made(Pooled), clip(2, 3, 4, 6, 6)
    put_after(model, "relu", "twice", nn.BatchNorm3d(5).double())
    model.eval().relu.twice.weight.data.fill_(2.0)
    model.relu.twice.running_var.fill_(1 - 1e-5)
    with torch.no_grad():
        expected = guided_backprop(made(Pooled), x, TARGETS).weights
    torch.testing.assert_close(guided_backprop(model, x, TARGETS).weights, 2 * expected)


@pytest.mark.parametrize("edges", [guided_backprop, deconvnet])
def test_another_head_changes_a_cam_but_hardly_maps_of_edges(edges: Method) -> None:
    """The sanity check of Adebayo et al. (2018): a map of the class must know the head."""
    torch.manual_seed(0)
    model, x = (
        ResNet3d("i3d", depth=18, num_classes=4, width=8).double().eval(),
        clip(2, 3, 4, 32, 32),
    )

    def likeness(method: Method) -> float:
        maps = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            nn.init.normal_(model.fc.weight)
            weights = method(model, x, TARGETS).weights.flatten(1)
            maps.append((weights - weights.mean(1, keepdim=True)).flatten())
        return float(torch.cosine_similarity(*maps, dim=0))

    assert likeness(hires_cam) < 0.5
    assert likeness(edges) > likeness(hires_cam) + 0.2


@pytest.mark.parametrize("name", METHODS)
def test_clips_do_not_mix_and_no_hook_is_left(name: str) -> None:
    model, x = made(Pooled), clip(2, 3, 4, 6, 6)
    options = {"layer": "relu"} if name in OF_A_LAYER else {}
    both = METHODS[name](model, x, TARGETS, **options).weights
    alone = METHODS[name](model, x[1:], TARGETS[1:], **options).weights
    torch.testing.assert_close(both[1:], alone)
    assert not both.requires_grad
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())
    one_frame = METHODS[name](model, x[:, :, :1], TARGETS, **options).weights
    assert one_frame.shape[:2] == (2, 1)


def test_the_default_layer_is_the_last_stage() -> None:
    model = ResNet3d(num_classes=3, kind="i3d", depth=18, width=8).eval()
    x = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    for method in (cam, grad_cam, hires_cam):
        there = method(model, x, TARGETS, layer="layer4").weights
        assert torch.equal(method(model, x, TARGETS).weights, there)
    with pytest.raises(ValueError, match="the structure of Linear is unknown; name a layer"):
        grad_cam(made(Linear), clip(2, 3, 2, 4, 4), TARGETS)


def test_errors() -> None:
    model, x = made(Pooled), clip(2, 3, 4, 6, 6)
    with pytest.raises(ValueError, match=r"in training mode, which mixes clips; call model\.eval"):
        saliency(made(Pooled).train(), x, TARGETS)
    with pytest.raises(ValueError, match="layer 'layer9' does not exist; choose body,"):
        grad_cam(model, x, TARGETS, layer="layer9")
    with pytest.raises(ValueError, match="'fc' does not return one feature map"):
        grad_cam(model, x, TARGETS, layer="fc")
    with pytest.raises(
        ValueError, match="the scores of Flat are not a linear function of the mean of"
    ):
        cam(made(Flat), clip(2, 3, 2, 4, 4), TARGETS, layer="body")
    with pytest.raises(ValueError, match="not a linear function of the mean of 'body' by `fc`"):
        cam(model, x, TARGETS, layer="body")  # a ReLU lies between
    with pytest.raises(
        ValueError, match=r"fill: 'grey' does not exist.*; choose from mean, zero, blur, freeze"
    ):
        occlusion(model, x, TARGETS, fill="grey")
    with pytest.raises(
        ValueError,
        match=r"height: got patch 7 and stride 1 in a clip of 6; need 1 <= stride <= patch",
    ):
        occlusion(model, x, TARGETS, patch=(1, 7, 1), stride=(1, 1, 1))
    swish = made(Pooled)
    swish.relu = nn.SiLU()
    with pytest.raises(ValueError, match=r"got a network with Silu; need nn\.ReLU modules only"):
        guided_backprop(swish, x, TARGETS)

    class Functional(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    with pytest.raises(ValueError, match=r"with 1 ReLU calls outside nn\.ReLU modules; need"):
        guided_backprop(made(Functional), x, TARGETS)
