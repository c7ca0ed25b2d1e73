"""Builds networks by name, for recipes and for public checkpoints."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from videoattn.errors import check_options, one_of
from videoattn.models import libraries
from videoattn.models.i3d import InceptionI3d
from videoattn.models.resnet3d import BLOCKS, KERNELS, ResNet3d, Stem
from videoattn.models.tsn import TSN

STEM2 = Stem(conv1_stride_frames=2)
STEM4 = Stem(conv1_stride_frames=2, pool1_kernel_frames=2, pool1_stride_frames=2)

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{
        f"{kind}_r{depth}": partial(ResNet3d, kind, depth=depth)
        for kind in KERNELS
        for depth in BLOCKS
    },
    # The stem halves the number of frames once, or twice as in the published 32x2 models.
    **{
        f"i3d_r{depth}_stem2": partial(ResNet3d, "i3d", depth=depth, stem=STEM2) for depth in BLOCKS
    },
    **{
        f"i3d_r{depth}_stem4": partial(ResNet3d, "i3d", depth=depth, stem=STEM4) for depth in BLOCKS
    },
    **{
        f"tsn_r{depth}": partial(TSN, partial(libraries.torchvision_model, f"resnet{depth}"))
        for depth in BLOCKS
    },
    "inception_i3d": InceptionI3d,
    **{name: partial(libraries.make_torchvision, name) for name in libraries.TORCHVISION},
    **{
        f"pytorchvideo_{name}": partial(libraries.make_pytorchvideo, name)
        for name in libraries.PYTORCHVIDEO
    },
    "tsn_timm": libraries.make_timm_tsn,
}


def make_network(name: str, options: Mapping[str, Any], *, num_classes: int) -> nn.Module:
    """Returns a freshly initialized network.

    Args:
        name: A key of `MODELS`.
        options: Arguments of its constructor, as plain values; lists are converted to tuples.
        num_classes: The number of logits.

    Raises:
        ValueError: If the network or an option does not exist; the message lists what exists.
    """
    make = MODELS[one_of("name", name, MODELS)]
    options = {key: tuple(x) if isinstance(x, list) else x for key, x in options.items()}
    check_options("options", make, options)
    if isinstance(options.get("stem"), Mapping):
        check_options("options.stem", Stem, options["stem"])
        options["stem"] = Stem(**options["stem"])
    return make(num_classes=num_classes, **options)
