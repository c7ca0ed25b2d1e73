"""Reads recipes (YAML) and the configs stored in checkpoints, and writes them.

A recipe is a file that the user names. It is trusted, except that it cannot run a command or read
the environment: only `${key}` is resolved, and `pipe:` addresses must be typed on the command line.

A stored config is in a run folder or a checkpoint, perhaps from somebody else. Only its description
of the network and the preprocessing is used. Its data section and `model.weights` are ignored, and
interpolations are refused.
"""

import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf import errors as omega
from omegaconf.errors import OmegaConfBaseException

from videoattn.engine.bounds import check_bounds
from videoattn.errors import did_you_mean
from videoattn.recipe import stored
from videoattn.recipe.attention import as_written, changes
from videoattn.recipe.config import Config, limits
from videoattn.recipe.packaged import find_file

Values = Mapping[str, Any]

_PLAIN_KEY = re.compile(r"\$\{[A-Za-z_][\w.]*\}")


def load(
    recipe: str | Path | Values, overrides: Sequence[str] = (), *, notes: list[str] | None = None
) -> Config:
    """Reads a recipe and applies overrides: `train.lr=0.02`; `model.options={}` removes options.

    Args:
        recipe: A YAML file, the bare name of one (see `find_file`), or its content as nested
            dictionaries.
        notes: Receives a sentence for each setting that was renamed or dropped.

    Raises:
        ValueError: If the file does not exist or is not YAML, a key is unknown, a value is missing,
            has the wrong type or is too small, or the name is not a file name.
    """
    values, source = recipe, "the recipe"
    if not isinstance(recipe, Mapping):
        source = str(file := find_file("recipe", recipe))
        values = read_yaml(file)
    if stored.is_stored(values):
        values = stored.with_earlier(values)
    for key, text in _texts(values):
        if text.startswith("pipe:"):
            raise ValueError(
                f"{source}: {key}: a recipe cannot run a command; type it on the command line, as "
                f"in {key}={text!r}"
            )
    return _merge(values, overrides, source, notes if notes is not None else [])


def from_stored(
    values: object, data: Values | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Returns the config that a checkpoint or a shared folder holds.

    Its data section and `model.weights` are not used: the defaults replace them, with a `data.root`
    of "".

    Args:
        data: A data section to use instead, from a source that the user controls.
        overrides: `key=value` words that the user typed.

    Raises:
        ValueError: As for `load`, or if the config holds an interpolation or exceeds a limit.
    """
    source = "the checkpoint's config"
    if not isinstance(values, Mapping):
        raise ValueError(f"{source} is damaged: it is not a mapping of keys to values")
    check_bounds(values, source, stored.MAX_SETTINGS)
    kept = shareable(values)
    for key, text in _texts(kept):
        if "${" in text:
            raise ValueError(f"{source}: {key} holds an interpolation, {text!r}; remove it")
    kept = stored.with_earlier(kept)
    config = _merge({**kept, "data": {"root": "", **(data or {})}}, overrides, source, [])
    stored.check_stored(config, source, overrides)
    return config


def comparable(values: Values) -> dict[str, Any]:
    """Returns all settings of a stored config as plain values, with the defaults of newer keys.
    Interpolations are not resolved: the values are only for comparison.

    Raises:
        ValueError: If the settings are damaged, too many, or of another version.
    """
    source = "the checkpoint's config"
    check_bounds(values, source, stored.MAX_SETTINGS)
    merged = OmegaConf.structured(Config)
    try:
        for _, change in changes(stored.with_earlier(stored.renamed(values, [])), [], source, []):
            merged = OmegaConf.merge(merged, change)
    except (OmegaConfBaseException, TypeError) as error:
        raise ValueError(f"the config is of another version or damaged: {error}") from error
    settings: Any = OmegaConf.to_container(merged, resolve=False, enum_to_str=True)
    return as_written(_plain(settings))  # turns tuples into lists


def shareable(values: Values) -> dict[str, Any]:
    """Returns a config without settings of one machine: the data section, and the weights that
    training started from."""
    kept = {key: value for key, value in values.items() if key != "data"}
    model = values.get("model")
    if isinstance(model, Mapping):
        kept["model"] = {key: value for key, value in model.items() if key != "weights"}
    return kept


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the config as plain dictionaries, lists, numbers and strings."""
    return as_written(_plain(asdict(config)))


def to_yaml(config: Config) -> str:
    """Returns the whole config as a recipe, from which `load` reads an equal config."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def read_yaml(path: Path) -> Any:
    """Returns the content of a YAML file, without resolving interpolations (`${key}`)."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:  # the second: NUL and others
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{path} is not a recipe: {_reason(error)}") from error
    except OSError as error:  # OmegaConf raises this for a file of one word or number
        raise ValueError(f"{path} is not a recipe: {error}") from error


def _parse(word: str) -> dict[str, Any]:
    """Parses `key=value` into nested dictionaries. A text field takes the value as typed; for other
    fields it is parsed as YAML."""
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
        typed = OmegaConf.from_dotlist([word])
        parsed = OmegaConf.to_container(typed)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"override {word!r}: {text!r} is not a value ({reason})") from error
    if any(map(is_dataclass, types)) and OmegaConf.select(typed, key) == {}:
        raise ValueError(f"override {word!r}: {key} is a section; change its keys, one by one")
    assert isinstance(parsed, dict)
    return {str(name): item for name, item in parsed.items()}


