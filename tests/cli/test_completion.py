"""What shells complete, and that they need no torch for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from videoattn.cli.app import COMMANDS
from videoattn.weights import PUBLIC


def completed(words: str, folder: Path) -> list[str]:
    """Returns what bash offers after the words, and checks that torch is not imported."""
    code = (
        "import sys\nfrom videoattn.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    asked = {
        "_VIDEOATTN_COMPLETE": "complete_bash",
        "COMP_WORDS": f"videoattn {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", list(COMMANDS)),
        ("pre", ["predict", "prepare"]),
        ("predict ", ["runs/demo/moving", "runs/mine", *PUBLIC]),
        ("test runs/m", ["runs/mine"]),
        ("export pytorchvideo/", [name for name in PUBLIC if name.startswith("pytorchvideo/")]),
        ("convert hass", ["hassony2/i3d_rgb"]),
        ("convert file --as nonlocal/c2d_n", ["nonlocal/c2d_nonlocal_8x8"]),
        ("train fine", ["finetune_ucf101_11"]),
        ("list ", ["attention", "weights"]),
        ("prepare re", ["reencode"]),
        ("tasks t", ["truth"]),
        ("predict runs/mine ", []),  # a file
    ],
)  # fmt: skip
def test_completions(words: str, expected: list[str], tmp_path: Path) -> None:
    for run in ("runs/mine/checkpoint-last.pt", "runs/demo/moving/model.safetensors"):
        (tmp_path / run).parent.mkdir(parents=True)
        (tmp_path / run).touch()
    (tmp_path / "runs/notes").mkdir()
    assert completed(words, tmp_path) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed(shell: str, tmp_path: Path) -> None:
    """The name of the shell is an argument only in tests; otherwise the shell is detected."""
    done = subprocess.run(
        [sys.executable, "-m", "videoattn", "--install-completion", shell],
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
        },
        check=True,
        capture_output=True,
        text=True,
    )
    assert f"{shell} completion installed in {tmp_path}" in done.stdout
    scripts = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_VIDEOATTN_COMPLETE" in path.read_text() for path in scripts)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_shell_is_detected(tmp_path: Path) -> None:
    words = f"'{sys.executable}' -m videoattn --install-completion; true"
    done = subprocess.run(
        ["bash", "-c", words], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True,
        check=True, text=True,
    )  # fmt: skip
    assert "bash completion installed" in done.stdout
