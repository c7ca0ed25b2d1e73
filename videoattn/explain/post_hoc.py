"""Computes maps that explain the score of a class, for any network.

A: activations (N, C, T', H', W') of a layer. y, b: logit and bias of a class. G = dy/dA. x: input.

| method          | map                                      | valid for                          |
| cam             | Σ_c w_c A_c            (Zhou 2016)       | mean over A, then one linear layer |
| grad_cam        | ReLU Σ_c mean(G_c) A_c (Selvaraju 2017)  | any                                |
| hires_cam       | Σ_c G_c A_c            (Draelos 2020)    | any; sums to y - b after a mean    |
| saliency        | max_c |dy/dx|          (Simonyan 2013)   | any                                |
| guided_backprop | saliency whose ReLUs pass positive       | networks of nn.ReLU; depends       |
|                 | gradients only (Springenberg 2014)       | little on the class                |
| deconvnet       | the same, also where a ReLU returned 0   | as guided_backprop                 |
|                 | (Zeiler & Fergus 2013)                   |                                    |
| integrated_     | Σ_c (x - f) mean of dy/dx on the line    | any; sums to y(x) - y(f), where f  |
| gradients       | from f to x    (Sundararajan 2017)       | is the clip's mean color           |
| occlusion       | y(x) - y(x with a patch hidden)          | any; needs no gradients            |
|                 | (Zeiler & Fergus 2013)                   |                                    |

Means are over the T' x H' x W' positions of a clip; the segments of a TSN are its T'. Maps are not
rescaled. The default layer is the one whose output the head reads.
"""

from collections.abc import Callable
from itertools import product
from types import EllipsisType

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from videoattn.attention.capture import capture
from videoattn.attention.maps import GateMap
from videoattn.errors import one_of
from videoattn.explain.relu_rules import EDGES, check_rule, relu_rule
from videoattn.models import as_video, info
from videoattn.types import Labels, Logits, ModelInfo, Video

Triple = tuple[int, int, int]
Window = tuple[EllipsisType | slice, ...]
FILLS = ("mean", "zero", "blur", "freeze")


def cam(model: nn.Module, video: Video, targets: Labels, *, layer: str | None = None) -> GateMap:
    """Returns the class activation map (N, T', H', W'). Its mean over the positions is y - b.

    Raises:
        ValueError: If the score is not one linear layer of the mean of `layer`.
    """
    structure, layer = info(model), layer or info(model).features
    with torch.no_grad():
        activations, logits = _activations(model, video, layer)
    activations = as_video(activations, structure, video)
    classifier = model.get_submodule(structure.classifier)
    pooled = activations.mean((2, 3, 4))
    if (
        not isinstance(classifier, nn.Linear)
        or classifier.in_features != pooled.shape[1]
        or not torch.allclose(classifier(pooled), logits, rtol=1e-3, atol=1e-4)
    ):
        raise ValueError(
            f"cam: the scores of {type(model).__name__} are not a linear function of the mean of "
            f"{layer!r} by `{structure.classifier}`; use grad_cam or hires_cam"
        )
    weights = classifier.weight[targets].detach()
    return GateMap("cam", torch.einsum("nc,ncthw->nthw", weights, activations), identity_value=0.0)


def grad_cam(
    model: nn.Module, video: Video, targets: Labels, *, layer: str | None = None
) -> GateMap:
    """Returns the Grad-CAM (N, T', H', W'), which is nonnegative. See the table above."""
    activations, gradients = _gradients(model, video, targets, layer)
    weights = gradients.mean((2, 3, 4))
    return GateMap("cam", torch.einsum("nc,ncthw->nthw", weights, activations).relu())


def hires_cam(
    model: nn.Module, video: Video, targets: Labels, *, layer: str | None = None
) -> GateMap:
    """Returns the signed HiResCAM (N, T', H', W'). See the table above."""
    activations, gradients = _gradients(model, video, targets, layer)
    return GateMap("cam", (activations * gradients).sum(1), identity_value=0.0)


