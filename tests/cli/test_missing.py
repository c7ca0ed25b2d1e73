from pathlib import Path

import pytest
from torch import nn

from videoattn.cli.train import _introduce
from videoattn.data.lists import Samples
from videoattn.recipe.config import Config, DataConfig


def test_missing_videos_are_told_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(name="x", data=DataConfig(root=str(tmp_path)))
    some = Samples(
        tmp_path, paths=["a.mp4"], labels=[0], class_names=["c"], missing=["b/1 2.mp4", "d.mp4"]
    )
    none = Samples(tmp_path, paths=["a.mp4"], labels=[0], class_names=["c"])
    _introduce(config, tmp_path, nn.Linear(1, 1), (some, none), "here")
    text = " ".join(capsys.readouterr().out.split())
    assert "note: 2 listed training videos are missing, and left out; " in text
    assert (tmp_path / "missing_training.txt").read_text() == "b/1 2.mp4\nd.mp4\n"
    _introduce(config, tmp_path, nn.Linear(1, 1), (none, some), "here")
    text = " ".join(capsys.readouterr().out.split())
    assert "note: 2 listed test videos are missing, and counted as failed; " in text
