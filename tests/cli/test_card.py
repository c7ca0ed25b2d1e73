"""The model card in a shared folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import markdown_it
import pytest
import yaml

from tests.cli.test_commands import command, picture_size
from tests.pinned import write
from videoattn.engine import checkpoint


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tested run in runs/, and the clips that it was tested on."""
    write.unpack(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.move("run", "runs/tiny")
    assert command("test", "runs/tiny", "data.root=clips", "--device", "cpu") == 0
    return Path("runs/tiny")


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Returns the front matter and the rest."""
    _, front, rest = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), rest


def change_meta(run: Path, **changes: Any) -> None:
    payload = checkpoint.load(run / "checkpoint-last.pt")
    for key, value in changes.items():
        payload[key] = value  # type: ignore[literal-required]
    checkpoint.save(run / "checkpoint-last.pt", payload)


def test_the_card_of_a_run_has_its_measurements(run: Path) -> None:
    report = json.loads((run / "test/report.json").read_text())
    video = next(Path("clips/test").rglob("*.mp4"))
    assert command("export", run, "shared_run", "--video", video) == 0
    front, text = card(Path("shared_run"))
    assert front["library_name"] == "videoattn"
    assert front["pipeline_tag"] == "video-classification"
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == report["video_accuracy"]
    assert f"{report['videos_labelled']} test videos" in result["dataset"]["name"]
    assert "license" not in front
    assert f"| {100 * report['video_accuracy']:.2f} % |" in text
    assert f"by `videoattn test` on {report['machine']}" in text
    assert "A baseline on still frames was not measured." in text
    assert "i3d_r18 with non_local, " in text
    assert "4 frames, 4 apart, of 32 x 32 pixels" in text
    assert "trained from scratch: their owner chooses a license" in text
    assert picture_size(Path("shared_run/picture.png"))[0] > 100
    html = markdown_it.MarkdownIt("commonmark").enable("table").render(text)
    assert html.count("<table>") == 1
    assert '<img src="picture.png"' in html
    assert str(Path.cwd()) not in (Path("shared_run/README.md").read_text())


def test_a_baseline_on_still_frames_is_found(run: Path) -> None:
    shutil.copytree(run, "runs/still")
    config = Path("runs/still/config.yaml")
    values = yaml.safe_load(config.read_text())
    values["clip"]["still_frame"] = True
    config.write_text(yaml.safe_dump(values | {"name": "still"}))
    report = Path("runs/still/test/report.json")
    content = json.loads(report.read_text()) | {"video_accuracy": 0.123, "clip_accuracy": 0.11}
    report.write_text(json.dumps(content))
    assert command("export", run, "shared_run") == 0
    _, text = card(Path("shared_run"))
    assert "| the same, trained on still frames | 12.30 % | 11.00 % |" in text
    assert "was not measured" not in text


def test_without_a_test_the_last_validation_counts(run: Path) -> None:
    shutil.rmtree(run / "test")
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in log if record["kind"] == "validation"][-1]
    assert command("export", run, "shared_run") == 0
    front, text = card(Path("shared_run"))
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == last["video_accuracy"]
    assert "in the last validation of the training" in text
    (run / "metrics.jsonl").unlink()
    assert command("export", run, "again") == 0
    assert "Not measured." in card(Path("again"))[1]
    assert "model-index" not in card(Path("again"))[0]


def test_names_are_not_markup(run: Path) -> None:
    names = checkpoint.load(run / "checkpoint-last.pt")["class_names"]
    names[0] = "<script>alert(1)</script> [x](http://host)"
    change_meta(run, class_names=names)
    assert command("export", run, "shared_run") == 0
    html = markdown_it.MarkdownIt("commonmark").render(card(Path("shared_run"))[1])
    assert "<script>" not in html
    assert "href" not in html


@pytest.mark.parametrize(
    ("weights", "license_of", "text"),
    [
        ("torchvision/resnet18", "bsd-3-clause", "BSD-3-Clause, the license of the starting weig"),
        ("nonlocal/i3d_baseline_8x8:x.pkl", "cc-by-nc-4.0", "the license of the starting weights"),
        ("/home/me/secret/a.pt", None, "The license of the starting weights is not known: ask"),
    ],
)
def test_the_license_of_the_starting_weights(
    run: Path, weights: str, license_of: str | None, text: str
) -> None:
    config = checkpoint.load(run / "checkpoint-last.pt")["config"]
    config["model"] = {**config["model"], "weights": weights}  # type: ignore[dict-item]
    change_meta(run, config=config)
    assert command("export", run, "shared_run") == 0
    front, rest = card(Path("shared_run"))
    assert front.get("license") == license_of
    assert text in rest
    assert "secret" not in rest


def test_a_card_has_frames_of_no_video_that_was_not_named(run: Path) -> None:
    assert command("export", run, "shared_run") == 0
    names = sorted(path.name for path in Path("shared_run").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]


def test_the_starting_weights_of_a_shared_folder_stay_known(run: Path) -> None:
    config = checkpoint.load(run / "checkpoint-last.pt")["config"]
    config["model"] = {**config["model"], "weights": "torchvision/resnet18"}  # type: ignore[dict-item]
    change_meta(run, config=config)
    assert command("export", run, "once") == 0
    assert command("export", "once", "twice") == 0
    for folder in ("once", "twice"):
        assert "BSD-3-Clause, the license of the starting weights" in card(Path(folder))[1]


def test_a_report_of_other_weights_is_not_used(run: Path) -> None:
    file = run / "test/report.json"
    report = json.loads(file.read_text())
    assert report["checkpoint"] == "checkpoint-last.pt"
    file.write_text(json.dumps(report | {"checkpoint": "best.safetensors"}))
    assert command("export", run, "shared_run") == 0
    assert "Not measured." in card(Path("shared_run"))[1]
