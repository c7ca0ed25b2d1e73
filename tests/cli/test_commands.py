"""The commands as users type them, on clips of the demo."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import Mock

import av
import pytest
import torch
from PIL import Image

from videoattn.cli.app import main
from videoattn.cli.test import show_accuracy
from videoattn.data.synthetic import MOTIONS, write_demo_clips
from videoattn.engine import train as engine
from videoattn.engine.evaluate import Evaluation
from videoattn.engine.state import TrainState
from videoattn.recipe.run import Predictor, load

ROOT = Path(__file__).parents[2]
RECIPE = """\
name: tiny
data: {num_workers: 0}
clip: {sampling: segments, num_frames: 4, height: 32, width: 32}
augment: {flip: false}
test: {num_clips: 2, short_side: 36}
model:
  name: i3d_r18
  options: {width: 8}
  attention: {name: non_local}
train: {num_epochs: 2, batch_size: 5, lr: 0.01, accumulate_steps: 2}
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_demo_clips(root, num_train_per_class=3, num_test_per_class=2)
    return root


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clips: Path) -> Path:
    """A recipe whose runs go to tmp_path/runs."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def run(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tools/train.py trained in another process."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(RECIPE)
    words = [sys.executable, str(ROOT / "tools/train.py"), "tiny.yaml", f"data.root={clips}"]
    threads = {
        "OMP_NUM_THREADS": str(torch.get_num_threads())
    }  # the order of sums decides their last bits
    subprocess.run(words, cwd=folder, check=True, capture_output=True, env=os.environ | threads)
    return folder / "runs/tiny"


def command(*words: object) -> int:
    """Runs `videoattn WORDS`, and returns its exit status."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return 0 if stop.value.code is None else int(stop.value.code)


