"""Configs of earlier versions: keys with other names, and settings that they did not store."""

from collections.abc import Mapping
from typing import Any, TypeGuard

Values = Mapping[str, Any]

_RENAMED = {"data": {"ucf101_split": "official_split"}}
"""Keys that had other names in earlier versions: section -> old -> new."""

_EARLIER: dict[str, dict[str, Any]] = {"clip": {"square_pixels": False}, "model": {"edition": 1}}
"""Settings that configs of earlier versions lack, with the values that those versions used."""


_STORED = {
    "model": {"name", "options", "weights", "attention"},
    "train": {"num_epochs", "clip_norm", "label_smoothing", "precision", "auxiliary_weights"},
}
"""Keys that the config.yaml of a run has in every version, and that no recipe lists together."""


def is_stored(values: object) -> TypeGuard[Values]:
    """Returns whether a config is that of a run, with every setting of its version."""
    if not isinstance(values, Mapping) or "seed" not in values:
        return False
    parts = {name: values.get(name) for name in _STORED}
    return all(
        isinstance(part, Mapping) and _STORED[name] <= set(part) for name, part in parts.items()
    )


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
