"""What a run says: a live line on a terminal, plain lines elsewhere, and files for machines."""

import json
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from videoattn.types import Failure

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Record = Mapping[str, str | int | float | None]


class Display:
    """Progress for people, on stderr; nothing at all where not `enabled`.

    A terminal gets one live line with a bar; a file or a pipe gets a plain line every
    `every_seconds`, without control characters.
    """

    def __init__(
        self, *, enabled: bool = True, console: Console | None = None, every_seconds: float = 30.0
    ) -> None:
        self.console = console or Console(file=sys.stderr)
        self.enabled = enabled
        self.every_seconds = every_seconds
        self._said = time.monotonic()
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        if enabled and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                console=self.console,
                transient=True,
            )

    def __enter__(self) -> "Display":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, line: str, *, done: int, total: int) -> None:
        """Where things are: replaces the live line, or is written now and then."""
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("")
            self._bar.update(self._task, description=line, completed=done, total=total)
        elif time.monotonic() - self._said >= self.every_seconds:
            self.line(line)

    def line(self, text: str) -> None:
        """A line that stays."""
        if not self.enabled:
            return
        self._said = time.monotonic()
        # Soft wrapping: a log's reader wants a line per line, not breaks at 80 columns.
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)


@dataclass
class Clock:
    """Time spent, time spent waiting for data, and what was done in it."""

    steps_left: int
    waited: float = 0.0
    clips: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        self.started = time.perf_counter()

    def step(self, *, clips: int, waited: float) -> None:
        self.waited += waited
        self.clips += clips
        self.steps += 1
        self.steps_left -= 1

    @property
    def clips_per_second(self) -> float:
        return self.clips / self._elapsed

    @property
    def wait_share(self) -> float:
        """Share of the time that the network stood waiting for data, 0 - 1."""
        return self.waited / self._elapsed

    @property
    def time_left(self) -> timedelta:
        """At the pace so far, evaluations included."""
        seconds = self._elapsed / max(1, self.steps) * self.steps_left
        return timedelta(seconds=round(seconds))

    @property
    def _elapsed(self) -> float:
        return max(1e-9, time.perf_counter() - self.started)


class Log:
    """metrics.jsonl and TensorBoard events of one run; writes nothing where not `enabled`.

    `resumed_at` is the step that a resumed run continues from: what an interrupted run had written
    after it is dropped, so that the curve has every step once; so is that step's own validation
    where it is not `validated` and will be again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        enabled: bool = True,
        resumed_at: int = 0,
        validated: bool = True,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self._board: SummaryWriter | None = None
        self._enabled = enabled
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        last = {"train": resumed_at, "validation": resumed_at if validated else resumed_at - 1}
        records = [json.loads(line) for line in _lines(self.path)] if resumed_at else []
        kept = [record for record in records if record["step"] <= last[record["kind"]]]
        self.path.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self._board = _board(folder / "tensorboard", purge_step=resumed_at + 1)

    def write(self, kind: Literal["train", "validation"], *, step: int, record: Record) -> None:
        """One line, flushed; every number also to TensorBoard as `kind/name`."""
        if not self._enabled:
            return
        # NaN is not JSON.
        plain = {key: None if value != value else value for key, value in record.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps({"kind": kind, "step": step} | plain) + "\n")
        for key, value in plain.items():
            if self._board is not None and isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{key}", value, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _board(folder: Path, *, purge_step: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

    return SummaryWriter(str(folder), purge_step=purge_step)


def read_failures(path: Path) -> list[Failure]:
    """What `append_failures` wrote; none where there is no file."""
    return [Failure(**json.loads(line)) for line in _lines(path)]


def append_failures(path: Path, failures: Iterable[Failure]) -> None:
    """Each failure as one line of JSON at the end of `path`."""
    with open(path, "a") as file:
        file.writelines(json.dumps(as_record(failure)) + "\n" for failure in failures)


def keep_failures(path: Path, indices: Collection[int]) -> None:
    """Drops what an interrupted run had written after its last checkpoint: it will do so again."""
    kept = [failure for failure in read_failures(path) if failure.index in indices]
    path.unlink(missing_ok=True)
    if kept:
        append_failures(path, kept)


def as_record(failure: Failure) -> dict[str, str | int]:
    """A failure as plain values."""
    return {"index": failure.index, "path": failure.path, "reason": failure.reason}


def _lines(path: Path) -> list[str]:
    """The complete lines of a file: an interrupted run may have left half of one."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines() if line.endswith("}")]
