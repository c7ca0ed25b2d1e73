"""Errors of writing name the file. A limit on the size of files takes the place of a full disk."""

import gc
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
