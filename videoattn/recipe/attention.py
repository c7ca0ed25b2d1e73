"""Reads `key=value` words, and reads, checks and writes `model.attention`: one system or a list.

A `Config` stores the first system of a list directly, and the others by number in `then`. On the
command line, `model.attention.name=cbam` and `model.attention=[non_local,cbam]` choose systems, and
`model.attention.1.after=[layer3.1]` changes the second system of a list. If the recipe already has
the chosen system, its positions and options are kept; those of other systems are dropped.
"""

import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from videoattn.attention.systems import EDITIONS, SYSTEMS, AttentionSystem
from videoattn.errors import check_options, one_of
from videoattn.recipe.config import Config, ModelConfig, SystemConfig

Values = Mapping[str, Any]

_RENAMED_OPTIONS = {"normaliser": "normalizer"}
"""Options that had other names in earlier versions: old -> new."""


def changes(
    recipe: Values, overrides: Sequence[str], source: str, notes: list[str]
) -> Iterator[tuple[str, Values]]:
    """Yields the settings of a recipe and its overrides, in the order of merging, with the source
    of each.

    Args:
        source: The name of the recipe in messages.
        notes: Receives a sentence about settings that are dropped.
    """
    words = [(word, _parse(word)) for word in overrides]
    asked = [(word, _attention(change)) for word, change in words]
    choices = [(w, one) for w, one in asked if not isinstance(one, Mapping) or "name" in one]
    systems, origin = _systems(_attention(recipe), source), source
    lists = [word for word, chosen in choices if not isinstance(chosen, Mapping)]
    if len(choices) > 1 and lists:
        raise ValueError(f"{lists[-1]}: other words choose the attention too; leave them out")
    if lists:
        origin, chosen = choices[0]
        systems = _kept(systems, _systems(chosen, origin), notes)
    elif choices:
        systems = _kept(systems, [{"name": choices[-1][1]["name"]}], notes)
    if isinstance(model := recipe.get("model"), Mapping):
        recipe = {**recipe, "model": {**model, "attention": {}}}
    yield source, recipe
    others = {str(number): system for number, system in enumerate(systems)}
    first = others.pop("0", {})
    yield origin, {"model": {"attention": {**first, "then": others}}}
    for word, change in words:
        if word not in lists:
            yield word, _numbered(change, len(systems), word)


def as_written(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns all settings, with `model.attention` in the form of a recipe."""
    attention = dict(settings["model"]["attention"])
    others = attention.pop("then")
    systems = [attention, *(others[number] for number in sorted(others, key=int))]
    return {
        **settings,
        "model": {**settings["model"], "attention": systems if others else attention},
    }


def systems_of(
    config: ModelConfig,
) -> Iterator[tuple[str, SystemConfig, AttentionSystem, dict[str, Any]]]:
    """Yields the key, the settings, the row and the options of each attention system."""
    if config.edition not in EDITIONS:
        raise ValueError(f"model.edition: got {config.edition}; choose 1 or 2")
    chosen = config.attention.systems
    for number, settings in enumerate(chosen):
        key = f"model.attention.{number}" if len(chosen) > 1 else "model.attention"
        if settings.name is None:
            raise ValueError(
                f"{key} has settings but no name; choose {key}.name from {', '.join(SYSTEMS)}"
            )
        name = one_of(f"{key}.name", settings.name, SYSTEMS)
        options = {_RENAMED_OPTIONS.get(old, old): x for old, x in settings.options.items()}
        check_options(f"{key}.options", SYSTEMS[name].make, options)
        yield key, settings, EDITIONS[config.edition][name], options
    _check_heads("model.attention", [str(settings.name) for settings in chosen])


def split_systems(argument: str, names: str) -> list[str]:
    """Returns the systems of "non_local+cbam"."""
    systems = [one_of(argument, name, SYSTEMS) for name in names.split("+")]
    _check_heads(argument, systems)
    return systems


@contextmanager
def option_errors(key: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Raises any error of a constructor with options as a ValueError: the options of a recipe or a
    stored config may have values of any type."""
    try:
        yield
    except Exception as error:
        if not options or isinstance(error, ValueError | ImportError):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{key}: no network can be built with {dict(options)}: {reason}"
        ) from error


