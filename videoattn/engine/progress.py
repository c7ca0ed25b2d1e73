"""Displays progress: a live line on a terminal, plain lines in a log file."""

import sys
import time
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class Display:
    """Displays progress on stderr, or nothing if not `enabled`.

    A terminal gets one live line with a bar. A file or a pipe gets a plain line every
    `every_seconds`, without control characters.
    """

    def __init__(
        self, *, enabled: bool = True, console: Console | None = None, every_seconds: float = 30.0
    ) -> None:
        self.console = console or Console(file=sys.stderr)
        self.enabled = enabled
        self.every_seconds = every_seconds
        self._last_line = time.monotonic()
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

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, line: str, *, done: int, total: int) -> None:
        """Replaces the live line; in a file, prints a line if `every_seconds` have passed."""
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("")
            self._bar.update(self._task, description=line, completed=done, total=total)
        elif time.monotonic() - self._last_line >= self.every_seconds:
            self.line(line)

    def line(self, text: str) -> None:
        """Prints a permanent line above the live line."""
        if not self.enabled:
            return
        self._last_line = time.monotonic()
        # Soft wrapping keeps each line of a log file in one piece.
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)


@dataclass
class Clock:
    """Measures speed, the time spent waiting for data, and the time left."""

    steps_left: int
    waited: float = 0.0
    clips: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        self.started = time.perf_counter()

    def step(self, *, clips: int, waited: float = 0.0) -> None:
        """Counts a step; `waited` is in seconds."""
        self.waited += waited
        self.clips += clips
        self.steps += 1
        self.steps_left -= 1

    @property
    def clips_per_second(self) -> float:
        return self.clips / self._elapsed

    @property
    def wait_share(self) -> float:
        """The fraction of the time that was spent waiting for data."""
        return self.waited / self._elapsed

    @property
    def time_left(self) -> timedelta:
        """The time left at the average speed so far, validations included."""
        seconds = self._elapsed / max(1, self.steps) * self.steps_left
        return timedelta(seconds=round(seconds))

    @property
    def _elapsed(self) -> float:
        return max(1e-9, time.perf_counter() - self.started)