def _types_of(key: str) -> tuple[Any, ...]:
    """Returns the types that a field may have; (None,) for an unknown key."""
    found: Any = Config
    for name in key.split("."):
        found = {f.name: f.type for f in fields(found)}.get(name) if is_dataclass(found) else None
    is_union = typing.get_origin(found) in (UnionType, typing.Union)
    return typing.get_args(found) if is_union else (found,)


def _merge(values: Any, overrides: Sequence[str], source: str, notes: list[str]) -> Config:
    if not isinstance(values, Mapping):
        raise ValueError(f"{source} is not a recipe; need lines of key: value")
    merged = OmegaConf.structured(Config)
    words = [(word, _parse(word)) for word in overrides]
    sources: list[tuple[str, Values]] = []
    for word, change in changes(stored.renamed(values, notes), words, source, notes):
        if word in overrides:
            sources = [(name, _without(earlier, change)) for name, earlier in sources]
        sources.append((word, change))
    for word, change in sources:
        for key, text in _texts(change):
            if "${" in _PLAIN_KEY.sub("", text):
                raise ValueError(
                    f"{word}: {key}: got {text!r}; only the value of another key can be inserted, "
                    "as in ${train.lr}"
                )
        stored.check_lists(change, word)
        try:
            merged = OmegaConf.merge(merged, change)
        except (omega.ConfigAttributeError, omega.ConfigKeyError) as error:
            raise ValueError(_unknown_key(error, word)) from error
        except OmegaConfBaseException as error:
            raise ValueError(f"{word}: {_reason(error)}") from error
        except TypeError as error:  # a list where a mapping belongs, or the reverse
            raise ValueError(f"{word}: {error}") from error
    try:
        config = OmegaConf.to_object(merged)
    except omega.MissingMandatoryValue as error:
        raise ValueError(
            f"{source}: {error.full_key} has no value; give one, as in {error.full_key}=..."
        ) from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{source}: {_reason(error)}") from error
    assert isinstance(config, Config)
    _check_values(config)
    return _without_tilde(config)


def _without(settings: Any, change: Any) -> Any:
    """Returns settings without the mappings that a change such as `model.options={}` empties,
    because merging an empty mapping changes nothing."""
    if not (isinstance(settings, Mapping) and isinstance(change, Mapping)):
        return settings
    kept = {key: value for key, value in settings.items() if change.get(key) != {}}
    return {key: _without(value, change.get(key)) for key, value in kept.items()}


def _check_values(config: Config) -> None:
    for key, least in limits("at_least").items():
        value = attrgetter(key)(config)
        if value is not None and not value >= least:  # also refuses NaN
            raise ValueError(f"{key}: got {value}; need at least {least}")
    if config.train.patience is not None and not config.train.validate_every:
        raise ValueError("train.patience needs validations; set train.validate_every, or remove it")
    name = config.name
    if name in ("", ".", "..") or re.search(r"[/\\\x00-\x1f\x7f]", name) or len(name) > 100:
        raise ValueError(
            f"name: got {name!r}; need the name of a folder in runs/: at most 100 characters, "
            "without / and \\"
        )


def _without_tilde(config: Config) -> Config:
    """Expands a leading "~" in paths, because a shell does not expand `data.root=~/clips`."""
    data, weights = config.data, config.model.weights
    names = ("root", "train_split", "test_split", "class_list")
    paths = {name: getattr(data, name) for name in names}
    data = replace(data, **{n: os.path.expanduser(path) for n, path in paths.items() if path})
    model = replace(config.model, weights=weights and os.path.expanduser(weights))
    return replace(config, data=data, model=model)


def _texts(value: Any) -> Iterator[tuple[str, str]]:
    """Returns an iterator over (dotted key, text) of every text in nested containers."""
    return ((key, text) for key, text in stored.leaves(value) if isinstance(text, str))


def _unknown_key(error: OmegaConfBaseException, source: str) -> str:
    full_key = str(error.full_key)
    parent: Any = Config
    for part in full_key.split(".")[:-1]:
        found = {f.name: f.type for f in fields(parent)}.get(part)
        if is_dataclass(found):  # the keys of `then` are numbers, and a text has none
            parent = found
    names = [f.name for f in fields(parent) if f.name != "then"]
    key = full_key.rpartition(".")[2]
    hint = did_you_mean(key, names)
    return f"{source}: unknown key {_typed(full_key)!r}{hint}; it may be one of {', '.join(names)}"


def _reason(error: OmegaConfBaseException) -> str:
    reason = str(error).split("\n")[0]
    return f"{_typed(error.full_key)}: {reason}" if error.full_key else reason


def _typed(full_key: object) -> str:
    """Returns a key as the user types it, such as model.attention.1.after."""
    return str(full_key).replace("attention.then.", "attention.")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
