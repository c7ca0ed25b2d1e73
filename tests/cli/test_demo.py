"""The demo from nothing to pictures, with few clips and a short training."""

from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.cli.test_commands import refused
from videoattn.cli import demo

ROOT = Path(__file__).parents[2]


def test_the_demo_does_not_erase_the_runs_of_an_earlier_one(tmp_path: Path) -> None:
    run = tmp_path / "moving"
    run.mkdir()
    assert refused("demo", tmp_path) == (
        f"error: {run} holds a run of an earlier demo; erase it with --overwrite, or choose "
        "another folder"
    )


def test_the_demo_trains_draws_and_refuses_low_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    recipe["data"]["num_workers"] = 0
    recipe["train"]["num_epochs"] = 1
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(demo, "RECIPE", tmp_path / "demo.yaml")
    monkeypatch.setattr(demo, "NUM_TRAIN", 2)
    monkeypatch.setattr(demo, "NUM_TEST", 1)
    folder = tmp_path / "demo"
    (folder / "moving").mkdir(parents=True)
    message = refused("demo", folder, "--overwrite")
    assert "a working installation reaches 95 %; please report it with" in message
    picture = folder / "pictures/demo.webp"
    printed = capsys.readouterr().out
    assert str(picture) in printed
    assert f"a page to click: {folder / 'explorer.html'}" in printed
    assert (folder / "explorer.html").stat().st_size > 100_000
    with Image.open(picture) as image:
        assert (image.size, image.n_frames) == ((336, 376), 12)
    for motion in ("moves_left", "turns_clockwise"):
        suffixes = [path.suffix for path in (folder / "pictures" / motion).iterdir()]
        assert sorted(suffixes) == [".mp4"] * 4 + [".png"] * 4
