"""Builds the network of a recipe, with its attention systems."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from videoattn.attention.systems import EDITIONS, SYSTEMS, AttentionSystem
from videoattn.errors import check_options, one_of
from videoattn.models import info
from videoattn.models.table import make_network
from videoattn.recipe.config import AttentionConfig, ModelConfig, SystemConfig, section

_RENAMED_OPTIONS = {"normaliser": "normalizer"}
"""Options that had other names in earlier versions: old -> new."""


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
            valid ones. Also if two systems need the same position, or an attention system makes an
            option of the network ineffective.
    """
    if isinstance(config, str):
        names = [] if attention is None else split_systems("attention", attention)
        then = {str(number): SystemConfig(name) for number, name in enumerate(names)}
        first = then.pop("0", SystemConfig())
        config = ModelConfig(config, attention=AttentionConfig(first.name, then=then))
    with section("model"), _option_errors("options", config.options):
        model = make_network(config.name, config.options, num_classes=num_classes)
    for key, chosen, system, options in _systems(config):  # all are checked first
        block = partial(system.make, **options)
        with _option_errors(f"{key}.options", options):
            model = system.attach(model, info(model), block, chosen.after, str(chosen.name))
    if config.edition > 1:
        _check_effect(model, config)
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.to(memory_format=layouts[parameter.ndim])
    return model


def _systems(
    config: ModelConfig,
) -> list[tuple[str, SystemConfig, AttentionSystem, dict[str, Any]]]:
    """Returns the key, the settings, the table entry and the options of each attention system."""
    if config.edition not in EDITIONS:
        raise ValueError(f"model.edition: got {config.edition}; choose 1 or 2")
    found, chosen = [], config.attention.systems
    for number, settings in enumerate(chosen):
        key = f"model.attention.{number}" if len(chosen) > 1 else "model.attention"
        if settings.name is None:
            raise ValueError(
                f"{key} has settings but no name; choose {key}.name from {', '.join(SYSTEMS)}"
            )
        name = one_of(f"{key}.name", settings.name, SYSTEMS)
        options = {_RENAMED_OPTIONS.get(old, old): x for old, x in settings.options.items()}
        check_options(f"{key}.options", SYSTEMS[name].make, options)
        found.append((key, settings, EDITIONS[config.edition][name], options))
    _check_heads("model.attention", [str(settings.name) for settings in chosen])
    return found


def split_systems(argument: str, names: str) -> list[str]:
    """Splits names such as "non_local+cbam" into a list, and checks them."""
    systems = [one_of(argument, name, SYSTEMS) for name in names.split("+")]
    _check_heads(argument, systems)
    return systems


@contextmanager
def _option_errors(key: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Turns errors of a constructor that gets options into ValueErrors, because the options of a
    recipe or a stored config may have values of any type."""
    try:
        yield
    except Exception as error:
        if not options or isinstance(error, ValueError | ImportError):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{key}: no network can be built with {dict(options)}: {reason}"
        ) from error


def _check_effect(model: nn.Module, config: ModelConfig) -> None:
    """Checks that the network's own dropout and consensus have an effect, if the recipe sets them.

    Some heads pool the stages and do not read the network's own pooled features.
    """
    if not any(getattr(module, "ignores_pooled", False) for module in model.modules()):
        return
    for option, neutral in (("dropout", 0.0), ("consensus", "mean")):
        value = config.options.get(option, neutral)
        if value != neutral:
            raise ValueError(
                f"model.options.{option}: got {value}; it has no effect, because this form of "
                f"the attention system does not read the pooled features; remove it"
            )


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