def check_effect(model: nn.Module, config: ModelConfig) -> None:
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


def _parse(word: str) -> dict[str, Any]:
    """Parses `key=value`: a text field takes the value as typed, other fields parse it as YAML."""
    key, equals, text = word.partition("=")
    if not equals:
        raise ValueError(f"override {word!r} is not key=value, as in train.lr=0.02")
    types = _types_of(key)
    is_text = all(t in (str, NoneType) or typing.get_origin(t) is Literal for t in types)
    is_null = text == "null" and NoneType in types
    # The value of another key, ${key}, is inserted later, or refused.
    if (is_text and not is_null) or "${" in text:
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
            text = text[1:-1]
        value: Any = text
        for name in reversed(key.split(".")):
            value = {name: value}
        assert isinstance(value, dict)
        return value
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([word]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"override {word!r}: {text!r} is not a value ({reason})") from error
    assert isinstance(parsed, dict)
    return {str(name): item for name, item in parsed.items()}


def _types_of(key: str) -> tuple[Any, ...]:
    """Returns the types that a field may have; (None,) for an unknown key."""
    found: Any = Config
    for name in key.split("."):
        found = {f.name: f.type for f in fields(found)}.get(name) if is_dataclass(found) else None
    is_union = typing.get_origin(found) in (UnionType, typing.Union)
    return typing.get_args(found) if is_union else (found,)


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


def _attention(values: Values) -> Any:
    model = values.get("model")
    return model.get("attention", {}) if isinstance(model, Mapping) else {}


def _systems(attention: Any, source: str) -> list[Values]:
    """Returns the settings of each system."""
    listed = attention if isinstance(attention, list) else [attention] if attention else []
    systems: list[Values] = []
    for system in listed:
        is_name = isinstance(system, str) and listed is attention
        found = {"name": system} if is_name else system
        if not isinstance(found, Mapping) or "then" in found:
            raise ValueError(
                f"{source}: model.attention: got {system!r}; need name, after and options, or a "
                "list of systems, as in [non_local, {name: cbam, after: [layer3.1]}]"
            )
        systems.append(found)
    return systems


def _kept(old: Sequence[Values], new: Sequence[Values], notes: list[str]) -> list[Values]:
    """Returns the new systems. A system given only by name keeps its old settings."""
    names: list[Any] = [system.get("name") for system in new]
    for system in old:
        dropped = [key for key in ("after", "options") if system.get(key)]
        if dropped and system.get("name") not in names:
            chosen = " and ".join(name or "null" for name in names)
            notes.append(
                f"model.attention.{' and '.join(dropped)} of the recipe belong to "
                f"{system.get('name')} and are not used with {chosen}"
            )
    return [
        next((o for o in old if len(system) == 1 and o.get("name") == system.get("name")), system)
        for system in new
    ]


def _numbered(change: Values, count: int, word: str) -> Values:
    """Moves the settings of a numbered system to their place in a `Config`."""
    attention = _attention(change)
    if "then" in attention:
        raise ValueError(f"{word}: unknown key 'model.attention.then'; number the system instead")
    key = next((key for key in attention if str(key).isdigit()), None)
    if key is not None and len(attention) > 1:
        raise ValueError(f"{word}: changes several settings; number one system in each word")
    if key is None:
        if attention and count > 1 and "name" not in attention:
            raise ValueError(
                f"{word}: the recipe has {count} attention systems; number one, from 0, as in "
                f"{word.replace('attention.', 'attention.0.', 1)}"
            )
        return change
    number = int(key)
    if number >= count:
        raise ValueError(
            f"{word}: the recipe has {count} attention systems, numbered from 0; add one in the "
            "recipe's list"
        )
    placed = {"then": {str(number): attention[key]}} if number else attention[key]
    return {"model": {"attention": placed}}
