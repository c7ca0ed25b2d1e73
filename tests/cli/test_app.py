"""The `videoattn` command: help, imports and error messages."""

import inspect
import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from tests.cli.test_commands import command, refused
from videoattn.cli.app import COMMANDS, main
from videoattn.data.decode import DecodeError


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_begins_with_its_line_in_the_table(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(f"videoattn.cli.{name}")
    if hasattr(module, "command"):
        assert (inspect.getdoc(module.command) or "").splitlines()[0] == COMMANDS[name]
    assert command(name, "--help") == 0
    assert COMMANDS[name] in " ".join(capsys.readouterr().out.split())


def test_help_imports_no_command() -> None:
    code = (
        "import sys\nfrom videoattn.cli.app import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted(m for m in sys.modules if m.startswith('videoattn.cli')))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, modules, has_torch = done.stdout.splitlines()
    assert modules == "['videoattn.cli', 'videoattn.cli.app']"
    assert has_torch == "False"
    for name, line in COMMANDS.items():
        assert any(name in row and line in row for row in text)


@pytest.mark.parametrize("name", ["predict", "train"])
def test_a_command_does_not_import_what_it_does_not_use(name: str) -> None:
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"import_module('videoattn.cli.{name}')\n"
        "print([m for m in ('sklearn', 'matplotlib', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_wrong_command_suggests_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("trian") == 2
    assert "No such command 'trian' (did you mean train?)." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines \x1b]52;c;aGk=\x07"), "two lines \\x1b]52;c;aGk=\\x07"),
        (DecodeError("a.mp4", "is damaged"), "a.mp4: is damaged"),
        (MemoryError(), "an input is damaged or too large (out of memory)"),
        (RecursionError("too deep"), "an input is damaged or too large (too deep)"),
        (OSError(28, "No space left on device", "runs/a.png"), "runs/a.png: No space left on de"),
        (PermissionError(13, "Permission denied", b"caf\xe9"), "caf\\udce9: Permission denied"),
        (ValueError("a" * 9000 + "; choose b"), f"{'a' * 1493} [...] "),
        (torch.OutOfMemoryError("CUDA out of memory."), "CUDA out of memory.; use a smaller batch"),
        (RuntimeError("DefaultCPUAllocator: can't"), "DefaultCPUAllocator: can't; use a smaller"),
    ],
)
def test_errors_are_one_line(error: Exception, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("videoattn.cli.train.train", fail)
    assert refused("train", "recipe.yaml").startswith(f"error: {line}")


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object, **options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("videoattn.cli.train.train", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train", "recipe.yaml"])


def test_a_closed_pipe_is_silent() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "videoattn", "list", "weights"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""