def refused(*words: object) -> str:
    """Runs `videoattn WORDS`, which must fail, and returns its error message."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert isinstance(stop.value.code, str)
    return stop.value.code


def curve(folder: Path) -> list[tuple[str, float, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(r["kind"], r["step"], r["loss"]) for r in records]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint-last.pt", weights_only=True)["model"]


def picture_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_training_writes_the_files_of_a_run(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "tensorboard", "checkpoint-last.pt", "best.safetensors",
    }  # fmt: skip
    payload = torch.load(run / "checkpoint-last.pt", weights_only=True)
    assert payload["class_names"] == sorted(MOTIONS)
    assert payload["preprocessing"]["mean"] == [0.45, 0.45, 0.45]
    assert payload["progress"]["epoch"] == 2


def test_a_run_is_a_recipe(run: Path, recipe: Path) -> None:
    """Its config.yaml trains the same run again, bit for bit."""
    assert command("train", run / "config.yaml", "name=again") == 0
    again = weights(Path("runs/again"))
    assert all(torch.equal(value, again[name]) for name, value in weights(run).items())


def test_test_reports_clip_and_video_accuracy(
    run: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("test", run) == 0
    said = capsys.readouterr().out
    assert "clip accuracy" in said
    assert "32 views" in said
    assert "16 videos" in said
    assert "16 videos, 16 decoded, 0 failed" in said
    report = json.loads((run / "test/report.json").read_text())
    with open(run / "test/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert report["video_accuracy"] == pytest.approx(right / 16)
    assert picture_size(run / "test/confusion.png")[0] > 300
    assert command("test", run / "best.safetensors", "test.num_clips=1") == 0
    assert "16 views" in capsys.readouterr().out


def test_test_writes_to_the_folder_of_out(run: Path, tmp_path: Path) -> None:
    assert command("test", run, "--out", tmp_path / "new/tables") == 0
    assert (tmp_path / "new/tables/report.json").exists()


def test_nothing_is_scored_if_the_folder_cannot_be_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "evaluate", Mock(side_effect=AssertionError("scored")))
    (tmp_path / "link").symlink_to(run)
    assert "link is a link; remove it" in refused("test", run, "--out", tmp_path / "link")
    error = OSError(30, "Read-only file system")
    monkeypatch.setattr(tempfile, "TemporaryFile", Mock(side_effect=error))
    assert refused("test", run).endswith(
        f"cannot write to {run / 'test'}: Read-only file system; choose a folder with --out"
    )


def test_the_accuracy_is_printed_even_if_its_files_cannot_be_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").mkdir()
    assert f"cannot write {tmp_path / 'report.json'}" in refused("test", run, "--out", tmp_path)
    assert "16 videos, 16 decoded, 0 failed" in capsys.readouterr().out


def test_the_folder_of_a_run_is_not_read_as_markup(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "x[" / "foo]"
    shutil.copytree(run, folder)
    evaluation = Evaluation(
        torch.ones(1, 2), torch.zeros(1).long(), torch.zeros(1).long(), (), 2,
        {"accuracy": 1.0, "top5": 1.0}, {"accuracy": 0.5, "top5": 1.0}, 0.5,
    )  # fmt: skip
    show_accuracy(load(folder), evaluation)
    printed = capsys.readouterr().out
    assert f"{folder}/checkpoint-last.pt" in printed.replace("\n", "")
    assert "100.00 %" in printed
    assert "50.00 %" in printed


def test_a_broken_test_video_is_counted_and_named(
    run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(clips, copy)
    broken = copy / "test/moves_left/0000.mp4"
    broken.write_text("not a video")
    assert command("test", run, f"data.root={copy}") == 0
    said = capsys.readouterr().out
    assert "16 videos, 15 decoded, 1 failed" in said
    assert f"failed: {broken}: " in said


def test_predict_names_actions_and_failures(
    run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, empty = clips / "test/moves_left/0000.mp4", tmp_path / "empty.mp4"
    empty.touch()
    assert command("predict", run, video, "--top", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(video)
    assert [line.split("%")[1].strip() in MOTIONS for line in lines[1:3]] == [True, True]
    assert len(lines) == 3
    assert command("predict", run, video, empty) == 1
    assert f"failed: {empty}: the file is empty (0 bytes)" in capsys.readouterr().out


@pytest.mark.parametrize("query", [(), ("--query", "10,60,50", "--query", "14,40,40")])
def test_visualize_draws_sheets_and_overlays(
    run: Path, clips: Path, tmp_path: Path, query: tuple[str, ...]
) -> None:
    video = clips / "test/turns_clockwise/0001.mp4"
    words = ("--layer", "layer2.1_non_local", "--out", tmp_path)
    assert command("visualize", run, video, *query, *words) == 0
    stems = [f"0001_layer2.1_non_local_{number}" for number in (1, 2)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        f"{stem}{suffix}" for stem in stems for suffix in (".png", ".mp4")
    )
    assert min(picture_size(tmp_path / f"{stems[0]}.png")) > 300
    with av.open(str(tmp_path / f"{stems[0]}.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 4


def test_visualize_refuses_queries_outside_the_clip(run: Path, clips: Path) -> None:
    video = clips / "test/moves_left/0000.mp4"
    assert refused("visualize", run, video, "--query", "1,2").startswith(
        "error: query '1,2' is not FRAME,X,Y: a frame number and a pixel"
    )
    assert "query: frame 999 is not in" in refused("visualize", run, video, "--query", "999,1,1")
    assert "query: pixel (0, 0) is outside the network's center crop; x must be" in (
        refused("visualize", run, video, "--query", "3,0,0")
    )
    assert refused("visualize", run, video, "--layer", "fc") == (
        "error: layer 'fc' has no attention map; choose from layer2.1_non_local, layer3.1_non_local"
    )


def test_a_folder_that_holds_a_run_is_not_overwritten(run: Path, recipe: Path, clips: Path) -> None:
    shutil.copytree(run, "runs/tiny")
    words = ("train", recipe, f"data.root={clips}")
    assert (
        "runs/tiny holds a run: continue it with --resume, start again with --overwrite"
        in refused(*words)
    )
    assert "was trained with another config: train.lr was 0.01, is 0.5. Resume with" in refused(
        *words, "train.lr=0.5", "--resume"
    )
    assert command(*words, "train.num_epochs=1", "--overwrite") == 0
    Path("runs/notes").mkdir()
    Path("runs/notes/mine.txt").touch()
    assert "runs/notes holds files that are not a run" in refused(
        *words, "name=notes", "--overwrite"
    )
    assert "nothing to resume: runs/other/checkpoint-last.pt does not exist" in refused(
        *words, "name=other", "--resume"
    )


def test_resuming_equals_the_uninterrupted_run(
    run: Path, recipe: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = engine.train_one_epoch

    def stop_in_second_epoch(*args: object) -> None:
        (state,) = [arg for arg in args if isinstance(arg, TrainState)]
        if state.epoch == 1:
            raise InterruptedError("pulled the plug")
        original(*args)

    words = ("train", recipe, f"data.root={clips}")
    with monkeypatch.context() as patched:
        patched.setattr(engine, "train_one_epoch", stop_in_second_epoch)
        assert "pulled the plug" in refused(*words)
    recipe.write_text(RECIPE)
    assert command(*words, "--resume") == 0
    resumed = weights(Path("runs/tiny"))
    assert all(torch.equal(value, resumed[name]) for name, value in weights(run).items())
    assert curve(Path("runs/tiny")) == curve(run)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker:UserWarning")
def test_the_number_of_workers_does_not_change_a_bit(run: Path, recipe: Path, clips: Path) -> None:
    assert command("train", recipe, f"data.root={clips}", "data.num_workers=4") == 0
    assert curve(Path("runs/tiny")) == curve(run)
    other = weights(Path("runs/tiny"))
    assert all(torch.equal(value, other[name]) for name, value in weights(run).items())


def test_two_processes_train_and_count_every_video(recipe: Path, clips: Path) -> None:
    """13 test videos on 2 processes count as 13, and one run is written."""
    thirteen = Path("thirteen")
    shutil.copytree(clips, thirteen)
    for path in sorted((thirteen / "test").glob("*/0001.mp4"))[:3]:
        path.unlink()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    words = ["train", str(recipe), f"data.root={thirteen}", "train.num_epochs=1"]
    words += ["model.attention=[non_local,{name: cbam, options: {reduction: 4}},interaction]"]
    done = subprocess.run(
        [*torchrun, "2", "-m", "videoattn", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "videos 13  views 2  failed 0" in done.stderr
    assert done.stdout.count("24 training and 13 test videos") == 1
    assert done.stdout.count("i3d_r18 + non_local + cbam + interaction, ") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.lrr=1"], "train.lrr=1: unknown key 'train.lrr' (did you mean lr?); it may be one"),
        (["data.root={clips}", "--resume"], "nothing to resume: runs/tiny/checkpoint-last.pt does"),
    ],
)
def test_an_error_in_two_processes_is_one_line(
    recipe: Path, clips: Path, words: list[str], message: str
) -> None:
    """It is printed once before torchrun's traceback, and repeated as the root cause after it."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    words = [word.format(clips=clips) for word in words]
    done = subprocess.run(
        [*torchrun, "2", "-m", "videoattn", "train", recipe, *words], capture_output=True, text=True
    )
    assert done.returncode == 1
    printed, _, report = done.stderr.partition("Traceback (most recent call last):")
    assert printed.count("error: ") == 1, done.stderr
    assert message in printed
    _, _, cause = report.partition("Root Cause (first observed failure):")
    assert "traceback : error: " in cause
    assert message in cause


