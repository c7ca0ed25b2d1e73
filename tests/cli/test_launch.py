"""Several processes: errors, lost processes, signals, and the job of docs/training.md."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.cli.test_commands import RECIPE, command
from videoattn.data.synthetic import write_demo_clips
from videoattn.engine.checkpoint import load
from videoattn.engine.signals import StoppedError

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "videoattn", "launch"]
PAIR = [*LAUNCH, "--standalone", "--nproc-per-node", "2"]
LOADERS = "data.num_workers=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips and a recipe; runs go to its folder `runs`."""
    folder = tmp_path_factory.mktemp("launch")
    write_demo_clips(folder / "clips", num_train_per_class=3, num_test_per_class=1)
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def words(name: str, *more: str) -> list[str]:
    return ["train", "tiny.yaml", "data.root=clips", f"name={name}", LOADERS, *more]


def wait_until(is_true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not is_true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def progress(run: Path) -> tuple[int, int]:
    values = load(run / "checkpoint-last.pt")["progress"]
    assert isinstance(values["epoch"], int)
    assert isinstance(values["step"], int)
    return values["epoch"], values["step"]


def test_a_lost_process_restarts_the_job_from_the_last_checkpoint(
    folder: Path, environment: dict[str, str]
) -> None:
    """The result is that of a job that lost none, bit for bit."""
    common = ("train.num_epochs=4", "train.save_every_steps=1", "--resume=auto")
    whole = subprocess.run(
        [*PAIR, *words("whole", *common)],
        cwd=folder, env=environment, text=True, capture_output=True,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stderr
    lost = folder / "runs/lost"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    with subprocess.Popen(
        [*torchrun, "--max-restarts", "1", "-m", "videoattn", *words("lost", *common)],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as job:  # fmt: skip
        wait_until((lost / "checkpoint-last.pt").exists, job)
        holder = re.match(r"process (\d+) on ", (lost / ".lock").read_text())
        assert holder is not None
        os.kill(int(holder[1]), signal.SIGKILL)
        _, errors = job.communicate(timeout=240)
    assert job.returncode == 0, errors
    assert len(re.findall(r"^resumed after step \d+ of \d+$", errors, re.MULTILINE)) == 1, errors
    assert "exitcode: -9" in errors
    ours, theirs = (
        load(folder / "runs" / name / "checkpoint-last.pt") for name in ("lost", "whole")
    )
    for name, value in theirs["model"].items():
        assert torch.equal(value, ours["model"][name]), name


def test_an_error_is_one_line(folder: Path, environment: dict[str, str]) -> None:
    wrong = ["train", "tiny.yaml", "data.root=nowhere"]
    done = subprocess.run(
        [*PAIR, *wrong], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    line = done.stderr
    assert line.startswith(
        "error: data.root: nowhere does not exist; need the folder of the videos"
    )


def test_the_slurm_job_in_the_docs_starts_itself_again(
    folder: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """SLURM sends SIGUSR1 to all processes of `srun`, the loaders too."""
    (page,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.DOTALL)
    for old, new in (
        ("--nproc-per-node 8", "--nproc-per-node 2"),
        ("recipe.yaml data.root=clips", " ".join(words("job", "train.num_epochs=400")[1:])),
        (":29500", ":0"),
    ):
        assert old in page
        page = page.replace(old, new)
    tools = {
        "srun": 'exec "$@"',
        "scontrol": f'[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> {tmp_path}/requeued',
        "videoattn": f'exec {sys.executable} -m videoattn "$@"',
    }
    for name, line in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(page)
    slurm = {"SLURM_JOB_ID": "42", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "a"}
    path = os.pathsep.join([str(tmp_path), environment["PATH"]])
    run = folder / "runs/job"
    steps = [0]
    for _ in range(2):
        log = run / "metrics.jsonl"
        size = log.stat().st_size if log.exists() else 0
        with subprocess.Popen(
            ["bash", tmp_path / "job.sh"], cwd=folder, env=environment | slurm | {"PATH": path},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as job:  # fmt: skip
            wait_until(lambda log=log, size=size: log.exists() and log.stat().st_size > size, job)  # type: ignore[misc]
            for process in descendants(job.pid):
                with suppress(ProcessLookupError):  # `ps` itself has ended
                    os.kill(process, signal.SIGUSR1)
            _, errors = job.communicate(timeout=120)
        assert job.returncode == 75, errors
        assert errors.count("stopped by a signal ") == 1, errors
        assert errors.count(f"{Path('runs/job/checkpoint-last.pt')} is complete: continue") == 1
        assert "Traceback" not in errors
        epoch, step = progress(run)
        assert 2 * epoch + step > steps[-1]
        steps.append(2 * epoch + step)
    assert f"resumed after step {steps[1]} of 800" in errors
    assert (tmp_path / "requeued").read_text() == "requeue 42\n" * 2


def descendants(pid: int) -> list[int]:
    words = ["ps", "-eo", "pid=,ppid="]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listed.splitlines())
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    return found[1:]


def test_the_exit_status_of_a_stopped_run_is_75(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*words: object, **options: object) -> None:
        raise StoppedError("stopped by a signal after step 3; x is complete")

    monkeypatch.setattr("videoattn.cli.train.train", stop)
    assert command("train", "recipe.yaml") == 75
    assert capsys.readouterr().err == "stopped by a signal after step 3; x is complete\n"


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ([], False),
        (["--resume"], True),
        (["--resume=auto"], "auto"),
        (["--resume-if-possible"], "auto"),
        (["--resume", "--resume=auto"], True),
    ],
)
def test_flags_of_resume(flags: list[str], mode: object, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[object] = []

    def train(*words: object, resume: object, **options: object) -> None:
        modes.append(resume)

    monkeypatch.setattr("videoattn.cli.train.train", train)
    assert command("train", *flags, "recipe.yaml") == 0
    assert modes == [mode]
