"""The table of public models: name -> how to build it, whose keys it has, what it was fed.

A name is `<ecosystem>/<model>`, spelled as that project spells it. A new public model is a row.
What differs between ecosystems, beside names (all checked against the answers of their code):

- mmaction2's I3D halves the frames twice in the stem, PySlowFast's and pytorchvideo's never;
- mmaction2's non-local blocks pool keys after the projection, do not scale (SlowOnly's do), and
  have no bias in W_z; PySlowFast's are the authors';
- PySlowFast's and pytorchvideo's heads average 7x7 windows, mmaction2's the whole stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

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
    """network, options: as a recipe's model.name and model.options, in plain values. non_local:
    options of the blocks behind each of `after`; None for a network without."""

    network: str
    rename: keys.KeyMap
    normalisation: Normalisation
    licence: str
    options: Mapping[str, Any] = field(default_factory=dict)
    non_local: Mapping[str, Any] | None = None
    after: tuple[str, ...] = ()


_ODD = ("layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5")
_EVEN = ("layer2.0", "layer2.2", "layer3.0", "layer3.2", "layer3.4")

_pyslowfast = partial(PublicModel, rename=keys.pyslowfast, normalisation=KINETICS, licence=APACHE)
_pytorchvideo = partial(PublicModel, normalisation=KINETICS, licence=APACHE)
_mmaction2 = partial(PublicModel, rename=keys.mmaction2, normalisation=IMAGENET, licence=APACHE)
_torchvision = partial(PublicModel, rename=keys.torchvision, normalisation=IMAGENET, licence=BSD)

# 8x8: 8 frames of 224 pixels leave 4x7x7 positions, or 8x7x7 where time is not pooled
_WINDOW = {"head_window": (4, 7, 7)}
_SLOW_WINDOW = {"head_window": (8, 7, 7)}
_HALVED = {"stem": {"conv1_stride_frames": 2, "pool1_stride_frames": 2}}
_mm_i3d = partial(_mmaction2, "i3d_r50", options=_HALVED)


def _mm_non_local(**options: Any) -> dict[str, Any]:
    return {"pool_order": "after", "out_bias": False, **options}


PUBLIC: dict[str, PublicModel] = {
    "torchvision/resnet18": _torchvision("resnet18"),
    "torchvision/resnet34": _torchvision("resnet34"),
    "torchvision/resnet50": _torchvision("resnet50"),
    "torchvision/resnet101": _torchvision("resnet101"),
    "pytorchvideo/c2d_r50": _pytorchvideo("c2d_r50", keys.pytorchvideo_pooled, options=_WINDOW),
    "pytorchvideo/i3d_r50": _pytorchvideo("i3d_r50", keys.pytorchvideo_pooled, options=_WINDOW),
    "pytorchvideo/slow_r50": _pytorchvideo("slow_r50", keys.pytorchvideo, options=_SLOW_WINDOW),
    "pyslowfast/C2D_8x8_R50": _pyslowfast("c2d_r50", options=_WINDOW),
    "pyslowfast/I3D_8x8_R50": _pyslowfast("i3d_r50", options=_WINDOW),
    "pyslowfast/I3D_NLN_8x8_R50": _pyslowfast("i3d_r50", options=_WINDOW, non_local={}, after=_ODD),
    "pyslowfast/SLOW_8x8_R50": _pyslowfast("slow_r50", options=_SLOW_WINDOW),
    "pyslowfast/SLOW_NLN_8x8_R50": _pyslowfast(
        "slow_r50", options=_SLOW_WINDOW, non_local={"form": "dot_product"}, after=_ODD
    ),
    "mmaction2/tsn_r50": _mmaction2("tsn_r50", options={"dropout": 0.4}),
    "mmaction2/tsm_r50": _mmaction2("tsn_r50", options={"shift_div": 8}),
    "mmaction2/i3d_r50": _mm_i3d(),
    "mmaction2/i3d_r50_nl_embedded_gaussian": _mm_i3d(
        non_local=_mm_non_local(scale=False), after=_ODD
    ),
    "mmaction2/i3d_r50_nl_gaussian": _mm_i3d(non_local=_mm_non_local(form="gaussian"), after=_ODD),
    "mmaction2/i3d_r50_nl_dot_product": _mm_i3d(
        non_local=_mm_non_local(form="dot_product"), after=_ODD
    ),
    "mmaction2/slowonly_r50": _mmaction2("slow_r50"),
    "mmaction2/slowonly_r50_nl_embedded_gaussian": _mmaction2(
        "slow_r50", non_local=_mm_non_local(scale=True), after=_EVEN
    ),
}
