"""Limits the size of the metadata in a checkpoint, which may be from an untrusted source."""

from collections.abc import Mapping

MAX_JSON_BYTES = 2**24
"""Largest config.json, and largest text in the metadata of a safetensors file: 16 MiB."""
MAX_VALUES, MAX_DEPTH = 1_000_000, 32
"""Largest number of values in the metadata, nested ones included, and largest nesting depth."""


def check_bounds(values: object, source: str, most: int = MAX_VALUES) -> None:
    """Checks the number and the nesting depth of values; a repeated container counts each time.

    Raises:
        ValueError: If there are more than `most` values, or one is deeper than `MAX_DEPTH`.
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
