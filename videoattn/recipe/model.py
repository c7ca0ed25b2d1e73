"""From a recipe's names to a network with its attention."""

from functools import partial

import torch
from torch import nn

from videoattn.attention.systems import SYSTEMS
from videoattn.errors import check_options, one_of, section
from videoattn.models import info
from videoattn.models.table import make_network
from videoattn.recipe.config import ModelConfig


def make_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network of a recipe with its attention blocks, freshly initialised.

    Raises:
        ValueError: an unknown network, block, option or place; the message lists what exists.
    """
    with section("model"):
        model = make_network(config.name, config.options, num_classes=num_classes)
    attention = config.attention
    if attention.name is not None:
        system = SYSTEMS[one_of("model.attention.name", attention.name, SYSTEMS)]
        check_options("model.attention.options", system.make, attention.options)
        block = partial(system.make, **attention.options)
        model = system.attach(model, info(model), block, attention.after, attention.name)
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
