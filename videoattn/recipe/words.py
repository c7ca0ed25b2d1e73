"""Reads the `key=value` words of the command line."""

import typing
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from videoattn.recipe.config import Config


def parse(word: str) -> dict[str, Any]:
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
