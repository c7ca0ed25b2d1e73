"""From a recipe's names to a network with its attention and its first weights."""

from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn

from videoattn.attention.hard_crop import HardCrop
from videoattn.attention.systems import SYSTEMS
from videoattn.config import ModelConfig
from videoattn.engine.checkpoint import load as load_checkpoint
from videoattn.engine.checkpoint import load_weights
from videoattn.engine.train import LAST
from videoattn.models.inflate import load_inflated
from videoattn.models.table import make_network
from videoattn.names import check_options, lookup
from videoattn.weights import PUBLIC, load_public


def make_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network of a recipe with its attention blocks, freshly initialised.

    Raises:
        ValueError: an unknown network, block, option or place; the message lists what exists.
    """
    model = make_network(config.name, config.options, num_classes=num_classes)
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
