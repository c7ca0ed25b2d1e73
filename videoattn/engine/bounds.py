"""Limits of the metadata in a checkpoint, which may be somebody else's."""

from collections.abc import Mapping

MAX_JSON_BYTES = 2**24
"""Largest config.json, and largest text in the metadata of weights: 16 MiB."""
MAX_VALUES, MAX_DEPTH = 1_000_000, 32
"""Most values in the metadata, all nested ones together, and how deep they may be nested."""


def check_bounds(values: object, source: str, most: int = MAX_VALUES) -> None:
    """Checks the number of values in nested containers; a shared value counts each time.

    Raises:
        ValueError: If there are more than `most`, or they are nested deeper than `MAX_DEPTH`.
    """
    count, left = 0, [(values, 0)]
    while left:
        value, depth = left.pop()
        count += 1
        if count > most or depth > MAX_DEPTH:
            raise ValueError(
                f"{source} is damaged or too large; the limit is {most:,} values, nested "
                f"{MAX_DEPTH} deep"
            )
        if isinstance(value, Mapping):
            left += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple):
            left += [(item, depth + 1) for item in value]
