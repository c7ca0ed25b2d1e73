"""Fonts for class and file names in any script."""

from functools import cache

from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font

FONT = "DejaVu Sans"  # ships with matplotlib: pictures look the same on every machine
_REPLACEMENT = "\ufffd"


def drawable(text: str, weight: str = "normal") -> tuple[str, list[str]]:
    """Returns the text and the font families that draw it.

    Other installed fonts draw the characters that DejaVu Sans lacks. Control characters, and those
    that no font has, are replaced; matplotlib would print a warning for each.
    """
    families = [FONT]
    lacking = {ord(char) for char in text} - _characters(FONT, weight)
    while lacking:
        best = max(_other_families(), key=lambda name: len(lacking & _characters(name, weight)))
        if not lacking & _characters(best, weight):
            break
        families.append(best)
        lacking -= _characters(best, weight)
    return "".join(
        char if char.isprintable() and ord(char) not in lacking else _REPLACEMENT for char in text
    ), families


@cache
def _other_families() -> list[str]:
    # The font "Last Resort" has a box for every character.
    names = {entry.name for entry in fontManager.ttflist}
    return sorted(name for name in names if name != FONT and not name.startswith("Last Resort"))


@cache
def _characters(family: str, weight: str) -> frozenset[int]:
    try:
        font = FT2Font(fontManager.findfont(FontProperties(family=family, weight=weight)))
    except (OSError, RuntimeError, ValueError):  # deleted, or not a font that matplotlib reads
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
