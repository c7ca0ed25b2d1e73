"""Prints lines for people, without markup and with control characters made visible."""

import re

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


def visible(text: str) -> str:
    r"""Returns text with control characters written as escapes, such as \x1b.

    Class names, paths and error messages may come from strangers, and a terminal obeys some control
    characters.
    """
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def show(text: str) -> None:
    """Prints a line."""
    console.print(visible(text), markup=False)
