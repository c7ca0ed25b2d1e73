"""Builds the network of a recipe, with its attention blocks."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import nn

from videoattn.attention.attach import Make
from videoattn.attention.systems import SYSTEMS, AttentionSystem
from videoattn.errors import check_options, one_of
from videoattn.models import info
from videoattn.models.table import make_network
from videoattn.recipe.config import AttentionConfig, ModelConfig, SystemConfig, section

_RENAMED_OPTIONS = {"normaliser": "normalizer"}
"""Attention options that had other names in earlier versions: old -> new."""


def make_model(
    config: ModelConfig | str, num_classes: int, *, attention: str | None = None
) -> nn.Module:
    """Returns a network with its attention blocks, randomly initialized.

    Args:
        config: The model section of a recipe, or the name of a network, such as "i3d_r50".
        attention: An attention system at its published positions, or several, as in
            "non_local+cbam", if `config` is a name.

    Raises:
        ValueError: If a network, system, option or position does not exist; the message lists the
            valid ones. If systems of a list need the same place.
    """
    if isinstance(config, str):
        names = [] if attention is None else split_systems("attention", attention)
        then = {str(number): SystemConfig(name) for number, name in enumerate(names)}
        first = then.pop("0", SystemConfig())
        config = ModelConfig(config, attention=AttentionConfig(first.name, then=then))
    with section("model"):
        model = make_network(config.name, config.options, num_classes=num_classes)
    for name, system, make, after in list(_systems(config.attention.systems)):
        model = system.attach(model, info(model), make, after, name)
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.to(memory_format=layouts[parameter.ndim])
    return model


def split_systems(argument: str, names: str) -> list[str]:
    """Returns the systems of "non_local+cbam".

    Raises:
        ValueError: If a system does not exist, or systems need the same place.
    """
    systems = [one_of(argument, name, SYSTEMS) for name in names.split("+")]
    _check_heads(argument, systems)
    return systems


def _systems(
    chosen: Sequence[SystemConfig],
) -> Iterator[tuple[str, AttentionSystem, Make, tuple[str, ...]]]:
    """Yields the name, the row, the constructor and the positions of each system."""
    for number, settings in enumerate(chosen):
        key = f"model.attention.{number}" if len(chosen) > 1 else "model.attention"
        if settings.name is None:
            raise ValueError(
                f"{key} has settings but no name; choose {key}.name from {', '.join(SYSTEMS)}"
            )
        system = SYSTEMS[one_of(f"{key}.name", settings.name, SYSTEMS)]
        options = {_RENAMED_OPTIONS.get(name, name): x for name, x in settings.options.items()}
        check_options(f"{key}.options", system.make, options)
        yield settings.name, system, partial(system.make, **options), settings.after
    _check_heads("model.attention", [str(settings.name) for settings in chosen])


def _check_heads(argument: str, names: Sequence[str]) -> None:
    heads = [name for name in names if SYSTEMS[name].kind in ("head", "network")]
    if len(heads) > 1:
        raise ValueError(
            f"{argument}: {' and '.join(heads)} each replace the classifier; choose one of them"
        )
    if heads and names[-1] != heads[0]:
        raise ValueError(
            f"{argument}: {heads[0]} reads what the other systems return; put it last in the list"
        )
