"""Draws text in any script on a picture. One unit is one pixel; y points down."""

import re
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from PIL import Image

from videoattn.files import write_whole

Point = tuple[float | int, float | int]  # x, y

INK, SOFT, ACCENT, LINE = "#1d1d1f", "#6e6e73", "#00b4d8", "#d2d2d7"
FONT, TEXT_SIZE = "DejaVu Sans", 15  # matplotlib ships the font: pictures are the same anywhere
REPLACEMENT = "\ufffd"
PNG_LEVEL = 4  # zlib level: half the time of the default 6, for 6 % more bytes
_SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z])")
DOTS_PER_INCH = 72  # makes a point, matplotlib's unit for fonts and lines, one pixel


def canvas_axes(size: tuple[int, int]) -> Axes:
    """Returns axes that cover a new, transparent figure of (width, height) pixels."""
    width, height = size
    inches = (width / DOTS_PER_INCH, height / DOTS_PER_INCH)
    figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, facecolor="none")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    return axes


def write_png(path: Path, picture: Image.Image) -> None:
    """Writes a picture as a PNG file, complete or not at all."""
    write_whole(path, lambda file: picture.save(file, "PNG", compress_level=PNG_LEVEL))


def draw_over(picture: Image.Image, axes: Axes) -> Image.Image:
    """Returns a picture in RGB with the content of axes of the same size drawn over it."""
    canvas = axes.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    marks = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    return Image.alpha_composite(picture.convert("RGBA"), marks).convert("RGB")


def drawable(text: str, weight: str = "normal") -> tuple[str, list[str]]:
    """Returns the text that can be drawn, and the font families that draw it.

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
        char if char.isprintable() and ord(char) not in lacking else REPLACEMENT for char in text
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


def draw_text(
    axes: Axes,
    at: Point,
    text: str,
    *,
    size: int = TEXT_SIZE,
    color: str = INK,
    bold: bool = False,
    align: Literal["left", "center", "right"] = "left",
    room: float | int = float("inf"),
) -> float:
    """Draws text with its baseline at (x, y) and returns the x of its right end.

    Text wider than `room` pixels shrinks by at most a third, and is then cut with an ellipsis.
    Dollar signs are ordinary characters.
    """
    weight = "bold" if bold else "normal"
    text, families = drawable(text, weight)
    if not text or room < size:
        return float(at[0])
    # `Text.get_window_extent` measures hinted glyphs, up to 10 % off from what is drawn.
    font = FontProperties(family=families, weight=weight, size=size)
    width = _width(text, font)
    font.set_size(size * min(max(room / width, 2 / 3), 1))
    width = _width(text, font)
    while width > room:
        text = text.removesuffix("\u2026")[:-1].rstrip() + "\u2026"
        width = _width(text, font)
    left = at[0] - width * {"left": 0, "center": 0.5, "right": 1}[align]
    outline = [withStroke(linewidth=4, foreground="white")]
    drawn = axes.text(left, at[1], text, fontproperties=font, color=color, parse_math=False)
    drawn.set(path_effects=outline, zorder=6)
    return left + width


def wrapped(text: str, room: float | int) -> list[str]:
    """Returns sentences as one line, or as two if one is wider than `room` pixels."""
    shown, families = drawable(text.strip(), "normal")
    font = FontProperties(family=families, size=TEXT_SIZE)
    pairs = [[shown[: end.start()], shown[end.end() :]] for end in _SENTENCE_END.finditer(shown)]
    if not pairs or _width(shown, font) <= room:
        return [text]
    return min(pairs, key=lambda pair: max(_width(line, font) for line in pair))


def _width(text: str, font: FontProperties) -> float:
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])
