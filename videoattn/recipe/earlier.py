"""Configs of earlier versions: keys with other names, and settings that they did not store."""

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]

_RENAMED = {"data": {"ucf101_split": "official_split"}}
"""Keys that had other names in earlier versions: section -> old -> new."""

_EARLIER: dict[str, dict[str, Any]] = {"clip": {"square_pixels": False}, "model": {"edition": 1}}
"""Settings that configs of earlier versions lack, with the values that those versions used."""


def renamed(values: Values, notes: list[str]) -> dict[str, Any]:
    """Replaces key names of earlier versions with the current ones."""
    current = dict(values)
    for section, names in _RENAMED.items():
        if isinstance(part := values.get(section), Mapping):
            current[section] = {names.get(key, key): value for key, value in part.items()}
            notes += [
                f"{section}.{old} is now called {section}.{new}"
                for old, new in names.items()
                if old in part
            ]
    return current


def with_earlier(values: Values) -> dict[str, Any]:
    """Returns a stored config, completed with settings that its version used but did not store."""
    filled = dict(values)
    for section, keys in _EARLIER.items():
        part = values.get(section, {})
        if isinstance(part, Mapping):
            filled[section] = {**keys, **part}
    return filled
