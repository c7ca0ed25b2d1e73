"""Which video each loader process is reading: one that dies, or never returns, is told by its file.

A process notes what it reads in memory that it shares with the trainer, and sets an alarm that the
kernel rings: it ends the process whatever C code it is in. Torch finds that a process has gone;
what is noted here says on which file, and how it ended says why. All of it costs microseconds.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import torch
from torch.utils.data import get_worker_info

from videoattn.data.decode import DecodeError

# What a decoder does to itself, or has done to it by the alarm. Other signals come from outside
# (an administrator, the kernel when memory is short; SIGBUS: /dev/shm is full).
_OF_THE_FILE = (signal.SIGALRM, signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


class WorkerDiedError(DecodeError):
    """A loader process that died or was ended. `index` is the sample that it was reading where the
    file is to blame, else None; `path` then is the last file that it had in hand."""

    def __init__(self, path: str | Path, reason: str, index: int | None) -> None:
        super().__init__(path, reason)
        self.args = (str(path), reason, index)
        self.index = index


class Watch:
    """Notes of `num_workers` processes, and a limit in seconds on each sample (0: none)."""

    def __init__(self, num_workers: int, *, timeout_seconds: float) -> None:
        if timeout_seconds < 0:
            raise ValueError(
                f"timeout_seconds: got {timeout_seconds}; need seconds, or 0 for no limit"
            )
        self.timeout_seconds = timeout_seconds
        # Of each process: its id, 1 + the sample that it read last, and whether it is at it.
        self._notes = torch.zeros(num_workers, 3, dtype=torch.int64).share_memory_()
        self._processes: list[BaseProcess] = []

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Around the reading of a sample; does nothing outside a loader process."""
        worker = get_worker_info()
        if worker is None:
            yield
            return
        note = self._notes[worker.id]
        note[0], note[1], note[2] = os.getpid(), index + 1, 1
        if self.timeout_seconds:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, self.timeout_seconds)
        try:
            yield
        finally:
            if self.timeout_seconds:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            note[2] = 0

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Around what starts the processes."""
        before = active_children()
        yield
        self._processes += [child for child in active_children() if child not in before]
        _leave_deaths_to_the_next_batch()

    def forget(self) -> None:
        """The processes are gone, and will be started anew."""
        self._processes = []
        self._notes.zero_()

    def deaths(self, path_of: Callable[[int], Path]) -> list[WorkerDiedError]:
        """One for each process that has ended, or is about to."""
        if not self._processes:
            return []
        ending = wait([process.sentinel for process in self._processes], timeout=1.0)
        for process in self._processes:
            if process.sentinel in ending:
                process.join(timeout=1.0)  # its files are closed before its exit code is there
        return [
            self._death(process, path_of)
            for process in self._processes
            if process.exitcode is not None
        ]

    def _death(self, process: BaseProcess, path_of: Callable[[int], Path]) -> WorkerDiedError:
        assert process.exitcode is not None
        code = -process.exitcode  # of a signal; 0 or less: it exited
        how = f"killed by {signal.Signals(code).name}" if code > 0 else f"ended (code {-code})"
        for pid, sample, busy in self._notes.tolist():
            if pid != process.pid:
                continue
            path, index = path_of(sample - 1), sample - 1
            if code == signal.SIGALRM and busy:
                limit = f"data.decode_timeout_seconds={self.timeout_seconds:g}"
                return WorkerDiedError(path, f"took longer to read than {limit}", index)
            if code in _OF_THE_FILE and busy:
                return WorkerDiedError(path, f"the loader process that read it was {how}", index)
            when = "while it read this file" if busy else "after it had read this file"
            asks = {signal.SIGKILL: "; is memory short?", signal.SIGBUS: "; is /dev/shm full?"}
            ask = asks.get(signal.Signals(code), "") if code > 0 else ""
            return WorkerDiedError(path, f"a loader process was {how} {when}{ask}", None)
        return WorkerDiedError(
            f"loader process {process.pid}", f"was {how} before it read a file", None
        )


def _leave_deaths_to_the_next_batch() -> None:
    """Torch's handler raises wherever the main thread is when a process dies, such as in the middle
    of a training step; whoever waits for the next batch finds out too, and can name the file."""
    handler = signal.getsignal(signal.SIGCHLD)
    theirs = getattr(handler, "__module__", None) == "torch.utils.data._utils.signal_handling"
    if not (theirs and callable(handler)) or threading.current_thread() is not (
        threading.main_thread()
    ):
        return

    def note(signum: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):
            handler(signum, frame)

    signal.signal(signal.SIGCHLD, note)
