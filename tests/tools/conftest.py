"""Makes the scripts importable by their file names. Nothing in the package imports them."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path += [str(TOOLS), str(TOOLS / "bench")]

Table = list[dict[str, str]]
Tables = Callable[[], list[Table]]


@pytest.fixture
def tables(capsys: pytest.CaptureFixture[str]) -> Tables:
    """Returns a function that parses the Markdown tables printed so far."""

    def parse() -> list[Table]:
        text = capsys.readouterr().out
        found = []
        for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            head, _, *rows = (
                [cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()
            )
            found.append([dict(zip(head, row, strict=True)) for row in rows])
        return found

    return parse
