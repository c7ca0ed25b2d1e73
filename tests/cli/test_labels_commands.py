"""Unequal classes, and several labels per video, as users type them."""

import csv
import json
import textwrap
from pathlib import Path

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from tests.cli.test_commands import RECIPE, command, refused
from tools.bench.pairs import write_pair_clips
from videoattn.cli.test import command as evaluate_run
from videoattn.data.synthetic import MOTIONS, write_demo_clips
from videoattn.models import head
from videoattn.recipe.run import load

PAIRS = (
    "data.root=clips", "data.layout=list", "data.train_split=train.txt",
    "data.test_split=test.txt", "data.columns=path labels", "train.num_epochs=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips of two motions each, and a network that was trained on them."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pair_clips(folder / "clips", num_train=12, num_test=24)
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        mixed = ("augment.mixup=0.5", "augment.cutmix=0.5", "train.loss=bce")
        assert command("train", "tiny.yaml", *PAIRS, *mixed) == 0
    return folder


@pytest.fixture
def inside(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(pairs)
    return pairs


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def records(run: str) -> list[dict[str, float | str]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def test_pair_clips_have_two_motions_of_different_states(pairs: Path) -> None:
    lines = (pairs / "clips/test.txt").read_text().splitlines()
    sets = [line.split(" ")[1].split(";") for line in lines]
    assert len({tuple(names) for names in sets}) == 24
    assert all(MOTIONS[a][0] != MOTIONS[b][0] for a, b in sets)
    with pytest.raises(ValueError, match=r"num_test: got 0; need at least 1"):
        write_pair_clips(pairs / "none", num_train=1, num_test=0)


def test_tables_of_several_labels(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = evaluate_run(Path("runs/tiny"), out=Path("out"))
    printed = capsys.readouterr().out
    assert "mAP" in printed
    assert "hit@1" in printed
    truth, probabilities = scores.labels.numpy(), scores.probabilities.numpy()
    mean = average_precision_score(truth, probabilities, average="macro")
    report = json.loads(Path("out/report.json").read_text())
    assert report["video_mAP"] == pytest.approx(mean, abs=1e-12)
    assert {"video_hit1", "clip_hit1", "loss"} < set(report)
    assert report["videos_labelled"] == 24
    assert not Path("out/confusion.csv").exists()
    classes = rows(Path("out/per_class.csv"))
    assert [row["class"] for row in classes] == list(MOTIONS)
    for k, row in enumerate(classes):
        of_class = probabilities[:, k]
        average = average_precision_score(truth[:, k], of_class)
        assert float(row["average_precision"]) == pytest.approx(average, abs=1e-4)
        best = max(f1_score(truth[:, k], of_class >= threshold) for threshold in of_class)
        assert float(row["f1"]) == pytest.approx(best, abs=1e-4)
        assert int(row["videos"]) == truth[:, k].sum() == 6
    predictions = rows(Path("out/predictions.csv"))
    assert predictions[0]["label"] == "grows; moves_down"
    for row in predictions:
        assert row["correct"] == str(int(row["predicted"] in row["label"].split("; ")))


def test_the_log_has_the_metrics_of_several_labels(inside: Path) -> None:
    lines = records("runs/tiny")
    assert "hit1" in next(line for line in lines if line["kind"] == "train")
    validation = next(line for line in lines if line["kind"] == "validation")
    assert {"video_mAP", "video_hit1", "clip_hit1"} < set(validation)
    best = torch.load("runs/tiny/checkpoint-last.pt", weights_only=True)["best"]
    assert best["accuracy"] == validation["video_mAP"]


def test_predictions_are_sigmoid_scores(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictor, video = load("runs/tiny"), "clips/test/0000.mp4"
    views = predictor.preprocess(video)
    with torch.no_grad():
        expected = predictor.model(views).sigmoid().mean(dim=0)
    scores = {name: probability for name, probability in predictor(video)}
    for k, name in enumerate(predictor.class_names):
        assert scores[name] == pytest.approx(float(expected[k]), abs=1e-6)
    assert command("predict", "runs/tiny", video, "--top", 8) == 0
    shares = [float(line.split("%")[0]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert shares == pytest.approx(100 * expected.sort(descending=True)[0].numpy(), abs=0.06)
    words = ("--method", "grad_cam", "--target", "grows", "--out", "pictures")
    assert command("visualize", "runs/tiny", video, *words) == 0


def test_clips_with_several_labels_are_drawn(inside: Path) -> None:
    for mixed in ("0.0", "1.0"):
        words = ("train.loss=bce", f"augment.mixup={mixed}", "--num", 2)
        assert command("browse", "tiny.yaml", *PAIRS, *words) == 0


def test_several_labels_need_their_loss(inside: Path) -> None:
    message = "error: train.loss: the videos have several labels; set train.loss=bce"
    assert refused("train", "tiny.yaml", *PAIRS, "name=x") == message
    assert refused("browse", "tiny.yaml", *PAIRS) == message
    balanced = ("train.loss=bce", "name=x", "train.class_balance=1")
    assert refused("train", "tiny.yaml", *PAIRS, *balanced) == (
        "error: train.class_balance: needs one label for every video; remove it"
    )
    assert not Path("runs/x/checkpoint-last.pt").exists()


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of each motion, but one of "grows"."""
    folder = tmp_path_factory.mktemp("unequal")
    write_demo_clips(folder / "clips", num_train_per_class=3, num_test_per_class=1)
    for number in (1, 2):
        (folder / f"clips/train/grows/{number:04d}.mp4").unlink()
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


@pytest.mark.parametrize("balance", ["1", "0.5", "inverse", "effective"])
def test_balanced_training(
    balance: str, unequal: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(unequal)
    words = ("data.root=clips", f"train.class_balance={balance}", f"name=at{balance}")
    assert command("train", "tiny.yaml", *words) == 0
    printed = capsys.readouterr()
    assert "videos per class: moves_down 3, moves_left 3, " in printed.out
    assert ", turns_counter_clockwise 3, grows 1\n" in printed.out
    assert "  mean class accuracy " in printed.err
    lines = records(f"runs/at{balance}")
    validation = [line for line in lines if line["kind"] == "validation"]
    assert all("video_mean_class_accuracy" in line for line in validation)
    assert command("test", f"runs/at{balance}") == 0
    assert "mean class" in capsys.readouterr().out
    report = json.loads(Path(f"runs/at{balance}/test/report.json").read_text())
    assert report["video_mean_class_accuracy"] == pytest.approx(report["video_accuracy"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train.class_balance=1.5"],
            "train.class_balance: got 1.5; need 0 (each video once) to 1 (equal classes), inverse "
            "or effective",
        ),
        (
            ["train.class_balance=-1"],
            "train.class_balance: got -1; need 0 (each video once) to 1 (equal classes), inverse "
            "or effective",
        ),
        *(
            (
                [f"train.class_balance={balance}", "data.label_noise=0.2"],
                "train.class_balance: the true classes of wrong labels are not known; remove it, "
                "or data.label_noise",
            )
            for balance in (0.5, "effective")
        ),
        (
            ["train.class_balance=inverse", "train.loss=bce"],
            "train.class_balance: inverse weighs train.loss=cross_entropy; use a number, or remove "
            "it",
        ),
        (
            ["train.label_smoothing=0.1", "train.loss=bce"],
            "train.label_smoothing: applies to train.loss=cross_entropy; remove it",
        ),
    ],
)
def test_settings_that_do_not_fit(
    words: list[str], message: str, unequal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unequal)
    got = refused("train", "tiny.yaml", "data.root=clips", "name=wrong", *words)
    assert got == f"error: {message}"


@pytest.mark.parametrize("balance", ["1", "inverse"])
def test_shards_do_not_list_their_labels(
    balance: str, unequal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unequal)
    if not Path("shards").exists():
        assert command("prepare", "shards", "tiny.yaml", "shards", "data.root=clips") == 0
    words = ("data.root=shards", "data.layout=shards", f"train.class_balance={balance}", "name=no")
    assert refused("train", "tiny.yaml", *words) == (
        "error: train.class_balance: shards list their labels only inside; train from the videos, "
        "or remove it"
    )


def test_features_of_videos_as_on_the_page_about_data(inside: Path) -> None:
    page = (Path(__file__).parents[2] / "data/README.md").read_text()
    code = textwrap.dedent(page.partition("## Features of videos\n")[2].partition("## Speed")[0])
    names: dict[str, torch.Tensor] = {}
    code = code.replace("runs/demo", "runs/tiny").replace("clip.mp4", "clips/test/0000.mp4")
    exec(code, names)
    predictor = load("runs/tiny")
    logits = head(predictor.model, names["grid"])
    torch.testing.assert_close(logits, predictor.model(names["views"]))
    assert names["vector"].shape == names["grid"].shape[1:2]
