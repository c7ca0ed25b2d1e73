"""From a recipe's names to a network with its attention and its first weights."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn

from videoattn.attention.hard_crop import HardCrop
from videoattn.attention.systems import SYSTEMS
from videoattn.build.names import check_options, lookup
from videoattn.config import ModelConfig
from videoattn.engine.checkpoint import load as load_checkpoint
from videoattn.engine.checkpoint import load_weights
from videoattn.engine.train import LAST
from videoattn.models.inflate import load_inflated
from videoattn.models.resnet3d import BLOCKS, KERNELS, ResNet3d, Stem
from videoattn.models.tsn import TSN
from videoattn.weights import PUBLIC, load_public


def _tsn(
    depth: int, *, num_classes: int, consensus: str = "mean", dropout: float = 0.5,
    shift_div: int | None = None, shift_place: str = "residual",
) -> TSN:  # fmt: skip
    backbone = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    return TSN(
        backbone, num_classes=num_classes, consensus=consensus, dropout=dropout,
        shift_div=shift_div, shift_place=shift_place,
    )  # fmt: skip


def _r3d_18(*, num_classes: int) -> nn.Module:
    model: nn.Module = torchvision.models.video.r3d_18(weights=None, num_classes=num_classes)
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {
    **{
        f"{kind}_r{depth}": partial(ResNet3d, kind, depth=depth)
        for kind in KERNELS
        for depth in BLOCKS
    },
    **{f"tsn_r{depth}": partial(_tsn, depth) for depth in BLOCKS},
    "r3d_18": _r3d_18,
}


def make_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network of a recipe with its attention blocks, freshly initialised.

    Raises:
        ValueError: an unknown network, block, option or place; the message lists what exists.
    """
    make = lookup("model.name", config.name, MODELS)
    options = dict(config.options)
    check_options("model.options", make, options)
    if isinstance(options.get("stem"), Mapping):
        check_options("model.options.stem", Stem, options["stem"])
        options["stem"] = Stem(**options["stem"])
    model = make(num_classes=num_classes, **options)
    attention = config.attention
    if attention.name is not None:
        system = lookup("model.attention.name", attention.name, SYSTEMS)
        check_options("model.attention.options", system.make, attention.options)
        block = partial(system.make, **attention.options)
        model = system.attach(model, block, attention.after, attention.name)
    elif attention.after or attention.options:
        raise ValueError(
            "model.attention has settings but no name; choose model.attention.name from "
            + ", ".join(SYSTEMS)
        )
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.to(memory_format=layouts[parameter.ndim])
    return model


def load_initial_weights(model: nn.Module, source: str) -> list[str]:
    """Starts the model from `source`; returns what to tell the user of what was not reached.

    source: a run or checkpoint of ours; `torchvision/resnet50` (downloaded by torchvision, or
        `torchvision/resnet50:FILE`), inflated where the network has time; or another public name
        with its file, such as `pyslowfast/I3D_8x8_R50:FILE`.

    A classifier of another number of classes is left out, and attention blocks that the weights
    lack stay as they are (the identity).

    Raises:
        ValueError: an unknown name, or weights of another network.
    """
    name, _, file = source.partition(":")
    if Path(source).exists():
        path = Path(source) / LAST if Path(source).is_dir() else Path(source)
        ours = path.suffix == ".safetensors"
        state = load_weights(path)[0] if ours else load_checkpoint(path)["model"]
    elif name.startswith("torchvision/") and not file:
        weights = torchvision.models.get_model_weights(name.removeprefix("torchvision/"))
        state = weights.DEFAULT.get_state_dict(progress=False)
    elif file:
        state = load_public(name, file).state_dict()
    else:
        raise ValueError(
            f"model.weights: {source!r} is no run, no checkpoint, and no NAME:FILE of a public "
            f"model; names are torchvision/resnet50 and {', '.join(PUBLIC)}"
        )
    networks = [model]
    if isinstance(model, HardCrop) and "fusion.weight" not in state:
        networks = [model.global_branch, model.local_branch]  # both begin with the same weights
    missed = [name for network in networks for name in load_inflated(network, state)]
    return [f"{source}: starts without {', '.join(missed)}"] if missed else []
