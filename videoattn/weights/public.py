"""The table of public models: name -> how to build it, whose keys it has, what it was fed.

A name is `<ecosystem>/<model>`, spelled as that project spells it. A new public model is a row.
What differs between ecosystems, beside names (all checked against the answers of their code):

- mmaction2's I3D halves the frames twice in the stem, PySlowFast's and pytorchvideo's never;
- mmaction2's non-local blocks pool keys after the projection, do not scale (SlowOnly's do), and
  have no bias in W_z; PySlowFast's are the authors';
- PySlowFast's and pytorchvideo's heads average 7x7 windows, mmaction2's the whole stage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torchvision
from torch import nn

from videoattn.attention.non_local import NonLocal
from videoattn.models.resnet3d import ResNet3d, Stem
from videoattn.models.tsn import TSN
from videoattn.weights import keys

Colour = tuple[float, float, float]

APACHE = "Apache-2.0"
BSD = "BSD-3-Clause"


@dataclass(frozen=True)
class Normalisation:
    """Of RGB in 0 - 1, before the network."""

    mean: Colour
    std: Colour


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
KINETICS = Normalisation(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))


@dataclass(frozen=True)
class PublicModel:
    """model: called with num_classes. block: called with channels, put behind each of `after`."""

    model: Callable[..., nn.Module]
    rename: keys.KeyMap
    normalisation: Normalisation
    licence: str
    block: Callable[[int], nn.Module] | None = None
    after: tuple[str, ...] = ()


def _resnet(depth: int, *, num_classes: int) -> nn.Module:
    """torchvision's image network: (N, 3, H, W) -> logits (N, K)."""
    make: Callable[..., nn.Module] = getattr(torchvision.models, f"resnet{depth}")
    return make(num_classes=num_classes)


def _tsn(depth: int, *, num_classes: int, **options: Any) -> nn.Module:
    backbone = _resnet(depth, num_classes=1)
    return TSN(backbone, num_classes=num_classes, **options)


_ODD = ("layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5")
_EVEN = ("layer2.0", "layer2.2", "layer3.0", "layer3.2", "layer3.4")

_pyslowfast = partial(PublicModel, rename=keys.pyslowfast, normalisation=KINETICS, licence=APACHE)
_pytorchvideo = partial(PublicModel, normalisation=KINETICS, licence=APACHE)
_mmaction2 = partial(PublicModel, rename=keys.mmaction2, normalisation=IMAGENET, licence=APACHE)
_torchvision = partial(PublicModel, rename=keys.torchvision, normalisation=IMAGENET, licence=BSD)

# 8x8: 8 frames of 224 pixels leave 4x7x7 positions, or 8x7x7 where time is not pooled
_C2D = partial(ResNet3d, "c2d", head_window=(4, 7, 7))
_I3D = partial(ResNet3d, "i3d", head_window=(4, 7, 7))
_SLOW = partial(ResNet3d, "slow", head_window=(8, 7, 7))
_MM_I3D = partial(ResNet3d, "i3d", stem=Stem(conv1_stride_frames=2, pool1_stride_frames=2))
_MM_SLOW = partial(ResNet3d, "slow")
_mm_non_local = partial(NonLocal, pool_order="after", out_bias=False)

PUBLIC: dict[str, PublicModel] = {
    "torchvision/resnet18": _torchvision(partial(_resnet, 18)),
    "torchvision/resnet34": _torchvision(partial(_resnet, 34)),
    "torchvision/resnet50": _torchvision(partial(_resnet, 50)),
    "torchvision/resnet101": _torchvision(partial(_resnet, 101)),
    "pytorchvideo/c2d_r50": _pytorchvideo(_C2D, rename=keys.pytorchvideo_pooled),
    "pytorchvideo/i3d_r50": _pytorchvideo(_I3D, rename=keys.pytorchvideo_pooled),
    "pytorchvideo/slow_r50": _pytorchvideo(_SLOW, rename=keys.pytorchvideo),
    "pyslowfast/C2D_8x8_R50": _pyslowfast(_C2D),
    "pyslowfast/I3D_8x8_R50": _pyslowfast(_I3D),
    "pyslowfast/I3D_NLN_8x8_R50": _pyslowfast(_I3D, block=NonLocal, after=_ODD),
    "pyslowfast/SLOW_8x8_R50": _pyslowfast(_SLOW),
    "pyslowfast/SLOW_NLN_8x8_R50": _pyslowfast(
        _SLOW, block=partial(NonLocal, form="dot_product"), after=_ODD
    ),
    "mmaction2/tsn_r50": _mmaction2(partial(_tsn, 50, dropout=0.4)),
    "mmaction2/tsm_r50": _mmaction2(partial(_tsn, 50, shift_div=8)),
    "mmaction2/i3d_r50": _mmaction2(_MM_I3D),
    "mmaction2/i3d_r50_nl_embedded_gaussian": _mmaction2(
        _MM_I3D, block=partial(_mm_non_local, scale=False), after=_ODD
    ),
    "mmaction2/i3d_r50_nl_gaussian": _mmaction2(
        _MM_I3D, block=partial(_mm_non_local, form="gaussian"), after=_ODD
    ),
    "mmaction2/i3d_r50_nl_dot_product": _mmaction2(
        _MM_I3D, block=partial(_mm_non_local, form="dot_product"), after=_ODD
    ),
    "mmaction2/slowonly_r50": _mmaction2(_MM_SLOW),
    "mmaction2/slowonly_r50_nl_embedded_gaussian": _mmaction2(
        _MM_SLOW, block=partial(_mm_non_local, scale=True), after=_EVEN
    ),
}
