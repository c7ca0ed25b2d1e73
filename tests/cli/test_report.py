import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from videoattn.cli.report import confusion, draw_confusion, write_report
from videoattn.engine.evaluate import Evaluation
from videoattn.types import Failure

NAMES = ["jump", "run, fast", "sit"]

EVALUATION = Evaluation(
    probabilities=torch.tensor(
        [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.3, 0.5, 0.2]]
    ),
    labels=torch.tensor([0, 1, 1, 2, -1]),
    indices=torch.tensor([0, 1, 3, 4, 5]),
    failures=(Failure(2, "c.mp4", "no stream"),),
    num_views=2,
    video_metrics={"accuracy": 0.75, "top5": 1.0},
    clip_metrics={"accuracy": 0.625, "top5": 1.0},
    loss=0.5,
)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_has_counts_and_metrics(tmp_path: Path) -> None:
    written = write_report(EVALUATION, tmp_path / "test", class_names=NAMES)
    assert json.loads((tmp_path / "test" / "report.json").read_text()) == written
    assert written.pop("machine").endswith(f", torch {torch.__version__}")
    assert written == {
        "video_accuracy": 0.75,
        "video_top5": 1.0,
        "clip_accuracy": 0.625,
        "clip_top5": 1.0,
        "loss": 0.5,
        "videos_asked": 6,
        "videos_decoded": 5,
        "videos_failed": 1,
        "videos_labelled": 4,
        "views_per_video": 2,
        "failures": [{"index": 2, "path": "c.mp4", "reason": "no stream"}],
    }


def test_predictions_per_class_and_confusion(tmp_path: Path) -> None:
    write_report(EVALUATION, tmp_path, class_names=NAMES, describe=lambda index: f"{index} a.mp4")
    predictions = rows(tmp_path / "predictions.csv")
    assert [row["path"] for row in predictions] == [f"{n} a.mp4" for n in (0, 1, 3, 4, 5)]
    assert [row["predicted"] for row in predictions] == [NAMES[k] for k in (0, 0, 1, 2, 1)]
    assert [row["correct"] for row in predictions] == ["1", "0", "1", "1", ""]
    assert predictions[4]["label"] == ""
    assert predictions[2]["top5"].startswith("run, fast 0.8000; ")
    classes = rows(tmp_path / "per_class.csv")
    assert [row["class"] for row in classes] == NAMES
    assert [row["videos"] for row in classes] == ["1", "2", "1"]
    assert [row["accuracy"] for row in classes] == ["1.0000", "0.5000", "1.0000"]
    assert [row["precision"] for row in classes] == ["0.5000", "1.0000", "1.0000"]
    assert confusion(EVALUATION).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert [list(row.values()) for row in rows(tmp_path / "confusion.csv")][1] == [
        "run, fast",
        "1",
        "1",
        "0",
    ]


@pytest.mark.parametrize("num_classes", [2, 30, 80])
def test_the_picture_is_drawn(tmp_path: Path, num_classes: int) -> None:
    counts = np.eye(num_classes, dtype=np.int64) * 3
    draw_confusion(tmp_path / "confusion.png", counts, [f"class {k}" for k in range(num_classes)])
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 250
        assert np.asarray(picture.convert("L")).std() > 10


def test_without_labels_only_predictions_are_written(tmp_path: Path) -> None:
    nan = float("nan")
    metrics = {"accuracy": nan, "top5": nan}
    unlabelled = replace(
        EVALUATION,
        labels=torch.full((5,), -1),
        video_metrics=metrics,
        clip_metrics=metrics,
    )
    written = write_report(unlabelled, tmp_path, class_names=NAMES)
    assert written["video_accuracy"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.csv", "report.json"]


def test_names_of_other_classes_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"class_names: got 2; need 3, the classes of the network; use"
    ):
        write_report(EVALUATION, tmp_path, class_names=NAMES[:2])


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    """Class names and paths may come from strangers; a spreadsheet runs cells that begin so."""
    names = ["=1+cmd|calc!A0", "@SUM(1)", "\t-1"]
    write_report(EVALUATION, tmp_path, class_names=names, describe=lambda index: "+1.mp4")
    quoted = [f"'{name}" for name in names]
    assert [row["class"] for row in rows(tmp_path / "per_class.csv")] == quoted
    assert list(rows(tmp_path / "confusion.csv")[0])[1:] == quoted
    predictions = rows(tmp_path / "predictions.csv")
    assert {row["path"] for row in predictions} == {"'+1.mp4"}
    assert all(row["top5"].startswith("'") for row in predictions)
    assert predictions[0]["label"] == quoted[0]
    assert predictions[0]["probability"] == "0.7000"


def test_a_link_is_refused_or_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "test"
    folder.mkdir()
    for name in ("report.json", "predictions.csv", "confusion.png"):
        (folder / name).symlink_to(victim)
    write_report(EVALUATION, folder, class_names=NAMES)
    assert victim.read_text() == "mine"
    assert not (folder / "report.json").is_symlink()
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ValueError, match=r"link is a link; remove it, or choose another output"):
        write_report(EVALUATION, tmp_path / "link", class_names=NAMES)
