"""`videoattn tasks`: writes a task, and compares the maps of a run with its truth."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.test_commands import command, refused
from videoattn.recipe.experiment import train


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "match"
    words = ["--train", "4", "--test", "4", "--identities", "24", "--seed", "2", "--workers", "1"]
    assert command("tasks", "write", "match", folder, *words) == 0
    return folder


@pytest.fixture(scope="module")
def recipe(task: Path) -> Path:
    path = task.parent / "recipe.yaml"
    path.write_text(
        f"name: tiny\ndata: {{root: {task}, num_workers: 0}}\n"
        "clip: {num_frames: 16, frame_stride: 1, height: 32, width: 32}\n"
        "augment: {flip: false}\ntest: {short_side: 32}\n"
        "model: {name: c2d_r18, options: {width: 4},\n"
        "  attention: {name: non_local, options: {key_pool: null}}}\n"
        "train: {num_epochs: 1, batch_size: 4, validate_every: 0}\n"
    )
    return path


def test_write(task: Path) -> None:
    assert len(list(task.glob("train/*/*.mp4"))) == len(list(task.glob("test/*/*.mp4"))) == 4
    assert (task / "train.npz").is_file()
    assert (task / "test.npz").is_file()
    assert "already exists" in refused("tasks", "write", "match", task)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tracks"], "NAME: 'tracks' does not exist (did you mean track?)"),
        (["order", "--dots", "4"], "--dots is an option of track; order does not have it"),
        (
            ["track", "--identities", "8"],
            "--identities is an option of match, match_unmarked, cue; track does not have it",
        ),
        (["cue", "--gap", "4"], "--gap is an option of match, match_unmarked, track; cue does not"),
    ],
)
def test_wrong_options(words: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused("tasks", "write", words[0], tmp_path / "x", *words[1:])


def test_classes_of_a_cue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train", "12", "--test", "12", "--identities", "12"]
    assert command("tasks", "write", "cue", tmp_path / "cue", *words) == 0
    assert "12 training clips and 12 test clips of 12 classes" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "cue" / "test").iterdir())
    assert names == [f"identity_{number:02}" for number in range(12)]


def test_receptive_fields(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("tasks", "field", recipe) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" frames")[0] for line in lines] == [
        "layer1: 1 of 16",
        *(f"layer{n}: 2 of 16" for n in (2, 3, 4)),
    ]


def test_an_untrained_map_is_nearly_uniform(
    recipe: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(recipe, "train.lr=0", "train.keep_epochs=1", folder=run, device="cpu")
    capsys.readouterr()
    assert command("tasks", "truth", run, "--data", task) == 0
    found = json.loads((run / "truth.json").read_text())
    assert {key.split(",")[0] for key in found} == {"layer2.1_non_local", "layer3.1_non_local"}
    assert sum(row["clips"] for key, row in found.items() if "layer2" in key) == 4
    for key, row in found.items():
        assert row["right_off"] == key.endswith("correct")  # a new block is the identity
        assert row["mass"] == pytest.approx(row["area"], rel=0.1)
        assert row["distractor_mass"] == pytest.approx(row["distractor_area"], rel=0.1)
        assert 0 < row["area"] < 0.1
        assert row["area"] < row["chance"] < 1
        assert row["wrong_mass"] == pytest.approx(row["mass"], rel=0.1)
    printed = capsys.readouterr().out
    assert "weight on the evidence | its area | from wrong queries" in printed
    _check_an_older_truth(run, task, found, capsys)


def _check_an_older_truth(
    run: Path, task: Path, found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file without wrong queries gives the other scores, also at a kept checkpoint."""
    older = shutil.copytree(task, run.parent / "older")
    arrays = dict(np.load(task / "test.npz"))
    del arrays["wrong_queries"]
    np.savez(older / "test.npz", **arrays)
    (run / "truth.json").unlink()
    checkpoint = run / "checkpoint-epoch-0001.pt"
    assert command("tasks", "truth", checkpoint, "--data", older) == 0
    assert not (run / "truth.json").exists()
    again = json.loads((run / "truth-epoch-0001.json").read_text())
    for row in found.values():
        del row["wrong_mass"]
    assert again == found
    printed = capsys.readouterr().out
    assert "lacks wrong queries (an earlier version wrote it); write the task again" in printed


def test_compare_scores_maps_before_and_after_training(recipe: Path, tmp_path: Path) -> None:
    """Nothing is learned at a learning rate of 0; a row is then nearly uniform."""
    words = ["compare", recipe, "train.lr=0", "--seeds", 1, "--folder", tmp_path, "--device", "cpu"]
    assert command(*words, "--system", "none", "--system", "non_local") == 0
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert stored["none"][0]["truth"] == {}
    found = stored["non_local"][0]["truth"]
    before = found.pop("layer3.1_non_local, before training")
    after = [row for key, row in found.items() if key.startswith("layer3.1")]
    assert before["clips"] == sum(row["clips"] for row in after) == 4
    mean = sum(row["clips"] * row["mass"] for row in after) / 4
    assert mean == pytest.approx(before["mass"], rel=0.1)
    assert mean == pytest.approx(before["area"], rel=0.1)
    cells = [
        "non_local",
        "layer3.1_non_local, before training",
        "4",
        f"{100 * before['mass']:.1f} %",
    ]
    assert f"| {' | '.join(cells)} | " in (tmp_path / "comparison.md").read_text()


def test_compare_keeps_the_accuracy_without_a_truth(
    recipe: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder has a file of another kind with the name of the truth."""
    clips = shutil.copytree(task, tmp_path / "clips")
    np.savez(clips / "test.npz", other=np.zeros(3))
    words = ["compare", recipe, f"data.root={clips}", "--seeds", 1, "--system", "non_local"]
    assert command(*words, "--folder", tmp_path / "runs", "--device", "cpu") == 0
    (result,) = json.loads((tmp_path / "runs/comparison.json").read_text())["non_local"]
    assert result["truth"] == {}
    assert 0 <= result["video_accuracy"] <= 1
    assert "non_local_seed0: its maps are not compared with the truth: " in capsys.readouterr().out


def test_a_run_without_pairwise_maps(recipe: Path, task: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe, "train.lr=0", "model.attention=null", folder=run, device="cpu")
    message = refused("tasks", "truth", run, "--data", task)
    assert (
        f"{run} has no pairwise map, and the truth is about queries; choose a run with" in message
    )
    (tmp_path / "moved").mkdir()
    (run / "checkpoint-last.pt").rename(tmp_path / "moved/checkpoint-last.pt")
    message = refused("tasks", "truth", tmp_path / "moved")
    assert "moved: the folder of its task is unknown; pass it as --data" in message
    message = refused("tasks", "truth", tmp_path / "moved", "--data", task.parent)
    assert f"{task.parent} has no test.npz; need a folder of `videoattn tasks write`" in message
