"""Checks and updates stored configs, which may be of earlier versions or from strangers.

Except for `check_lists`, the limits do not apply to recipes, nor to values that the user types.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from operator import attrgetter
from typing import Any, TypeGuard

from videoattn.recipe.config import Config, limits

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

MAX_SETTINGS = 10_000
"""The largest number of values in a config, nested ones included."""

MAX_SYSTEMS = 16
"""Largest number of attention systems. Each is built before the weights are read."""

MAX_PIXELS = 2**30
"""Most pixels in all views of a video, and in a batch of views: 3 GiB as uint8 RGB."""

MAX_OPTION = 4096
"""Largest number among the options of the network and of its attention system: an option may be a
number of layers, which are made one by one."""

_SIZE = {"clip.num_frames", "clip.height", "clip.width", "test.height", "test.width"}


def check_stored(config: Config, source: str, overrides: Sequence[str]) -> None:
    """Raises a ValueError if a number of a stored config, or a product of numbers, exceeds its
    limit. No limit applies to numbers that the user typed."""
    if (count := len(config.model.attention.systems)) > MAX_SYSTEMS:
        raise ValueError(
            f"{source}: model.attention: got {count} systems; the limit is {MAX_SYSTEMS}"
        )
    typed = {word.partition("=")[0] for word in overrides}
    for key, most in limits("at_most").items():
        value = attrgetter(key)(config)
        if value is not None and value > most and key not in typed:
            raise ValueError(
                f"{source}: {key}: got {value}; the limit is {most}, unless you type the value"
            )
    model = config.model
    options = {"model.options": model.options, "model.attention.options": model.attention.options}
    for number, system in model.attention.then.items():
        options[f"model.attention.{number}.options"] = system.options
    for key, values in options.items():
        found = (value for _, value in leaves(values) if isinstance(value, int | float))
        numbers = [number for number in found if number > MAX_OPTION]
        if numbers and not any(word.startswith(key) for word in typed):
            raise ValueError(
                f"{source}: {key}: got {numbers[0]}; the limit is {MAX_OPTION:,}, unless you type "
                "the value"
            )
    clip, test = config.clip, config.test
    views = test.num_clips * max(test.num_crops, 1) * (2 if test.twice_sample else 1)
    size = prod((clip.num_frames, *config.test_size))
    products = {
        "test.num_clips": ("views of a video (test.num_clips times test.num_crops)", views),
        "test.batch_size": ("views in a batch (test.batch_size)", test.batch_size),
    }
    for key, (what, count) in products.items():
        if count * size > MAX_PIXELS and not typed & {key, *_SIZE}:
            raise ValueError(
                f"{source}: {count} {what} of {clip.num_frames} frames have {count * size:,} "
                f"pixels; the limit is {MAX_PIXELS:,}, unless you type {key}=..."
            )


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of nested containers, and (dotted parent, key) of text keys."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}" if key else str(name))
            if isinstance(name, str):
                yield key, name
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item, key)
    else:
        yield key, value


def check_lists(values: Any, source: str, key: str = "") -> None:
    """Raises a ValueError if a list outside of options holds lists or mappings."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            if name != "options":
                check_lists(value, source, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list) and any(isinstance(item, list | Mapping) for item in values):
        raise ValueError(f"{source}: {key}: got {values}; need a list of single values")


def is_stored(values: object) -> TypeGuard[Values]:
    """Returns whether a config is that of a run, with every setting of its version."""
    if not isinstance(values, Mapping) or "seed" not in values:
        return False
    return all(
        isinstance(part := values.get(name), Mapping) and keys <= set(part)
        for name, keys in _STORED.items()
    )


def renamed(values: Values, notes: list[str]) -> dict[str, Any]:
    """Returns a config with the current names of renamed keys, and adds a note on each."""
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
