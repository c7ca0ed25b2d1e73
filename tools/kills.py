"""Kills training at random instants, resumes it, and compares the result with an uninterrupted run.

Each run is killed and resumed until it ends. Then its weights, its optimizer and its metrics
must equal those of the uninterrupted run, bit for bit. The settings alternate: videos in files and
in shards, 0 and 2 loader processes, 1 and 2 training processes. So do the instants: at any time,
while a checkpoint is written, and during a validation.

    python tools/kills.py --kills 300 --folder /tmp/kills
"""

import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from videoattn.cli import prepare, train
from videoattn.cli.app import main
from videoattn.data.synthetic import write_demo_clips
from videoattn.engine.checkpoint import load_weights

sys.path.append(str(Path(__file__).parent / "bench"))
from common import print_table

RECIPE = """\
data: {num_workers: 0}
clip: {sampling: segments, num_frames: 4, height: 16, width: 16}
augment: {flip: false}
test: {num_clips: 2, short_side: 18}
model: {name: i3d_r18, options: {width: 2}, attention: {name: non_local}}
train: {num_epochs: 3, lr: 0.02, optimizer: adamw, save_every_steps: 3, precision: float32}
"""
INSTANTS = ("at any time", "writing a checkpoint", "validating")
STEPS_PER_EPOCH = 6
MOST_KILLS = 12
"""Largest number of kills of a run, after which it is left to end."""
LIMIT_SECONDS = 240.0
IMPORTED = (prepare, train)
"""The commands, imported here so that forked processes need not import them."""
_TIMES = ("clips_per_second", "wait_share")


class Setting(NamedTuple):
    """The videos and the processes of a run."""

    layout: str
    workers: int
    processes: int

    def words(self, name: str) -> list[str]:
        return [
            "train", "recipe.yaml", f"name={name}", f"data.root={self.layout}",
            f"data.layout={self.layout}", f"data.num_workers={self.workers}",
            f"train.batch_size={4 // self.processes}", "--resume=auto",
        ]  # fmt: skip


SETTINGS = [Setting(*values) for values in product(("folders", "shards"), (0, 2), (1, 2))]


