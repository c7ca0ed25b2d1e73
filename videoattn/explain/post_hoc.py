"""Maps of any trained network, with attention or without: what a class's score rests on.

A: activations of a layer, (N, C, T', H', W'). y: a class's logit. G = dy/dA. x: the input.

| method          | map                                      | valid for                          |
| cam             | Σ_c w_c A_c            (Zhou 2016)       | mean over A, then one linear layer |
| grad_cam        | ReLU Σ_c mean(G_c) A_c (Selvaraju 2017)  | any                                |
| hires_cam       | Σ_c G_c A_c            (Draelos 2020)    | any; sums to y - b behind a mean   |
| saliency        | max_c |dy/dx|          (Simonyan 2013)   | any                                |
| guided_backprop | the same, ReLUs let no negative gradient | networks of nn.ReLU; says little   |
|                 | pass (Springenberg 2014)                 | of the class                       |
| occlusion       | y(x) - y(x, a patch hidden)              | any, without gradients             |
|                 | (Zeiler & Fergus 2013)                   |                                    |

Raw values: pictures scale them for display only. Means run over the T'·H'·W' positions of the
clip; a TSN's segments are its T'. Without a layer: the last stage's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from types import EllipsisType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from videoattn.attention.record import GateMap
from videoattn.models import info
from videoattn.types import Labels, Logits, Video

Activations = Float[Tensor, "N D t h w"]
Window = tuple[EllipsisType | slice, ...]
FILLS = ("mean", "zero", "blur", "freeze")
OTHER_ACTIVATIONS = ("Silu", "Gelu", "LeakyRelu", "Elu", "Hardswish", "Hardsigmoid", "Softplus")


def cam(model: nn.Module, video: Video, targets: Labels, *, layer: str | None = None) -> GateMap:
    """Class activation map, (N, T', H', W'). Its mean over the positions is y - b.

    Raises:
        ValueError: the class's score is not one linear layer of the layer's mean.
    """
    structure = info(model)
    layer = layer or structure.features
    with torch.no_grad(), _capture(model, layer, video) as kept:
        logits: Logits = model(video)
    activations = _as_video(kept[0], video)
    classifier = model.get_submodule(structure.classifier)
    pooled = activations.mean((2, 3, 4))
    if (
        not isinstance(classifier, nn.Linear)
        or classifier.in_features != pooled.shape[1]
        or not torch.allclose(classifier(pooled), logits, rtol=1e-3, atol=1e-4)
    ):
        raise ValueError(
            f"cam: {type(model).__name__}'s scores are not one linear layer "
            f"`{structure.classifier}` of the mean of {layer!r}; use grad_cam or "
            "hires_cam, which work for any network"
        )
    weights = classifier.weight[targets].detach()
    return GateMap("cam", torch.einsum("nc,ncthw->nthw", weights, activations), identity_value=0.0)


def grad_cam(
    model: nn.Module, video: Video, targets: Labels, *, layer: str | None = None
) -> GateMap:
    """(N, T', H', W'), not negative. See the table."""
    activations, gradients = _gradients(model, video, targets, layer)
    weights = gradients.mean((2, 3, 4))
    return GateMap("cam", torch.einsum("nc,ncthw->nthw", weights, activations).relu())


def hires_cam(
    model: nn.Module, video: Video, targets: Labels, *, layer: str | None = None
) -> GateMap:
    """(N, T', H', W'), of either sign. See the table."""
    activations, gradients = _gradients(model, video, targets, layer)
    return GateMap("cam", (activations * gradients).sum(1), identity_value=0.0)


def saliency(model: nn.Module, video: Video, targets: Labels) -> GateMap:
    """(N, T, H, W), not negative: how fast the score changes with a pixel."""
    return GateMap("cam", _input_gradient(model, video, targets).abs().amax(1))


def guided_backprop(model: nn.Module, video: Video, targets: Labels) -> GateMap:
    """(N, T, H, W), not negative: saliency whose ReLUs let only positive gradients back.

    Raises:
        ValueError: an activation that is not an nn.ReLU module, where the rule means nothing.
    """
    calls = 0

    def guide(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        guided: Tensor = _OnlyPositive.apply(output)
        return guided

    handles = [m.register_forward_hook(guide) for m in model.modules() if isinstance(m, nn.ReLU)]
    try:
        gradient = _input_gradient(model, video, targets, check=lambda y: _check_relus(y, calls))
    finally:
        for handle in handles:
            handle.remove()
    return GateMap("cam", gradient.abs().amax(1))


def occlusion(
    model: nn.Module,
    video: Video,
    targets: Labels,
    *,
    patch: tuple[int, int, int] | None = None,
    stride: tuple[int, int, int] | None = None,
    fill: str = "mean",
    batch_size: int = 16,
) -> GateMap:
    """(N, T, H, W): how much the score falls when a patch around a pixel is hidden, the mean over
    the patches that hold it. As many forward passes as there are patches.

    patch: frames, height, width; (T/4, 2H/7, 2W/7) unless given. stride: half of it.
    fill: the clip's mean colour, zero, the clip blurred in space, or freeze: the frame before the
        patch, repeated, which hides motion only.

    Raises:
        ValueError: a patch larger than the clip, a stride below 1 or above the patch (places would
            be missed), an unknown fill.
    """
    _check_eval(model)
    size = tuple(video.shape[2:])
    patch = patch or tuple(  # type: ignore[assignment]
        max(1, round(share * s)) for share, s in zip((1 / 4, 2 / 7, 2 / 7), size, strict=True)
    )
    stride = stride or tuple(max(1, p // 2) for p in patch)  # type: ignore[assignment, union-attr]
    assert patch is not None
    assert stride is not None
    for name, p, step, s in zip(("frames", "height", "width"), patch, stride, size, strict=True):
        if not 1 <= step <= p <= s:
            raise ValueError(
                f"occlusion: {name} {s}, patch {p}, stride {step}; need 1 <= stride <= patch <= {s}"
            )
    starts = [
        sorted({*range(0, s - p, step), s - p})
        for s, p, step in zip(size, patch, stride, strict=True)
    ]
    hidden = _filled(video, fill)
    drops, coverage = torch.zeros_like(video[:, 0]), torch.zeros_like(video[:1, 0])
    with torch.no_grad():
        before = _score(model(video), targets)
        places = list(product(*starts))
        for first in range(0, len(places), max(batch_size // len(video), 1)):
            chosen = places[first : first + max(batch_size // len(video), 1)]
            windows: list[Window] = [
                (..., *(slice(at, at + p) for at, p in zip(place, patch, strict=True)))
                for place in chosen
            ]
            clips = []
            for window in windows:
                clip = video.clone()
                clip[window] = _frozen(video, window) if fill == "freeze" else hidden[window]
                clips.append(clip)
            after = _score(model(torch.cat(clips)), targets.repeat(len(clips)))
            for window, score in zip(windows, after.split(len(video)), strict=True):
                drops[window] += (before - score).view(-1, 1, 1, 1)
                coverage[window] += 1
    return GateMap("cam", drops / coverage, identity_value=0.0)


METHODS: dict[str, Callable[..., GateMap]] = {
    "cam": cam,
    "grad_cam": grad_cam,
    "hires_cam": hires_cam,
    "saliency": saliency,
    "guided_backprop": guided_backprop,
    "occlusion": occlusion,
}
OF_A_LAYER = ("cam", "grad_cam", "hires_cam")


def _gradients(
    model: nn.Module, video: Video, targets: Labels, layer: str | None
) -> tuple[Activations, Activations]:
    layer = layer or info(model).features
    with torch.enable_grad(), _capture(model, layer, video) as kept:
        score = _score(model(video), targets)
    # Clips do not mix in eval mode: the gradient of the sum is each clip's own.
    (gradient,) = torch.autograd.grad(score.sum(), kept[0])
    return _as_video(kept[0].detach(), video), _as_video(gradient, video)


def _input_gradient(
    model: nn.Module,
    video: Video,
    targets: Labels,
    *,
    check: Callable[[Tensor], None] | None = None,
) -> Video:
    _check_eval(model)
    with torch.enable_grad():
        x = video.detach().clone().requires_grad_()
        score = _score(model(x), targets).sum()
        if check is not None:
            check(score)
        (gradient,) = torch.autograd.grad(score, x)
    return gradient


@contextmanager
def _capture(model: nn.Module, layer: str, video: Tensor) -> Iterator[list[Tensor]]:
    """The layer's output in the forward pass inside. What runs on is a copy: an in-place activation
    behind the layer must not overwrite what was kept."""
    _check_eval(model)
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        names = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"layer {layer!r} does not exist; it may be one of {names}, or inside one")
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if output.requires_grad or not torch.is_grad_enabled():
            kept.append(output)
        else:  # frozen weights: the graph starts here
            kept.append(output.requires_grad_())
        return kept[-1].clone()

    handle = modules[layer].register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
    if len(kept) != 1 or kept[0].ndim not in (4, 5):
        raise ValueError(
            f"layer {layer!r} does not put out one feature map in a forward pass; choose a stage "
            "or a block"
        )


def _as_video(features: Tensor, video: Video) -> Activations:
    """Of a 2-D network the (N·T, C, H, W) features as (N, C, T, H, W)."""
    if features.ndim == 5:
        return features
    return features.unflatten(0, (len(video), -1)).transpose(1, 2)


class _OnlyPositive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clamp_min(0)


def _check_relus(score: Tensor, calls: int) -> None:
    """Raises: ValueError unless every activation of the graph is one that was guided."""
    relus, others, seen, nodes = 0, set(), set(), [score.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name().removesuffix("0").removesuffix("Backward")
        relus += name == "Relu"
        others |= {name} & set(OTHER_ACTIVATIONS)
        nodes += [following for following, _ in node.next_functions]
    if others or relus != calls or not relus:
        found = ", ".join(sorted(others)) or f"{relus - calls} ReLU calls outside nn.ReLU modules"
        raise ValueError(
            f"guided_backprop: its rule is for nn.ReLU modules, and this network has {found}; use "
            "saliency or a CAM"
        )


def _filled(video: Video, fill: str) -> Video:
    if fill not in FILLS:
        raise ValueError(f"occlusion: fill {fill!r} is not one of {', '.join(FILLS)}")
    if fill == "mean":
        return video.mean((2, 3, 4), keepdim=True).expand_as(video)
    if fill == "blur":
        side = max(3, min(video.shape[3:]) // 4 | 1)
        return F.avg_pool3d(
            video, (1, side, side), 1, (0, side // 2, side // 2), count_include_pad=False
        )
    return torch.zeros_like(video)


def _frozen(video: Video, window: Window) -> Tensor:
    """The frame before the window (at the clip's start its own first) for all of its frames."""
    frames, height, width = (part for part in window if isinstance(part, slice))
    still = video[:, :, max(frames.start - 1, 0), height, width].unsqueeze(2)
    return still.expand(-1, -1, frames.stop - frames.start, -1, -1)


def _score(logits: Logits, targets: Labels) -> Float[Tensor, " N"]:
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1)


def _check_eval(model: nn.Module) -> None:
    if model.training:
        raise ValueError("the network is in training mode, where clips mix; call model.eval()")