def saliency(model: nn.Module, video: Video, targets: Labels) -> GateMap:
    """Returns the largest absolute gradient of y over the channels of each pixel, (N, T, H, W)."""
    return GateMap("cam", _input_gradient(model, video, targets)[0].abs().amax(1))


def guided_backprop(model: nn.Module, video: Video, targets: Labels) -> GateMap:
    """Returns a nonnegative map (N, T, H, W): `saliency`, where ReLUs pass only positive gradients.

    Raises:
        ValueError: If the network has an activation that is not an nn.ReLU module.
    """
    return _with_relu_rule(model, video, targets, masked=True)


def deconvnet(model: nn.Module, video: Video, targets: Labels) -> GateMap:
    """Returns a nonnegative map (N, T, H, W): like `guided_backprop`, but a ReLU passes positive
    gradients at all positions, even where it returned 0.

    Raises:
        ValueError: As `guided_backprop`.
    """
    return _with_relu_rule(model, video, targets, masked=False)


def integrated_gradients(
    model: nn.Module, video: Video, targets: Labels, *, fill: str = "mean", num_steps: int = 32
) -> GateMap:
    """Returns the signed integrated gradients (N, T, H, W). See the table above.

    Averages over the midpoints of `num_steps` equal parts. f depends on `fill` (not "freeze").
    """
    start = filled(video, one_of("fill", fill, ("mean", "zero", "blur")))
    total = torch.zeros_like(video)
    for step in range(num_steps):
        point = start + (video - start) * ((step + 0.5) / num_steps)
        total += _input_gradient(model, point, targets)[0]
    return GateMap("cam", ((video - start) * total / num_steps).sum(1), identity_value=0.0)


def occlusion(
    model: nn.Module,
    video: Video,
    targets: Labels,
    *,
    patch: Triple | None = None,
    stride: Triple | None = None,
    fill: str = "mean",
    batch_size: int = 16,
) -> GateMap:
    """Returns the decrease of the score when a patch is hidden, as a map (N, T, H, W).

    The value of a pixel is the mean over the patches that contain it; each needs a forward pass.

    Args:
        patch: Frames, height and width. Default: 1/4 of the clip, 2/7 of the height and width.
        stride: Steps between patches along these axes. Default: half of the patch.
        fill: The content of a hidden patch: the clip's mean color, zero, the clip blurred in space,
            or "freeze", the frame before the patch, which hides only motion.
        batch_size: The most clips in a forward pass, if N is not larger.

    Raises:
        ValueError: If not 1 <= stride <= patch <= clip along an axis, or the fill is unknown.
    """
    _check_eval(model)
    one_of("fill", fill, FILLS)
    windows = _windows(tuple(video.shape[2:]), patch, stride)
    hidden = video if fill == "freeze" else filled(video, fill)
    drops, coverage = torch.zeros_like(video[:, 0]), torch.zeros_like(video[:1, 0])
    step = max(batch_size // len(video), 1)
    with torch.no_grad():
        before = _score(model(video), targets)
        for first in range(0, len(windows), step):
            batch = windows[first : first + step]
            clips = [video.clone() for _ in batch]
            for clip, window in zip(clips, batch, strict=True):
                clip[window] = _frozen(video, window) if fill == "freeze" else hidden[window]
            after = _score(model(torch.cat(clips)), targets.repeat(len(clips)))
            for window, score in zip(batch, after.split(len(video)), strict=True):
                drops[window] += (before - score).view(-1, 1, 1, 1)
                coverage[window] += 1
    return GateMap("cam", drops / coverage, identity_value=0.0)


METHODS: dict[str, Callable[..., GateMap]] = {
    "cam": cam,
    "grad_cam": grad_cam,
    "hires_cam": hires_cam,
    "saliency": saliency,
    "guided_backprop": guided_backprop,
    "deconvnet": deconvnet,
    "integrated_gradients": integrated_gradients,
    "occlusion": occlusion,
}
OF_A_LAYER = ("cam", "grad_cam", "hires_cam")


def _activations(model: nn.Module, video: Video, layer: str) -> tuple[Tensor, Logits]:
    """Returns the output of a layer, and the logits."""
    _check_eval(model)
    if not layer or layer not in dict(model.named_modules()):
        names = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"layer {layer!r} does not exist; choose {names}, or a module in one")
    # The network continues with a copy: a later in-place activation would change this output.
    with capture(model, [layer], copy=True) as outputs:
        logits = model(video)
    if outputs.calls[layer] != 1 or layer not in outputs or outputs[layer].ndim not in (3, 4, 5):
        raise ValueError(
            f"layer {layer!r} does not return one feature map per forward pass; choose a stage or "
            "a block"
        )
    return outputs[layer], logits


