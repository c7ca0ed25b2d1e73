"""Text in scripts that the font of matplotlib lacks. Warnings are errors in tests."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import matplotlib.font_manager
import numpy as np
import pytest
from PIL import Image

from videoattn.cli.report import draw_confusion
from videoattn.explain import text
from videoattn.explain.text import FONT, canvas_axes, draw_over, draw_text, drawable

SCRIPT_P = "\U0001d4ab"  # STIXGeneral, which ships with matplotlib, has it
UNASSIGNED = "\U000e1234"
NAMES = [
    "café",
    "žába",
    "跑步",
    "चलना",
    "🏃\u200d♀️",
    f"a{SCRIPT_P}b",
    f"x{UNASSIGNED}",
    "$a",
    "\x1b[2J",
]


@pytest.mark.parametrize(
    ("text", "expected", "families"),
    [
        ("", "", [FONT]),
        ("Straße 3, žába", "Straße 3, žába", [FONT]),
        (f"a{UNASSIGNED}", "a\ufffd", [FONT]),
        ("a\x1b\n", "a\ufffd\ufffd", [FONT]),
    ],
)
def test_fonts_of_a_text(text: str, expected: str, families: list[str]) -> None:
    assert drawable(text) == (expected, families)


@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_an_installed_font_draws_what_the_first_lacks(weight: str) -> None:
    text, families = drawable(f"{SCRIPT_P}{UNASSIGNED}", weight)
    assert families[0] == FONT
    assert weight == "bold" or (text == f"{SCRIPT_P}\ufffd" and len(families) == 2)


def test_fonts_that_cannot_be_read_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    real = matplotlib.font_manager.fontManager
    manager = Mock(ttflist=[SimpleNamespace(name="Broken")])
    manager.findfont = lambda p: real.findfont(p) if FONT in p.get_family() else str(broken)
    monkeypatch.setattr(text, "fontManager", manager)
    text._other_families.cache_clear()
    assert drawable("跑") == ("\ufffd", [FONT])
    text._other_families.cache_clear()
    text._characters.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_drawn_without_warnings(tmp_path: Path, name: str) -> None:
    axes = canvas_axes((200, 60))
    draw_text(axes, (10, 30), name, bold=True, room=150)
    drawn = np.asarray(draw_over(Image.new("RGB", (200, 60), "white"), axes))
    assert (drawn < 100).any()
    draw_confusion(tmp_path / "c.png", np.eye(2, dtype=int), [name, "b"])
    assert (tmp_path / "c.png").stat().st_size > 1000
