"""Helpers for error messages, which state the value, the allowed values, and the remedy."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, get_args


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns a hint such as " (did you mean layer2.1?)", or "" if no name is close."""
    near = get_close_matches(name, list(names), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def first_few(names: Iterable[str], count: int = 5) -> str:
    """Joins the first `count` names, as in "a, b, c, d, e and 3 more"; no names give "none"."""
    names = list(names)
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more or "none"


def one_of(argument: str, name: str, choices: Collection[str]) -> str:
    """Returns `name` if it is one of the choices.

    Raises:
        ValueError: If `name` is unknown; the message lists the choices and suggests the closest.
    """
    if name not in choices:
        hint = did_you_mean(name, choices)
        listed = ", ".join(choices) or "none"
        raise ValueError(f"{argument}: {name!r} does not exist{hint}; choose from {listed}")
    return name


def check_options(argument: str, make: Callable[..., object], options: Mapping[str, Any]) -> None:
    """Raises a ValueError if an option is not an optional argument of the constructor."""
    bound = make.keywords if isinstance(make, partial) else {}
    parameters = inspect.signature(make).parameters.values()
    known = [p.name for p in parameters if p.default is not p.empty and p.name not in bound]
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:  # **options: Unpack[a TypedDict]
            known += [name for t in get_args(parameter.annotation) for name in t.__annotations__]
    unknown = [name for name in options if name not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise ValueError(
            f"{argument}: unknown {unknown[0]!r}{hint}; it may be one of "
            f"{', '.join(known) or 'none'}"
        )
