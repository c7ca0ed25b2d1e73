"""Parses `key=value` words of the command line."""

import types
import typing
from dataclasses import fields
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from videoattn.recipe.config import Config


def parse_override(word: str) -> dict[str, Any]:
    """Parses `key=value`: a text field takes the value as typed, other fields parse it as YAML."""
    key, equals, text = word.partition("=")
    if not equals:
        raise ValueError(f"override {word!r} is not key=value, as in train.lr=0.02")
    is_text = _is_text_field(key) and not (text == "null" and _is_optional(key))
    if is_text or "${" in text:  # another key's value is inserted later, or refused
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


def _field_type(key: str) -> Any:
    found: Any = Config
    for name in key.split("."):
        hints = {field.name: field.type for field in fields(found)} if _is_section(found) else {}
        found = hints.get(name)
    return found


def _is_section(value: object) -> bool:
    return isinstance(value, type) and hasattr(value, "__dataclass_fields__")


def _is_text_field(key: str) -> bool:
    found = _field_type(key)
    is_union = typing.get_origin(found) in (types.UnionType, typing.Union)
    options = typing.get_args(found) if is_union else (found,)
    return all(
        option in (str, type(None)) or typing.get_origin(option) is Literal for option in options
    )


def _is_optional(key: str) -> bool:
    found = _field_type(key)
    return isinstance(found, types.UnionType) and type(None) in typing.get_args(found)
