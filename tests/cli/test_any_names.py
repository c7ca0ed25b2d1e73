"""File and class names of any bytes, in every command that prints or stores them."""

import json
import os
from pathlib import Path

import pytest

from tests.cli.test_commands import RECIPE, command
from videoattn.data.synthetic import demo_clip, encode_clip

NAMES = {
    "latin1": b"caf\xe9",
    "shift_jis": b"\x83e\x83X\x83g",
    "control": b"a\nb\x1b[2J\t",
    "markup": b"[bold]$x^2$ %s {0} 100%",
    "emoji": "\u52a8\u4f5c \U0001f938".encode(),
}


@pytest.mark.parametrize("kind", NAMES)
def test_every_command_takes_the_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(NAMES[kind])
    for split in ("train", "test"):
        for motion in ("grows", "shrinks"):
            folder = Path("clips", split, f"{motion} {name}")
            folder.mkdir(parents=True)
            plain = folder / "plain.mp4"
            encode_clip(plain, demo_clip(motion, seed=0, split=split, number=0))  # type: ignore[arg-type]
            plain.rename(folder / f"{name}.mp4")
    video = Path("clips/test", f"grows {name}", f"{name}.mp4")
    Path("tiny.yaml").write_text(RECIPE)
    words = ("tiny.yaml", "data.root=clips", "train.num_epochs=1")
    assert command("train", *words) == 0
    assert command("test", "runs/tiny") == 0
    assert command("predict", "runs/tiny", video) == 0
    assert command("browse", *words) == 0
    assert command("visualize", "runs/tiny", video, "--layer", "layer3") == 0
    assert command("export", "runs/tiny", "shared") == 0
    assert command("prepare", "verify", "clips") == 0
    printed = capsys.readouterr().out
    assert "\x1b[2J" not in printed
    printed.encode()  # no lone surrogate
    rows = Path("runs/tiny/test/predictions.csv").read_bytes()
    assert NAMES[kind] + b".mp4" in rows
    about = json.loads(Path("shared/config.json").read_text())
    assert about["class_names"] == [f"grows {name}", f"shrinks {name}"]


@pytest.mark.parametrize("kind", ["latin1", "control", "emoji"])
def test_lists_of_missing_and_broken_videos(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(NAMES[kind].replace(b"\n", b"\r"))  # a line of a list
    Path("clips").mkdir()
    for number, motion in enumerate(("grows", "shrinks")):
        clip = demo_clip(motion, seed=0, split="train", number=0)
        encode_clip(Path(f"clips/{number}.mp4"), clip)
    Path("clips", f"{name}.mp4").write_bytes(b"")
    lines = f"0.mp4 0\n1.mp4 1\n{name}.mp4 1\nlost {name}.mp4 1\n"
    Path("clips/list").write_bytes(os.fsencode(lines))
    Path("tiny.yaml").write_text(RECIPE)
    lists = ("data.layout=list", "data.train_split=list", "data.test_split=list")
    words = ("data.root=clips", "data.on_error=skip", "train.num_epochs=1")
    assert command("train", "tiny.yaml", *words, *lists) == 0
    run = Path("runs/tiny")
    assert os.fsencode(f"lost {name}.mp4\n") == (run / "missing_training.txt").read_bytes()
    (failed,) = (run / "skipped.jsonl").read_text().splitlines()
    assert json.loads(failed)["path"] == f"clips/{name}.mp4"
    assert command("test", run) == 0
    report = json.loads((run / "test/report.json").read_text())
    assert report["failures"][0]["path"] == f"clips/{name}.mp4"
    assert "\x1b[2J" not in capsys.readouterr().out
