"""The networks by name: the recipe's `model.name`, and what public checkpoints are read into."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torchvision
from torch import nn

from videoattn.errors import check_options, one_of
from videoattn.models.foreign import FOREIGN
from videoattn.models.i3d import InceptionI3d
from videoattn.models.resnet3d import BLOCKS, KERNELS, ResNet3d, Stem
from videoattn.models.tsn import TSN


def _tsn(
    depth: int, *, num_classes: int, consensus: str = "mean", dropout: float = 0.5,
    shift_div: int | None = None, shift_place: str = "residual",
) -> TSN:  # fmt: skip
    backbone = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    return TSN(
        backbone, num_classes=num_classes, consensus=consensus, dropout=dropout,
        shift_div=shift_div, shift_place=shift_place,
    )  # fmt: skip


MODELS: dict[str, Callable[..., nn.Module]] = {
    **{
        f"{kind}_r{depth}": partial(ResNet3d, kind, depth=depth)
        for kind in KERNELS
        for depth in BLOCKS
    },
    **{f"tsn_r{depth}": partial(_tsn, depth) for depth in BLOCKS},
    "inception_i3d": InceptionI3d,
    **FOREIGN,
}


def make_network(name: str, options: Mapping[str, Any], *, num_classes: int) -> nn.Module:
    """The network called `name`, freshly initialised; options are plain values, as YAML has them.

    Raises:
        ValueError: an unknown network or option; the message lists what exists.
    """
    make = MODELS[one_of("model.name", name, MODELS)]
    options = dict(options)
    check_options("model.options", make, options)
    if isinstance(options.get("stem"), Mapping):
        check_options("model.options.stem", Stem, options["stem"])
        options["stem"] = Stem(**options["stem"])
    return make(num_classes=num_classes, **options)
