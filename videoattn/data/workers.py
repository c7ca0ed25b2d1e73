"""Supervises decoding processes, to find the file that causes a crash or a hang.

`WorkerMonitor` watches the workers of a DataLoader. Each worker writes the index of its current
sample to shared memory, and sets an alarm, which ends the process even inside C code. Torch reports
that a worker died, and the record names the file. All of this takes microseconds.

`in_processes` runs a task on many files, and replaces a process that crashes or hangs. `in_threads`
runs tasks in this process, within a time limit.
"""

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import get_worker_info

from videoattn.data.decode import DecodeError

# Signals that a decoder raises in its own process, or the alarm. Others come from outside: from an
# administrator, or from the kernel if memory is short (SIGBUS: /dev/shm is full).
_CAUSED_BY_FILE = (
    signal.SIGALRM, signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL,
)  # fmt: skip
_HINTS = {signal.SIGKILL: "; is memory short?", signal.SIGBUS: "; is /dev/shm full?"}


class WorkerDiedError(DecodeError):
    """Raised if a worker of a loader died.

    Attributes:
        path: The last file that the worker decoded.
        index: The index of the sample if its file caused the death, else None.
    """

    def __init__(self, path: str | Path, reason: str, index: int | None) -> None:
        super().__init__(path, reason)
        self.args = (str(path), reason, index)
        self.index = index


class WorkerMonitor:
    """Records which sample each of `num_workers` workers decodes.

    Args:
        timeout_seconds: The time limit for one sample; 0 for none.
    """

    def __init__(self, num_workers: int, *, timeout_seconds: float) -> None:
        if timeout_seconds < 0:
            raise ValueError(f"timeout_seconds: got {timeout_seconds}; need 0 (no limit) or more")
        self.timeout_seconds = timeout_seconds
        # For each worker: its process id, 1 + the last sample, and whether it is decoding it.
        self._records = torch.zeros(num_workers, 3, dtype=torch.int64, device="cpu").share_memory_()
        self._processes: list[BaseProcess] = []

    @contextmanager
    def decoding(self, index: int) -> Iterator[None]:
        """Context manager that records the sample and limits its time, if used in a worker."""
        worker = get_worker_info()
        if worker is None:
            yield
            return
        record = self._records[worker.id]
        record[0], record[1], record[2] = os.getpid(), index + 1, 1
        if self.timeout_seconds:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, self.timeout_seconds)
        try:
            yield
        finally:
            if self.timeout_seconds:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
            record[2] = 0

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Context manager that records the worker processes started in it."""
        before = active_children()
        yield
        self._processes += [child for child in active_children() if child not in before]
        _report_deaths_at_the_next_batch()

    @property
    def too_slow(self) -> str:
        """The reason for the failure of a file that takes longer than the limit."""
        return f"took longer to decode than timeout_seconds={self.timeout_seconds:g}"

    def stop(self) -> None:
        """Kills all workers and clears their records."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(timeout=1.0)
            process.kill()  # for a worker that has just started, and handles no signal yet
            process.join(timeout=1.0)
        self._processes = []
        self._records.zero_()

    def crashed(self, path_of: Callable[[int], Path]) -> list[WorkerDiedError]:
        """Returns an error for each worker that has died, or dies within a second."""
        if not self._processes:
            return []
        ending = wait([process.sentinel for process in self._processes], timeout=1.0)
        for process in self._processes:
            if process.sentinel in ending:
                process.join(timeout=1.0)  # its files close before its exit code is known
        dead = [process for process in self._processes if process.exitcode is not None]
        return [self._error(process, path_of) for process in dead]

    def _error(self, process: BaseProcess, path_of: Callable[[int], Path]) -> WorkerDiedError:
        assert process.exitcode is not None
        killed_by = -process.exitcode  # a signal, or 0 or less if the process exited
        how = f"killed by {_how(process)}" if killed_by > 0 else f"ended (code {-killed_by})"
        for pid, sample, busy in self._records.tolist():
            if pid != process.pid:
                continue
            path, index = path_of(sample - 1), sample - 1
            if killed_by == signal.SIGALRM and busy:
                return WorkerDiedError(path, self.too_slow, index)
            if killed_by in _CAUSED_BY_FILE and busy:
                return WorkerDiedError(path, f"the worker that decoded it was {how}", index)
            when = "while it decoded this file" if busy else "after it had decoded this file"
            hint = _HINTS.get(killed_by, "")  # type: ignore[call-overload]
            return WorkerDiedError(path, f"a worker was {how} {when}{hint}", None)
        name = f"worker process {process.pid}"
        return WorkerDiedError(name, f"was {how} before it decoded a file", None)


class Crash(NamedTuple):
    """The result of an item whose process crashed or hung."""

    reason: str


