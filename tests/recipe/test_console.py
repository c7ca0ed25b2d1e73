"""Text from strangers reaches the terminal as text."""

import os
import subprocess
import sys

import pytest

from videoattn.recipe.console import show, visible


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b/c d.mp4", "a b/c d.mp4"),
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x9b2J", "\\x9b2J"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("caf\udce9", "caf\\udce9"),
        ("跑步 café 👩\u200d🚀", "跑步 café 👩\u200d🚀"),
        (7, "7"),
    ],
)
def test_control_characters_become_visible(text: object, expected: str) -> None:
    assert visible(text) == expected


def test_nothing_is_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show("x[/foo] [red]y[/red] :smile: https://a.b")
    assert capsys.readouterr().out == "x[/foo] [red]y[/red] :smile: https://a.b\n"


def test_long_lines_are_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    show("x " * 500)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("columns", ["0", "10"])
def test_a_narrow_terminal_gets_whole_tables(columns: str) -> None:
    code = (
        "from videoattn.recipe.console import console\n"
        "from rich.table import Table\n"
        "table = Table('name', 'number')\n"
        "table.add_row('video accuracy', '98.76 %')\n"
        "console.print(table)"
    )
    environment = {**os.environ, "COLUMNS": columns}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "98.76 %" in printed


def test_a_terminal_of_another_encoding_gets_escapes() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    printed = subprocess.run(
        [sys.executable, "-c", "from videoattn.recipe.console import show; show('caf\\xe9')"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert printed == "caf\\xe9\n"
