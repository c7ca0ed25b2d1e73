"""Errors of writing name the file. A limit on the size of files takes the place of a full disk."""

import gc
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.test_commands import RECIPE, command, refused
from videoattn.data.synthetic import write_demo_clips
from videoattn.engine.failures import append_failures
from videoattn.engine.trackers import JsonLines
from videoattn.types import Failure


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips, a recipe and a run."""
    folder = tmp_path_factory.mktemp("full")
    write_demo_clips(folder / "clips", num_train_per_class=1, num_test_per_class=1)
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command("train", "tiny.yaml", "data.root=clips", "train.num_epochs=1") == 0
    return folder


@pytest.mark.parametrize(
    ("num_bytes", "words", "message"),
    [
        (1000, "train tiny.yaml data.root=clips name=x", "cannot write runs/x/config.yaml: {}; no"),
        (8000, "train tiny.yaml data.root=clips name=y", "cannot write runs/y/checkpoint-last.pt"),
        (1000, "test runs/tiny", "cannot write runs/tiny/test/predictions.csv: {}; nothing was"),
        (1000, "export runs/tiny out", "cannot write out/model.safetensors: {}; nothing was"),
        (1000, "browse tiny.yaml data.root=clips --out b.png", "cannot write b.png: {}; nothing"),
        (1000, "visualize runs/tiny clips/test/grows/0000.mp4 --out v", "cannot write v/0000_"),
        (60, "prepare verify clips", "runs/verify-clips/checked.jsonl: {}"),
        (100, "prepare index clips", "clips/videoattn_index.jsonl: {}"),
        (9000, "prepare shards clips/test packed --workers 1", "cannot write packed/000000"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_commands_name_the_file(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    num_bytes: int,
    words: str,
    message: str,
) -> None:
    """`capsys` keeps the output in memory: the limit is that of all files."""
    monkeypatch.chdir(folder)
    with largest_file(num_bytes):
        error = refused(*words.split())
        gc.collect()  # closes the tar file that webdataset leaves open
    assert error.startswith(f"error: {message.format('File too large')}")
    assert not [path for path in folder.rglob("*.partial")]


def test_files_that_grow_are_named(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "metrics.jsonl")
    with largest_file(100):
        with pytest.raises(OSError, match=r"File too large: '.*/skipped\.jsonl'$"):
            append_failures(tmp_path / "skipped.jsonl", [Failure(0, "a" * 200, "gone")])
        with pytest.raises(OSError, match=r"File too large: '.*/metrics\.jsonl'$"):
            log.write("train", 1, {f"number {k}": k for k in range(20)})


@pytest.mark.parametrize(
    ("words", "file", "shown"),
    [
        ("test runs/tiny", "runs/tiny/test/report.json", "8 videos, 8 decoded, 0 failed"),
        ("test runs/tiny --out x", "x/predictions.csv", "8 videos, 8 decoded, 0 failed"),
        ("test runs/tiny --out y", "y/confusion.png", "video accuracy"),
        ("prepare verify clips --out v", "v/clean.txt", "16 files: 16 clean, 0 broken"),
        ("prepare verify clips --out w", "w/classes.txt", "16 files: 16 clean, 0 broken"),
    ],
)
def test_results_are_shown_although_their_file_cannot_be_written(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    file: str,
    shown: str,
) -> None:
    monkeypatch.chdir(folder)
    Path(file).unlink(missing_ok=True)
    Path(file).mkdir(parents=True)  # a folder where the file belongs
    assert refused(*words.split()).startswith(f"error: cannot write {file}: Is a directory; ")
    assert shown in capsys.readouterr().out
    Path(file).rmdir()


@pytest.mark.parametrize("out", ["/proc", "/sys", "/proc/self/task"])
def test_a_folder_that_cannot_be_written_is_found_before_scoring(
    folder: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("videoattn.recipe.run.Predictor.evaluate", None)
    message = rf"error: cannot write to {out}: .*; choose a folder with --out"
    assert re.match(message, refused("test", "runs/tiny", "--out", out))