class Job:
    """The processes of a training run, forked from this process, which has imported everything."""

    def __init__(self, words: Sequence[str], processes: int, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.started = time.monotonic()
        self.pids = [
            _fork(words, shared | {"RANK": rank, "LOCAL_RANK": rank}, log)
            for rank in range(processes)
        ]
        self.codes: dict[int, int] = {}

    def poll(self) -> bool:
        """Returns whether all processes are alive."""
        for pid in self.pids:
            if pid not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return not self.codes

    def wait(self, seconds: float) -> bool:
        """Waits until all processes have ended; returns whether they did within `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.poll()
            if len(self.codes) == len(self.pids):
                return True
            time.sleep(0.005)
        return False

    def send(self, number: int) -> None:
        for pid in self.pids:
            if pid not in self.codes:
                os.kill(pid, number)

    def end(self) -> bool:
        """Ends the remaining processes, as torchrun does. Returns whether all ended by themselves
        within 10 s."""
        alone = self.wait(10.0)
        self.send(signal.SIGTERM)
        if not self.wait(3.0):
            self.send(signal.SIGKILL)
            self.wait(LIMIT_SECONDS)
        return alone


def _fork(words: Sequence[str], environment: dict[str, object], log: Path) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update({name: str(value) for name, value in environment.items()})
    try:
        main(list(words))
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _is_at(instant: str, folder: Path) -> bool:
    """Returns whether the files in the folder show that the run is at the instant."""
    if instant == INSTANTS[1]:
        return any(folder.glob(".checkpoint-last.pt.*.partial"))
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    last = json.loads(lines[-1]) if lines and lines[-1].endswith("}") else {}
    return last.get("kind") == "train" and last["step"] % STEPS_PER_EPOCH == 0


def _kill(
    job: Job, instant: str, folder: Path, seconds: float, number: int, chance: random.Random
) -> bool:
    """Signals one or all processes at the instant. Returns whether the job was still running."""
    if instant == INSTANTS[0]:
        job.wait(chance.uniform(0.0, seconds))
    else:
        skipped = chance.randrange(3)  # the checkpoint or the validation to wait for
        was_there = False
        deadline = time.monotonic() + LIMIT_SECONDS
        while job.poll() and time.monotonic() < deadline:
            is_there = _is_at(instant, folder)
            if is_there and not was_there:
                if not skipped:
                    break
                skipped -= 1
            was_there = is_there
            time.sleep(0.0005)
        time.sleep(chance.uniform(0.0, 0.003 if instant == INSTANTS[1] else seconds / 20))
    if not job.poll():
        return False
    if number == signal.SIGKILL and chance.random() < 0.7:
        os.kill(chance.choice(job.pids), number)
    else:
        job.send(number)
    return True


def result_of(folder: Path) -> dict[str, object]:
    """Returns the tensors and the metrics of a finished run."""
    stored = torch.load(folder / "checkpoint-last.pt", weights_only=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if k not in _TIMES} for line in lines]
    parts = {name: stored[name] for name in ("model", "optimizer", "progress", "best")}
    best, _ = load_weights(folder / "best.safetensors")
    return {**parts, "metrics": metrics, "best weights": best}


def equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


class Killer:
    """Runs one setting repeatedly, and counts the outcomes of its kills."""

    def __init__(self, setting: Setting, number: int, chance: random.Random) -> None:
        self.setting, self.number, self.chance = setting, number, chance
        name = "whole_" + "_".join(map(str, setting))
        self.log = Path(f"{name}.log")
        job = Job(setting.words(name), setting.processes, self.log)
        job.wait(LIMIT_SECONDS)
        assert set(job.codes.values()) == {0}, self.log.read_text()
        self.seconds = time.monotonic() - job.started
        self.expected = result_of(Path("runs", name))
        self.runs = 0

    def run(self, outcomes: Counter[tuple[str, str]], instants: Iterator[str]) -> None:
        """Kills and resumes a new run until it ends, and adds its outcomes to `outcomes`."""
        self.runs += 1
        name = "killed_" + "_".join(map(str, (*self.setting, self.runs)))
        folder, log = Path("runs", name), Path(f"{name}.log")
        kills: list[tuple[str, str]] = []
        while True:
            job = Job(self.setting.words(name), self.setting.processes, log)
            instant = next(instants, None) if len(kills) < MOST_KILLS else None
            if instant is None or not _kill(
                job, instant, folder, self.seconds, self.number, self.chance
            ):
                break
            alone = job.end()
            how = "resumed" if (folder / "checkpoint-last.pt").exists() else "started again"
            kills.append((instant, how + (", the other process was ended" if not alone else "")))
        if not job.wait(LIMIT_SECONDS):
            end = "hangs"
        elif set(job.codes.values()) != {0}:
            end = "fails"
        else:
            end = "equal" if equal(result_of(folder), self.expected) else "differs"
        job.send(signal.SIGKILL)
        if end != "equal":
            print(f"{name} {end}: see {log.resolve()}", flush=True)
        outcomes.update((instant, f"{how}; {end}") for instant, how in kills)
        print(f"{name}: {len(kills)} kills, {end}; {outcomes.total()} kills in all", flush=True)


def kill(
    folder: Annotated[Path, typer.Option(help="A new folder for clips and runs.")],
    kills: Annotated[int, typer.Option(help="Number of kills.")] = 300,
    seed: int = 0,
    stop: Annotated[str, typer.Option(help="KILL, TERM or USR1.")] = "KILL",
    settings: Annotated[int, typer.Option(help="Use every N-th of the 8 settings.")] = 1,
) -> None:
    """Kill training at random instants, resume it, and count the outcomes."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    Path("recipe.yaml").write_text(RECIPE)
    write_demo_clips(Path("folders"), num_train_per_class=3, num_test_per_class=1)
    words = ["prepare", "shards", "recipe.yaml", "shards", "name=x", "data.root=folders"]
    packing = Job([*words, "--workers=1"], 1, Path("shards.log"))
    assert packing.wait(LIMIT_SECONDS), "packing the shards hangs"
    chance = random.Random(seed)
    number = signal.Signals[f"SIG{stop}"]
    killers = [Killer(setting, number, chance) for setting in SETTINGS[::settings]]
    outcomes: Counter[tuple[str, str]] = Counter()
    for killer in cycle(killers):
        left = kills - outcomes.total()
        if left <= 0:
            break
        killer.run(outcomes, islice(cycle(INSTANTS), left))
    rows = [(instant, how, count) for (instant, how), count in sorted(outcomes.items())]
    print_table(("instant", "outcome", "kills"), rows)
    if any(not how.endswith("; equal") for _, how in outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(kill)