def _gradients(
    model: nn.Module, video: Video, targets: Labels, layer: str | None
) -> tuple[Float[Tensor, "N D t h w"], Float[Tensor, "N D t h w"]]:
    try:
        structure = info(model)
    except ValueError:
        if layer is None:
            raise
        structure = ModelInfo("")
    with torch.enable_grad():  # the input requires gradients, so that frozen layers have them too
        video = video.detach().requires_grad_()
        activations, logits = _activations(model, video, layer or structure.features)
        # Clips do not mix in eval mode: the gradient of the sum is that of each clip.
        (gradient,) = torch.autograd.grad(_score(logits, targets).sum(), activations)
    return as_video(activations.detach(), structure, video), as_video(gradient, structure, video)


def _input_gradient(model: nn.Module, video: Video, targets: Labels) -> tuple[Video, Tensor]:
    """Returns the gradient of the summed scores with respect to the input, and the sum."""
    _check_eval(model)
    with torch.enable_grad():
        x = video.detach().clone().requires_grad_()
        score = _score(model(x), targets).sum()
        return torch.autograd.grad(score, x)[0], score


def _with_relu_rule(model: nn.Module, video: Video, targets: Labels, *, masked: bool) -> GateMap:
    with relu_rule(model, masked=masked):
        gradient, score = _input_gradient(model, video, targets)
    check_rule(score)
    return GateMap("cam", gradient.abs().amax(1), description=EDGES)


def _windows(size: tuple[int, ...], patch: Triple | None, stride: Triple | None) -> list[Window]:
    """Returns the slices that select each patch of a clip of `size` (T, H, W)."""
    shares = (1 / 4, 2 / 7, 2 / 7)
    sides = patch or [max(1, round(a * s)) for a, s in zip(shares, size, strict=True)]
    steps = stride or [max(1, side // 2) for side in sides]
    slices = []
    for name, side, step, s in zip(("frames", "height", "width"), sides, steps, size, strict=True):
        if not 1 <= step <= side <= s:
            raise ValueError(
                f"{name}: got patch {side} and stride {step} in a clip of {s}; need 1 <= stride <= "
                f"patch <= {s}"
            )
        starts = sorted({*range(0, s - side, step), s - side})
        slices.append([slice(start, start + side) for start in starts])
    return [(..., *window) for window in product(*slices)]


def filled(video: Video, fill: str) -> Video:
    """Returns what replaces a hidden clip: its "mean" color, its "blur" in space, or zeros."""
    if fill == "mean":
        return video.mean((2, 3, 4), keepdim=True).expand_as(video)
    if fill == "blur":
        side = max(3, min(video.shape[3:]) // 4 | 1)
        padding = (0, side // 2, side // 2)
        return F.avg_pool3d(video, (1, side, side), 1, padding, count_include_pad=False)
    return torch.zeros_like(video)


def _frozen(video: Video, window: Window) -> Tensor:
    """Returns the window filled with copies of the frame before it, or of the first frame."""
    frames, height, width = (part for part in window if isinstance(part, slice))
    still = video[:, :, max(frames.start - 1, 0), height, width].unsqueeze(2)
    return still.expand(-1, -1, frames.stop - frames.start, -1, -1)


def _score(logits: Logits, targets: Labels) -> Float[Tensor, " N"]:
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1)


def _check_eval(model: nn.Module) -> None:
    if model.training:
        raise ValueError("the network is in training mode, which mixes clips; call model.eval()")