def test_an_error_of_one_process_is_the_cause(recipe: Path, clips: Path) -> None:
    shutil.copytree(clips, "copy")
    broken = Path("copy/train/moves_up/0002.mp4")
    broken.write_bytes(broken.read_bytes()[:200])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    words = ["-m", "videoattn", "train", recipe, "data.root=copy", "train.num_epochs=1"]
    done = subprocess.run([*torchrun, "2", *words], capture_output=True, text=True)
    assert done.returncode == 1
    printed, _, report = done.stderr.partition("Traceback (most recent call last):")
    assert printed.count(f"error: {broken}: cannot be opened as a video: ") == 1, done.stderr
    _, _, cause = report.partition("Root Cause (first observed failure):")
    assert f"traceback : error: {broken}: cannot be opened as a video" in cause


def test_errors_of_single_processes_are_all_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes of one machine have folders beside each other."""
    ended = []
    for rank, name in enumerate(["a", "b", "b"]):
        folder = tmp_path / "attempt_0" / str(rank)
        folder.mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))
        with pytest.raises(SystemExit) as stop:
            main(["train", name])
        ended.append(stop.value.code)
    assert [str(code)[:23] for code in ended] == [
        "error: a: no such recip",
        "error: b: no such recip",
        "1",
    ]
    assert json.loads((tmp_path / "attempt_0/2/error.json").read_text())["message"] == ended[1]


def test_skipped_training_videos_are_listed(recipe: Path, clips: Path) -> None:
    copy = Path("copy")
    shutil.copytree(clips, copy)
    broken = copy / "train/moves_up/0002.mp4"
    broken.write_bytes(broken.read_bytes()[:200])
    words = ("train", recipe, f"data.root={copy}", "train.num_epochs=1")
    assert str(broken) in refused(*words)
    assert command(*words, "data.on_error=skip") == 0  # it has no checkpoint to lose
    (line,) = Path("runs/tiny/skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(broken)
    shutil.copyfile(broken, copy / "train/moves_up/0001.mp4")
    stopped = refused(*words, "--overwrite", "data.on_error=skip", "data.max_failures=1")
    assert "decoded; at most 1 may fail; see runs/tiny/skipped.jsonl" in stopped


def test_errors_are_one_line(run: Path, recipe: Path, clips: Path, tmp_path: Path) -> None:
    assert refused("train", recipe, "data.root=nowhere").endswith(
        "root: nowhere does not exist; need the folder of the videos"
    )
    assert refused("train", recipe, "data.rot=x").startswith(
        "error: data.rot=x: unknown key 'data.rot' (did you mean root?); it may be one of root,"
    )
    assert "short_video" in refused(
        "train", recipe, f"data.root={clips}", "clip.sampling=dense", "clip.num_frames=64",
        "clip.short_video=error",
    )  # fmt: skip
    assert refused("test", tmp_path / "nothing").endswith("or a checkpoint")
    two = tmp_path / "two"
    for split in ("train", "test"):
        for name in ("grows", "shrinks"):
            shutil.copytree(clips / split / name, two / split / name)
    assert "was trained on 8 classes, but the data has 2" in refused(
        "test", run, f"data.root={two}"
    )
    cut = tmp_path / "cut.pt"
    cut.write_bytes((run / "checkpoint-last.pt").read_bytes()[:5000])
    assert "is truncated after 5000 bytes" in refused("test", cut)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign.pt")
    assert "was not written by this package" in refused("test", tmp_path / "foreign.pt")