Result = TypeVar("Result")
Task = Callable[[Any], Any]
"""Maps an item to its result. The task, the item and the result must be picklable."""


def in_processes(
    task: Task, items: Sequence[Any], *, num_workers: int, seconds: float
) -> Iterator[tuple[Any, Any]]:
    """Runs a task on items in processes. Yields (item, result or Crash) in order of completion.

    Args:
        seconds: The time limit for one item, above 0.
    """
    if num_workers < 1 or seconds <= 0:
        given = f"{num_workers} and {seconds:g}"
        raise ValueError(f"num_workers, seconds: got {given}; need 1 or more, and above 0")
    remaining = iter(items)
    idle = [_start(task) for _ in range(min(num_workers, len(items)))]
    busy: dict[Any, tuple[BaseProcess, Any, float]] = {}  # by connection: item, starting time

    def give_items() -> None:
        for item in islice(remaining, len(idle)):
            process, connection = idle.pop()
            busy[connection] = process, item, time.monotonic()
            connection.send(item)

    try:
        give_items()
        while busy:
            deadline = min(started for _, _, started in busy.values()) + seconds
            done = wait(list(busy), timeout=max(deadline - time.monotonic(), 0.01))
            late = time.monotonic() - seconds
            for connection, (process, item, started) in list(busy.items()):
                if connection not in done and started >= late:
                    continue
                del busy[connection]
                result: Any = Crash(f"took more than {seconds:g} s")
                if connection in done:
                    try:
                        result = connection.recv()
                    except (EOFError, OSError):
                        process.join()
                        result = Crash(f"ended the process that read it ({_how(process)})")
                if isinstance(result, Crash):
                    _end(process, connection)
                    process, connection = _start(task)
                idle.append((process, connection))
                give_items()  # before the caller uses the result
                yield item, result
    finally:
        for process, connection in [*idle, *((busy[c][0], c) for c in busy)]:
            _end(process, connection)


def _start(task: Task) -> tuple[BaseProcess, Any]:
    """Starts a process that runs the task on each item from its connection."""
    connection, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(theirs, task, os.getpid()), daemon=True)
    process.start()
    theirs.close()
    return process, connection


def _end(process: BaseProcess, connection: Any) -> None:
    process.kill()
    process.join()
    connection.close()


def _serve(connection: Any, task: Task, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its processes itself
    while True:
        while not connection.poll(5.0):
            if os.getppid() != parent:
                return
        try:
            item = connection.recv()
        except EOFError:
            return
        connection.send(task(item))


def in_threads(
    tasks: Sequence[Callable[[], Result]], *, num_threads: int, seconds: float
) -> list[Result | None]:
    """Runs tasks in threads, with torch limited to one thread in each, and returns the results.

    The result of a task that takes more than `seconds` (0: no limit) is None. Its thread cannot be
    stopped and runs until it returns or the process ends. An error is raised when no task is left.
    """
    results: list[Future[Result]] = [Future() for _ in tasks]
    jobs = iter(list(zip(tasks, results, strict=True)))  # shared by the threads
    started: dict[Future[Result], float] = {}

    def work() -> None:
        torch.set_num_threads(1)
        for task, result in jobs:
            started[result] = time.monotonic()
            with suppress(futures.InvalidStateError):  # it took too long, and was canceled
                try:
                    result.set_result(task())
                except BaseException as error:  # raised again where the result is read
                    result.set_exception(error)
            if result.cancelled():
                return

    limit = seconds or threading.TIMEOUT_MAX
    num_to_start = min(num_threads, len(tasks))
    while pending := [result for result in results if not result.done()]:
        for _ in range(num_to_start):
            threading.Thread(target=work, name="clips", daemon=True).start()
        now = time.monotonic()
        futures.wait(pending, max(min(started.get(r, now) for r in pending) + limit - now, 0.0))
        late = time.monotonic() - limit
        num_to_start = sum(started.get(r, math.inf) <= late and r.cancel() for r in pending)
    return [None if result.cancelled() else result.result() for result in results]


def _how(process: BaseProcess) -> str:
    code = process.exitcode
    return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name


def _report_deaths_at_the_next_batch() -> None:
    """Keeps torch's handler of SIGCHLD from raising as soon as a worker dies, even in a training
    step. The wait for the next batch fails, too, and leads to an error that names the file."""
    handler = signal.getsignal(signal.SIGCHLD)
    theirs = str(getattr(handler, "__module__", "")).startswith("torch.utils.data.")
    main = threading.current_thread() is threading.main_thread()
    if not (main and theirs and callable(handler)):
        return

    def note(signum: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):
            handler(signum, frame)

    signal.signal(signal.SIGCHLD, note)
