"""Builds the network of a recipe, with its attention blocks."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from videoattn.attention.systems import SYSTEMS
from videoattn.errors import check_options, one_of
from videoattn.models import info
from videoattn.models.table import make_network
from videoattn.recipe.config import AttentionConfig, ModelConfig, section

_RENAMED_OPTIONS = {"normaliser": "normalizer"}
"""Attention options that had other names in earlier versions: old -> new."""


def make_model(
    config: ModelConfig | str, num_classes: int, *, attention: str | None = None
) -> nn.Module:
    """Returns a network with its attention blocks, randomly initialized.

    Args:
        config: The model section of a recipe, or the name of a network, such as "i3d_r50".
        attention: An attention system at its published positions, if `config` is a name.

    Raises:
        ValueError: If a network, system, option or position does not exist; the message lists the
            valid ones.
    """
    if isinstance(config, str):
        config = ModelConfig(config, attention=AttentionConfig(attention))
    with section("model"), _option_errors("options", config.options):
        model = make_network(config.name, config.options, num_classes=num_classes)
    chosen = config.attention
    if chosen.name is not None:
        system = SYSTEMS[one_of("model.attention.name", chosen.name, SYSTEMS)]
        options = {_RENAMED_OPTIONS.get(key, key): value for key, value in chosen.options.items()}
        check_options("model.attention.options", system.make, options)
        block = partial(system.make, **options)
        with _option_errors("model.attention.options", options):
            model = system.attach(model, info(model), block, chosen.after, chosen.name)
    elif chosen.after or chosen.options:
        raise ValueError(
            "model.attention has settings but no name; choose model.attention.name from "
            + ", ".join(SYSTEMS)
        )
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.to(memory_format=layouts[parameter.ndim])
    return model


@contextmanager
def _option_errors(key: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Raises any error of a constructor as a ValueError, if it got options: a recipe or a stored
    config may give them values of any type."""
    try:
        yield
    except Exception as error:
        if not options or isinstance(error, ValueError | ImportError):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{key}: no network can be built with {dict(options)}: {reason}"
        ) from error
