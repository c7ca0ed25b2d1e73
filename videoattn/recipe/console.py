"""Prints results on the terminal.

Class names, paths and error messages may come from strangers. Their control characters are made
visible, because a terminal would execute them. They are never read as rich markup.
"""

import unicodedata
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

MIN_WIDTH = 60
"""Tables are drawn for at least this many columns. A narrower terminal wraps their lines."""

_CONTROL = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"
"""Zero-width joiner and non-joiner, which some writing systems and emoji need."""

console = Console(highlight=False, soft_wrap=True)
if console.width < MIN_WIDTH:
    console.width = MIN_WIDTH


def visible(text: object) -> str:
    r"""Returns `str(text)` on one line: control characters, and characters that the terminal cannot
    encode, become escapes such as `\x1b`."""
    escaped = "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in _CONTROL and char not in _JOINERS
        else char
        for char in str(text)
    )
    return escaped.encode(console.encoding, "backslashreplace").decode(console.encoding)


def show(text: object) -> None:
    """Prints one line, as `visible` returns it."""
    console.print(Text(visible(text)))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table, with a line break at its end."""
    lines = (columns, ["---"] * len(columns), *rows)
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)
