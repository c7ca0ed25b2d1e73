"""Listed videos that do not exist, in training."""

from pathlib import Path

import pytest

from tests.cli.test_commands import RECIPE, command
from videoattn.data.lists import read_folders
from videoattn.data.synthetic import write_demo_clips


def test_missing_videos_are_reported_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "clips"
    write_demo_clips(root, num_train_per_class=1, num_test_per_class=1)
    Path("tiny.yaml").write_text(RECIPE)
    for split, missing in (("train", ["b/12.mp4", "d.mp4"]), ("test", ["e.mp4"])):
        paths = [*read_folders(root, split).paths, *missing]
        lines = [f"{path} {i % 8}\n" for i, path in enumerate(paths)]
        (root / f"{split}.txt").write_text("".join(lines))
    lists = ("data.layout=list", "data.train_split=train.txt", "data.test_split=test.txt")
    words = ("train", "tiny.yaml", f"data.root={root}", *lists, "data.on_error=skip")
    assert command(*words, "train.num_epochs=1") == 0
    printed = capsys.readouterr().out
    run = Path("runs/tiny")
    assert (
        f"note: 2 listed training videos are missing, and left out; {run}/missing_training.txt"
    ) in printed
    assert (run / "missing_training.txt").read_text() == "b/12.mp4\nd.mp4\n"
    assert "note: 1 listed test videos are missing, and counted as failed; " in printed
    assert (run / "missing_test.txt").read_text() == "e.mp4\n"


def test_training_starts_with_notes_about_odd_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_demo_clips(tmp_path / "clips", num_train_per_class=1, num_test_per_class=1)
    Path("clips/train/grows/0000.mp4").rename("clips/train/grows/0000.MTS")
    Path("tiny.yaml").write_text(RECIPE)
    words = ("train", "tiny.yaml", "data.root=clips", "train.num_epochs=1")
    assert command(*words, "train.validate_every=0") == 0
    assert (
        "note: classes without a training video: 1 of 8, grows; the others have 1 to 1\n"
        "note: files ignored because of their extensions: 1 .MTS\n"
    ) in capsys.readouterr().out
    lines = [f"{path} {i + 1}\n" for i, path in enumerate(read_folders("clips", "train").paths)]
    Path("clips/list.txt").write_text("".join(lines))
    lists = ("data.layout=list", "data.train_split=list.txt", "data.test_split=list.txt")
    assert command(*words, *lists, "train.validate_every=0", "name=from1") == 0
    assert "note: the labels start at 1, not 0: class 0 has no video\n" in capsys.readouterr().out
