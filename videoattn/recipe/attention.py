"""Reads and writes `model.attention` of a recipe: one attention system or a list of them.

A `Config` stores the first system of a list directly, and the others by number in `then`. On the
command line, `model.attention.name=cbam` and `model.attention=[non_local,cbam]` choose systems, and
`model.attention.1.after=[layer3.1]` changes the second system of a list. If the recipe already has
the chosen system, its positions and options are kept; those of other systems are dropped.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Values = Mapping[str, Any]


def changes(
    recipe: Values, words: Sequence[tuple[str, Values]], source: str, notes: list[str]
) -> Iterator[tuple[str, Values]]:
    """Yields (source, settings) of a recipe and of its overrides, in the order of merging.

    Args:
        words: The overrides of the command line as typed, with their settings.
        source: The name of the recipe in messages.
        notes: Receives a sentence about settings that are dropped.
    """
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


def _attention(values: Values) -> Any:
    model = values.get("model")
    return model.get("attention", {}) if isinstance(model, Mapping) else {}


def _systems(attention: Any, source: str) -> list[Values]:
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
    """Returns an override with the settings of a numbered system at their place in a `Config`."""
    attention = _attention(change)
    if "then" in attention:
        raise ValueError(f"{word}: unknown key 'model.attention.then'; number the system instead")
    key = next((key for key in attention if str(key).isdigit()), None)
    if key is not None and len(attention) > 1:
        raise ValueError(f"{word}: changes several settings; change one system in each word")
    if key is None:
        if attention and count > 1 and "name" not in attention:
            raise ValueError(
                f"{word}: the recipe has {count} attention systems; give the number of "
                f"one, from 0, as in {word.replace('attention.', 'attention.0.', 1)}"
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
