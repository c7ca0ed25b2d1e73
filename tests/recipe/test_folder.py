"""The folder of a run: erasing it, and locking it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import Checkpoint
from videoattn.engine.parallel import Parallel
from videoattn.recipe.config import Config, DataConfig
from videoattn.recipe.folder import Resume, claim, folder_of
from videoattn.recipe.load import to_dict, to_yaml
from videoattn.recipe.memory import remember_data, remembered_data

CONFIG = Config(name="x", data=DataConfig(root="videos"))


def start(folder: Path, *, overwrite: bool = False, resume: Resume = False) -> None:
    with claim(folder, CONFIG, Parallel(), resume=resume, overwrite=overwrite) as previous:
        assert previous is None


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def finished(folder: Path) -> Path:
    start(folder)
    for name in ("tensorboard", "test", "pictures"):
        (folder / name).mkdir()
    for name in (
        "checkpoint-last.pt", "checkpoint-epoch-0001.pt", "best.safetensors", "metrics.jsonl",
        "skipped.jsonl", "tensorboard/events.out.tfevents.1", "test/report.json",
    ):  # fmt: skip
        (folder / name).write_text("content\n")
    return folder


@pytest.mark.parametrize("moved", [(), ("checkpoint-last.pt",), ("checkpoint-last.pt", "x")])
def test_a_run_is_not_erased_without_overwrite(tmp_path: Path, moved: tuple[str, ...]) -> None:
    """Also after its last checkpoint was moved away."""
    folder = finished(tmp_path / "x")
    for name in moved:
        (folder / name).unlink(missing_ok=True)
    before = files(folder)
    with pytest.raises(ValueError, match=r"x holds a run: .*start again with --overwrite, or choo"):
        start(folder)
    assert files(folder) == before


def test_overwrite_erases_what_training_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder = finished(tmp_path / "x")
    mine = {"notes.txt", "shared/model.safetensors", "pictures/a.png", "test/mine.csv", "a.pt"}
    (folder / "shared").mkdir()
    for name in mine:
        (folder / name).write_text("mine")
    (folder / "link.txt").symlink_to(tmp_path / "nowhere")
    start(folder, overwrite=True)
    assert files(folder) == mine | {"config.yaml", "link.txt"}


@pytest.mark.parametrize(
    "content",
    [
        {"thesis.txt": "mine"},
        {"config.yaml": "defaults: [model]\nhydra: {run: x}\n", "data/thesis.txt": "mine"},
        {"config.yaml": "- a\n", "checkpoint-last.pt": "mine"},
        {"checkpoint-last.pt": "mine"},
        {"config.yaml": ""},
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_never_used(
    tmp_path: Path, content: dict[str, str], overwrite: bool
) -> None:
    folder = tmp_path / "x"
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=r"x holds files that are not a run; choose another name"):
        start(folder, overwrite=overwrite)
    assert {name: (folder / name).read_text() for name in files(folder)} == content


def test_a_start_that_was_interrupted_before_its_first_step_starts_again(tmp_path: Path) -> None:
    start(tmp_path / "x")
    (tmp_path / "x/metrics.jsonl").touch()
    (tmp_path / "x/.checkpoint-last.pt.abc.partial").touch()
    start(tmp_path / "x")
    assert files(tmp_path / "x") == {"config.yaml"}
    (tmp_path / "x/metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"x holds a run: start again with --overwrite, or choose"):
        start(tmp_path / "x")


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/events.out.tfevents.1").write_text("mine")
    folder = finished(tmp_path / "x")
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to(tmp_path / "victim/events.out.tfevents.1")
    for link in ("tensorboard", "test"):
        for path in (folder / link).iterdir():
            path.unlink()
        (folder / link).rmdir()
        (folder / link).symlink_to(tmp_path / "victim")
        with pytest.raises(ValueError, match=rf"x/{link} is a link; remove it, or choose another"):
            start(folder, overwrite=True)
        (folder / link).unlink()
        (folder / link).mkdir()
    assert (tmp_path / "victim/events.out.tfevents.1").read_text() == "mine"
    (tmp_path / "y").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match=r"y is a link; remove it, or choose another outp"):
        start(tmp_path / "y")


def test_nothing_to_resume_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"nothing to resume: .*x/checkpoint-last\.pt does not"),
        claim(tmp_path / "x", CONFIG, Parallel(), resume=True, overwrite=False),
    ):
        pass
    assert not (tmp_path / "x").exists()


def test_a_second_process_is_refused_while_the_first_trains(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    with ExitStack() as stack:
        stack.enter_context(claim(folder, CONFIG, Parallel(), resume=False, overwrite=False))
        for overwrite in (False, True):
            with pytest.raises(
                ValueError, match=rf"x is in use by process {os.getpid()} on .*; wait for it to end"
            ):
                start(folder, overwrite=overwrite)
    start(folder)
    assert files(folder) == {"config.yaml"}


def test_a_dead_holder_does_not_block(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.recipe.test_folder import CONFIG, Parallel, claim\n"
        "with claim(Path(sys.argv[1]), CONFIG, Parallel(), resume=False, overwrite=False):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "x")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"x is in use by process {holder.pid} on "):
            start(tmp_path / "x")
        holder.send_signal(signal.SIGKILL)
    start(tmp_path / "x")


def test_the_data_of_a_run_are_recorded_outside_of_its_folder(tmp_path: Path) -> None:
    assert remembered_data(tmp_path / "x") is None
    start(tmp_path / "x")
    assert remembered_data(tmp_path / "x")["root"] == "videos"
    (tmp_path / "x").rename(tmp_path / "y")
    assert remembered_data(tmp_path / "y") is None
    remember_data(tmp_path / "y", Config(name="x", data=DataConfig(root="other")))
    assert remembered_data(tmp_path / "y")["root"] == "other"


def test_a_home_that_cannot_be_written_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIDEOATTN_HOME", str(tmp_path / "file"))
    start(tmp_path / "x")
    assert "x` will ask for its data: [Errno 20] cannot write " in capsys.readouterr().out


def test_a_run_from_a_typed_command_is_a_run(tmp_path: Path) -> None:
    """Its config.yaml holds an address that a recipe may not have."""
    shards = DataConfig(root="", train_split="pipe:cat a.tar")
    config = Config(name="x", data=shards)
    with claim(tmp_path / "x", config, Parallel(), resume=False, overwrite=False):
        (tmp_path / "x/metrics.jsonl").write_text("{}\n")
    start(tmp_path / "x", overwrite=True)
    assert files(tmp_path / "x") == {"config.yaml"}


def stored(config: Config = CONFIG) -> Checkpoint:
    return {
        "format": "videoattn/1", "version": "0", "model": {}, "optimizer": {}, "progress": {},
        "best": {}, "config": to_dict(config), "class_names": ["a"], "preprocessing": {},
    }  # fmt: skip


def test_auto_starts_without_a_checkpoint_and_resumes_with_one(tmp_path: Path) -> None:
    start(tmp_path / "x", resume="auto")
    checkpoint.save(tmp_path / "x/checkpoint-last.pt", stored())
    (tmp_path / "x/.checkpoint-last.pt.abc.partial").touch()
    modes: tuple[Resume, ...] = ("auto", True)
    for resume in modes:
        with claim(tmp_path / "x", CONFIG, Parallel(), resume=resume, overwrite=False) as previous:
            assert previous is not None
            assert previous["config"] == to_dict(CONFIG)
    assert files(tmp_path / "x") == {"config.yaml", "checkpoint-last.pt"}


def test_auto_refuses_a_checkpoint_that_it_cannot_continue(tmp_path: Path) -> None:
    """It neither starts again nor erases it."""
    start(tmp_path / "x")
    checkpoint.save(tmp_path / "x/checkpoint-last.pt", stored(replace(CONFIG, seed=7)))
    with pytest.raises(ValueError, match=r"with another config: seed was 7, is 0\. Resume with"):
        start(tmp_path / "x", resume="auto")
    (tmp_path / "x/checkpoint-last.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"checkpoint-last\.pt: is truncated after 4 bytes"):
        start(tmp_path / "x", resume="auto")
    assert files(tmp_path / "x") == {"config.yaml", "checkpoint-last.pt"}


FIRST = {"kind": "train", "step": 1, "epoch": 1}


@pytest.mark.parametrize(
    ("record", "name", "seed"),
    [
        (FIRST, "", 0),
        (FIRST | {"epoch": 2}, "", 0),  # its checkpoint was moved away
        (FIRST | {"kind": "validation"}, "", 0),
        (FIRST, "best.safetensors", 0),
        (FIRST, "", 1),  # the log of another run
    ],
)
def test_auto_starts_again_if_the_log_is_of_the_first_epoch_of_the_same_run(
    tmp_path: Path, record: dict[str, object], name: str, seed: int
) -> None:
    start(tmp_path / "x")
    (tmp_path / "x/config.yaml").write_text(to_yaml(replace(CONFIG, seed=seed)))
    (tmp_path / "x/metrics.jsonl").write_text(json.dumps(record) + '\n{"kind": "tr')
    if name:
        (tmp_path / "x" / name).touch()
    if (record, name, seed) == (FIRST, "", 0):
        start(tmp_path / "x", resume="auto")
        assert files(tmp_path / "x") == {"config.yaml"}
    else:
        with pytest.raises(ValueError, match=r"x holds a run: start again with --overwrite, or"):
            start(tmp_path / "x", resume="auto")
        assert files(tmp_path / "x") == {"config.yaml", "metrics.jsonl"} | {name} - {""}


def test_a_moved_run_is_resumed_where_it_is(tmp_path: Path) -> None:
    recipe = tmp_path / "moved/config.yaml"
    recipe.parent.mkdir()
    recipe.write_text(to_yaml(CONFIG))
    assert folder_of(recipe, CONFIG, True) == Path("runs/x")  # there is nothing to resume
    (tmp_path / "moved/checkpoint-last.pt").touch()
    modes: tuple[Resume, ...] = (True, "auto")
    for resume in modes:
        assert folder_of(recipe, CONFIG, resume) == tmp_path / "moved"
        assert folder_of(str(recipe), CONFIG, resume) == tmp_path / "moved"
    assert folder_of(recipe, CONFIG, False) == Path("runs/x")
    assert folder_of(recipe, replace(CONFIG, name="y"), True) == Path("runs/y")
    assert folder_of(to_dict(CONFIG), CONFIG, True) == Path("runs/x")
    other = tmp_path / "moved/other.yaml"
    other.write_text(to_yaml(CONFIG))
    assert folder_of(other, CONFIG, True) == Path("runs/x")


def test_a_resumed_run_is_remembered_where_it_is(tmp_path: Path) -> None:
    start(tmp_path / "x")
    checkpoint.save(tmp_path / "x/checkpoint-last.pt", stored())
    (tmp_path / "x").rename(tmp_path / "y")
    assert remembered_data(tmp_path / "y") is None
    with claim(tmp_path / "y", CONFIG, Parallel(), resume=True, overwrite=False):
        assert remembered_data(tmp_path / "y")["root"] == "videos"


def test_loader_processes_of_a_dead_holder_do_not_block(tmp_path: Path) -> None:
    """They live on for some seconds."""
    code = (
        "import multiprocessing, sys, time\n"
        "from pathlib import Path\n"
        "from tests.recipe.test_folder import CONFIG, Parallel, claim\n"
        "with claim(Path(sys.argv[1]), CONFIG, Parallel(), resume=False, overwrite=False):\n"
        "    worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))\n"
        "    worker.start()\n"
        "    time.sleep(1)\n"
        "    print(worker.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "x")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        try:
            start(tmp_path / "x")
        finally:
            os.kill(worker, signal.SIGKILL)
