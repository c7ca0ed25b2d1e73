"""Looking names and options up, with errors that say what exists."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """ " (did you mean layer2.1?)" of the nearest name; "" where none is near."""
    near = get_close_matches(name, list(names), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def first_few(names: Iterable[str], count: int = 5) -> str:
    """ "a, b, c, d, e and 3 more"; "none" of none."""
    names = list(names)
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more or "none"


def lookup(key: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        hint = did_you_mean(name, table)
        raise ValueError(f"{key}: {name!r} does not exist{hint}; choose from {', '.join(table)}")
    return table[name]


def check_options(key: str, make: Callable[..., object], options: Mapping[str, Any]) -> None:
    """Raises: ValueError for options that the constructor does not have."""
    bound = make.keywords if isinstance(make, partial) else {}
    parameters = inspect.signature(make).parameters.values()
    known = [p.name for p in parameters if p.default is not p.empty and p.name not in bound]
    unknown = [name for name in options if name not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise ValueError(
            f"{key}: unknown {unknown[0]!r}{hint}; it may be one of {', '.join(known) or 'none'}"
        )
