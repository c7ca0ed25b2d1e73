"""`videoattn predict` on many videos: files, resuming, several processes, pictures."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import videoattn
from tests.cli.test_commands import command, picture_size, refused
from tests.pinned import write
from videoattn import explain
from videoattn.cli.answers import Answer, AnswerFiles, csv_format, json_format
from videoattn.cli.predict import find_videos, unique_stems
from videoattn.engine import checkpoint
from videoattn.engine.parallel import Parallel
from videoattn.models.norms import fold_batch_norms
from videoattn.recipe.config import AttentionConfig, ModelConfig
from videoattn.recipe.model import make_model
from videoattn.recipe.run import Predictor, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a shared folder and clips."""
    folder = tmp_path_factory.mktemp("predict")
    write.unpack(folder)
    return folder


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(folder)
    yield
    for path in (*folder.glob("*.csv"), *folder.glob("*.json")):
        path.unlink()


def all_clips() -> list[str]:
    return sorted(str(path) for path in Path("clips").rglob("*.mp4"))


def rows_of(path: Path | str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("inside")
def test_folders_patterns_and_lists_name_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = all_clips()
    first = str(Path(clips[0]).parent)
    assert find_videos(["clips"]) == clips
    assert find_videos([f"{first}/*.mp4"]) == [c for c in clips if Path(c).parent == Path(first)]
    assert find_videos(["clips/**/*.mp4"]) == clips
    assert find_videos(["clips/*"]) == clips  # folders
    assert find_videos([clips[1], "clips", clips[1]]) == [
        clips[1], *(c for c in clips if c != clips[1]),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{clips[2]}\n\n{first}\n"))
    assert find_videos(["-"])[0] == clips[2]
    assert find_videos(["nothing.mp4"]) == ["nothing.mp4"]  # which fails


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("clips/*.avi", "clips/*.avi: no file has a name like this"),
        ("empty", "empty: no videos in this folder; its files are a.txt"),
        ("rtsp://host/x", "rtsp://host/x is an address; need a file: save some seconds first, with "
         "ffmpeg -i rtsp://host/x -t 10 clip.mp4"),
        ("-", "no video is given; need paths, or - and a path per line on standard input"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("inside")
def test_words_without_videos(word: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir(exist_ok=True)
    Path("empty/a.txt").touch()
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert refused("predict", "run", word) == f"error: {message}"


@pytest.mark.usefixtures("inside")
def test_files_have_a_row_per_video_with_its_probabilities(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree("clips", "mixed")
    Path("mixed/a_broken.mp4").write_text("not a video")
    words = ("predict", "run", "mixed", "--top", 2, "--csv", "a.csv", "--json", "a.json")
    assert command(*words) == 1
    clips = find_videos(["mixed"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("failed: mixed/a_broken.mp4: cannot be opened as a video: ")
    assert said[1] == f"{len(clips)} videos, 1 failed: a.csv, a.json"
    predictor = videoattn.load("run")
    expected = predictor.evaluate(predictor.samples(clips), Parallel())
    rows, values = rows_of("a.csv"), json.loads(Path("a.json").read_text())
    assert [row["video"] for row in rows] == [value["video"] for value in values] == clips
    (broken,) = (row for row in rows if row["error"])
    assert (broken["video"], broken["class_1"]) == ("mixed/a_broken.mp4", "")
    good = [row for row in rows if not row["error"]]
    for index, shares in zip(expected.indices.tolist(), expected.probabilities, strict=True):
        best = shares.topk(2)
        (row,) = (row for row in good if row["video"] == clips[index])
        assert row["class_1"] == predictor.class_names[int(best.indices[0])]
        assert [float(row[f"probability_{k}"]) for k in (1, 2)] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )
        (value,) = (value for value in values if value["video"] == clips[index])
        assert value["classes"][1]["probability"] == float(row["probability_2"])
        assert value["error"] is None
    shutil.rmtree("mixed")


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.usefixtures("inside")
def test_an_interrupted_command_is_resumed_to_the_same_files(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("predict", "run", "clips", "--csv", "{}.csv", "--json", "{}.json")
    folded: list[object] = []

    def fold(model: nn.Module, clip: Tensor) -> nn.Module:
        folded.append(clip)
        return fold_batch_norms(model, clip)

    monkeypatch.setattr("videoattn.recipe.run.fold_batch_norms", fold)
    monkeypatch.setattr("videoattn.recipe.run.FOLD_FROM", 2 * len(find_videos(["clips"])))
    assert command(*(word.format("whole") for word in words)) == 0
    scores = Predictor.score_samples

    def interrupted(self: Predictor, *args: Any) -> Iterator[Any]:
        for number, scored in enumerate(scores(self, *args)):
            if number == steps:
                raise KeyboardInterrupt
            yield scored

    cut = [word.format("cut") for word in words]
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "score_samples", interrupted)
        assert command(*cut) != 0
    assert len(rows_of("cut.csv")) < len(rows_of("whole.csv"))
    assert command(*cut, "--resume") == 0
    assert len(folded) == 3  # the videos that are left are scored as all of them are
    for end in ("csv", "json"):
        assert Path(f"cut.{end}").read_bytes() == Path(f"whole.{end}").read_bytes()
    assert command(*cut, "--resume") == 0  # with nothing left to do
    assert Path("cut.json").read_bytes() == Path("whole.json").read_bytes()


ANSWERS = [
    Answer("a.mp4", [("run", 0.75), ("walk", 0.125)]),
    Answer('quoted ",\n name.mp4', error="cannot be opened, at all"),
    Answer("=cmd.mp4", [("=1+1", 1.0)]),
    Answer("ü.mp4", [("run", 0.5), ("walk", 0.25)]),
    Answer("\udcff.mp4", [("run", 0.5)]),
]


@pytest.mark.parametrize("form", [csv_format(2), json_format()], ids=["csv", "json"])
def test_files_that_were_cut_at_any_byte_are_completed(form: Any, tmp_path: Path) -> None:
    videos = [answer.video for answer in ANSWERS]

    def complete(path: Path, *, resume: bool) -> int:
        files = AnswerFiles({path: form})
        todo = files.start(videos, resume=resume)
        for answer in ANSWERS:
            if answer.video in todo:
                files.write([answer])
        files.end()
        return len(todo)

    whole = tmp_path / "whole"
    assert complete(whole, resume=False) == len(ANSWERS)
    data = whole.read_bytes()
    numbers = []
    for size in range(len(data) + 1):
        path = tmp_path / "cut"
        path.write_bytes(data[:size])
        numbers.append(complete(path, resume=True))
        assert path.read_bytes() == data, size
    assert numbers == sorted(numbers, reverse=True)
    assert {numbers[0], numbers[-1]} == {len(ANSWERS), 0}


def test_csv_files_run_no_formulas(tmp_path: Path) -> None:
    files = AnswerFiles({tmp_path / "a.csv": csv_format(1)})
    files.start(["=cmd.mp4"], resume=False)
    files.write([ANSWERS[2]])
    files.end()
    (row,) = rows_of(tmp_path / "a.csv")
    assert (row["video"], row["class_1"]) == ("'=cmd.mp4", "'=1+1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--csv", "old.csv"), "old.csv already exists; continue it with --resume, or choose a"),
        (("--resume",), "resume: there is no file to continue; add --csv FILE or --json FILE"),
        (("--csv", "x", "--json", "x"), "csv and json: both are x; choose two files"),
        (("--out", "x"), "output: it is the folder of the pictures; add --why"),
        (("--csv", "old.csv", "--resume"), "old.csv was not written by this command: its columns"),
        (("--json", "old.csv", "--resume"), "old.csv was not written by this command: it does not"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("inside")
def test_files_that_are_refused(words: tuple[str, ...], message: str) -> None:
    Path("old.csv").write_text("mine,yours\r\n1,2\r\n")
    assert message in refused("predict", "run", "clips", *words)
    assert Path("old.csv").read_text() == "mine,yours\n1,2\n"


@pytest.mark.usefixtures("inside")
def test_two_processes_write_the_same_file(folder: Path) -> None:
    assert command("predict", "run", "clips", "--csv", "one.csv") == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    words = ["-m", "videoattn", "predict", "run", "clips", "--csv", "two.csv", "--device", "cpu"]
    subprocess.run(
        [*launch, *words],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert Path("two.csv").read_bytes() == Path("one.csv").read_bytes()


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("attention", [None, "non_local"])
def test_a_network_without_torchvision_does_not_import_it(
    attention: str | None, tmp_path: Path
) -> None:
    """Importing torchvision or torch._dynamo takes as long as importing torch, and the second makes
    a folder in the system's temporary folder."""
    config = load("run").meta["config"]
    plain = {**config, "model": {**config["model"], "attention": {"name": attention}}}
    chosen = ModelConfig("i3d_r18", {"width": 1}, attention=AttentionConfig(attention))
    model = make_model(chosen, 3)
    meta = {"config": plain, "class_names": ["a", "b", "c"], "preprocessing": {}}
    checkpoint.save_folder(tmp_path / "plain", model.state_dict(), meta)
    code = (
        "import sys\nfrom videoattn.cli.app import main\n"
        f"try: main(['predict', '{tmp_path}/plain', {all_clips()[0]!r}])\nexcept SystemExit: pass\n"
        "print([m for m in ('torchvision', 'torch._dynamo', 'sklearn', 'matplotlib') "
        "if m in sys.modules])"
    )
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "[]"
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.usefixtures("inside")
def test_why_draws_the_score_and_the_strongest_block(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    titles: list[str] = []
    for name in ("draw_gate", "draw_sheet"):
        draw = getattr(explain, name)

        def keep(*args: Any, title: str, draw: Any = draw, **options: Any) -> Any:
            titles.append(title)
            return draw(*args, title=title, **options)

        monkeypatch.setattr(explain, name, keep)
    clips = all_clips()[:2]
    assert command("predict", "run", *clips, "--why", "--top", 1, "--out", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    stems = unique_stems(clips)
    assert lines[2:4] == [f"  {tmp_path / stems[0]}_{kind}.png" for kind in ("why", "attention")]
    assert all(min(picture_size(Path(line.strip()))) > 100 for line in lines[2:4] + lines[6:8])
    assert len(list(tmp_path.iterdir())) == 4
    assert re.search(r"\nHiResCAM, exact: its sum is the score without the bias, -?\d", titles[0])
    assert re.search(
        r": layer3.1_non_local\nthe attention block that changes its input most, by \d+ %|"
        r": layer2.1_non_local\nthe attention block that changes its input most, by \d+ %",
        titles[1],
    )


def test_pictures_of_videos_with_one_name_have_different_names() -> None:
    stems = unique_stems(["a/x.mp4", "b/x.mp4", "b/y z.mp4", "b/y_z.mp4"])
    assert len(set(stems)) == 4
    assert all("/" not in stem for stem in stems)
    assert unique_stems(["/v/x.mp4"]) == ["x"]
