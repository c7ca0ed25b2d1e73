"""What the README says is there, is there; its Python runs."""

import re
import textwrap
from pathlib import Path

import pytest
import torch

from videoattn.cli.app import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"^    (?:.*-m )?videoattn (\S+)", TEXT, re.MULTILINE)))


def test_files_that_it_names_exist() -> None:
    named = set(re.findall(r"(?:configs|tools|data)/[\w./-]+\.(?:yaml|py|md|png)", TEXT))
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code in (None, 0)
    assert command in capsys.readouterr().out


def test_its_python_runs() -> None:
    code = textwrap.dedent(TEXT.partition("## In Python\n\n")[2].partition("\n\n`insert")[0])
    names: dict[str, object] = {"video": torch.randn(1, 3, 8, 64, 96)}
    for block in re.split(r"^(?=    maps\[)", code, flags=re.MULTILINE):
        exec(block, names)
    maps = names["maps"]
    assert isinstance(maps, dict)
    assert maps["layer2.1_non_local"].weights.shape == (1, 1, 4, 4, 6)
