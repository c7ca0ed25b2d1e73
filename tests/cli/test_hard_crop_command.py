"""Hard crop: three training stages in one command, and the three accuracies of `test`."""

import json
from pathlib import Path

import pytest
import torch

from tests.cli.test_commands import command, refused
from videoattn.data.synthetic import write_demo_clips
from videoattn.engine import train as engine
from videoattn.engine.state import TrainState

RECIPE = """\
name: plain
data: {num_workers: 0}
clip: {sampling: segments, num_frames: 4, height: 32, width: 32}
augment: {flip: false}
test: {num_clips: 2, short_side: 36}
model:
  name: i3d_r18
  options: {width: 8}
train: {num_epochs: 3, batch_size: 5, lr: 0.01, validate_every: 0}
"""
HARD_CROP = ("model.attention.name=hard_crop", "model.attention.after=[layer2]")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_demo_clips(root, num_train_per_class=2, num_test_per_class=1)
    return root


def weights(folder: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(folder) / "checkpoint-last.pt", weights_only=True)["model"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plain.yaml"
    path.write_text(RECIPE)
    return path


def test_from_the_recipe_to_the_accuracies_and_pictures(
    recipe: Path, clips: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = engine.train_one_epoch

    def stop_in_second_epoch(*args: object) -> None:
        (state,) = [arg for arg in args if isinstance(arg, TrainState)]
        if state.epoch == 1:
            raise InterruptedError("pulled the plug")
        original(*args)

    words = ("train", recipe, f"data.root={clips}", *HARD_CROP)
    assert command(*words, "name=whole") == 0
    with monkeypatch.context() as patched:
        patched.setattr(engine, "train_one_epoch", stop_in_second_epoch)
        assert "pulled the plug" in refused(*words)
    assert command(*words, "--resume") == 0
    resumed = weights("runs/plain")
    assert all(torch.equal(value, resumed[name]) for name, value in weights("runs/whole").items())

    capsys.readouterr()
    assert command("test", "runs/plain") == 0
    said = capsys.readouterr().out
    report = json.loads(Path("runs/plain/test/report.json").read_text())
    assert list(report["parts"]) == ["global", "local", "fused"]
    for name, part in report["parts"].items():
        for kind in ("clip", "video"):
            row = next(line for line in said.splitlines() if f"{name} {kind} accuracy" in line)
            assert f"{100 * part[f'{kind}_accuracy']:.2f} %" in row
    assert report["parts"]["fused"]["video_accuracy"] == report["video_accuracy"]

    video = next((clips / "test/moves_left").glob("*.mp4"))
    assert command("predict", "runs/plain", video) == 0
    assert command("visualize", "runs/plain", video, "--out", "pictures") == 0
    stem = f"{video.stem}_hard_crop"
    assert {f"{stem}.png", f"{stem}_heat.png"} <= {p.name for p in Path("pictures").iterdir()}


def test_both_branches_start_from_the_weights_of_a_run(recipe: Path, clips: Path) -> None:
    words = ("train", recipe, f"data.root={clips}")
    assert command(*words, "train.num_epochs=1") == 0
    start = ("train.lr=0.0", "model.weights=runs/plain")
    assert command(*words, *HARD_CROP, "name=crop", *start) == 0
    cropped = weights("runs/crop")
    moving = (
        "running_mean",
        "running_var",
        "num_batches_tracked",
    )  # training changes these at any learning rate
    for name, value in weights("runs/plain").items():
        if not name.endswith(moving):
            assert torch.equal(cropped[f"global_branch.{name}"], value), name
            assert torch.equal(cropped[f"local_branch.{name}"], value), name
    # a network of this kind may start from another
    begun = ("name=again", "train.lr=0.0", "model.weights=runs/crop")
    assert command(*words, *HARD_CROP, *begun) == 0
    assert torch.equal(weights("runs/again")["fusion.weight"], cropped["fusion.weight"])


def test_epochs_of_stages_in_a_recipe(recipe: Path, clips: Path) -> None:
    words = ("train", recipe, f"data.root={clips}")
    assert "stage_epochs: got [2, 1]; this network is not trained in stages" in refused(
        *words, "train.stage_epochs=[2,1]"
    )
    assert "stage_epochs: got [2, 1]; need one number" in refused(
        *words, *HARD_CROP, "name=wrong", "train.stage_epochs=[2,1]"
    )
    assert "num_epochs: got 2; need at least 3" in refused(
        *words, *HARD_CROP, "name=few", "train.num_epochs=2"
    )
