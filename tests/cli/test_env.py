"""`videoattn env` on one screen, and as JSON."""

import json
from pathlib import Path

import av
import pytest
import torch

from tests.cli.test_commands import command
from videoattn.data.decode import others


def test_it_fits_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("env") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 35
    assert f"torch         {torch.__version__}" in lines
    assert "GPUs          none" in lines
    assert any(line.startswith(f"decoders      pyav: {av.__version__}, with FFm") for line in lines)


def test_json_has_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VIDEOATTN_HOME", str(tmp_path))
    monkeypatch.setenv("VIDEOATTN_MIRROR", "http://me:secret@mirror:80/a@b")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/a.pth").write_bytes(b"0" * 1500)
    assert command("env", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["torch"] == torch.__version__
    assert found["cache"] == f"{tmp_path}/weights, 1 files, 1.5 kB"
    assert found["variables"]["VIDEOATTN_HOME"] == str(tmp_path)
    assert found["variables"]["VIDEOATTN_MIRROR"] == "http://...@mirror:80/a@b"
    assert found["bfloat16"]["CPU"].startswith(("in hardware", "not in hardware"))


def test_missing_decoders_come_with_the_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(decoder: str) -> None:
        raise ImportError("decoder decord is not installed; install the extra")

    monkeypatch.setattr("videoattn.cli.env.import_decoder", missing)
    assert command("env") == 0
    text = capsys.readouterr().out
    assert "decord: missing: decoder decord is not installed; install the extra" in text
    assert others.import_decoder is not missing
