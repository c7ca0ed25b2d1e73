"""A task on each of many items in processes: one that crashes or hangs costs its item alone."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple


class Crash(NamedTuple):
    """Instead of a result: how the process that was at the item ended."""

    reason: str


Task = Callable[[Any], Any]
"""Takes an item, returns its result; both, and the task itself, can be pickled."""


def in_processes(
    task: Task, items: Sequence[Any], *, num_workers: int, seconds: float
) -> Iterator[tuple[Any, Any]]:
    """(item, result) in the order in which they are ready; the result of an item that ended its
    process, or kept it for more than `seconds`, is a Crash.

    Raises: ValueError for less than one process or no time.
    """
    if num_workers < 1 or seconds <= 0:
        raise ValueError(
            f"got {num_workers} workers and {seconds:g} seconds a file; need 1 or more, above 0"
        )
    waiting = iter(items)
    workers = [_Worker(task) for _ in range(min(num_workers, len(items)))]
    try:
        for worker in workers:
            worker.give(next(waiting))
        while busy := [worker for worker in workers if worker.busy]:
            first = min(worker.started for worker in busy) + seconds
            connections = [worker.connection for worker in busy]
            wait(connections, timeout=max(first - time.monotonic(), 0.01))
            for worker in busy:
                if not worker.is_done(seconds):
                    continue
                item, result = worker.item, worker.take(seconds)
                for another in waiting:
                    worker.give(another)
                    break
                yield item, result
    finally:
        for worker in workers:
            worker.stop()


@dataclass
class _Worker:
    """A process that does the task on one item after the other; a new one where it ended."""

    task: Task
    item: Any = None
    busy: bool = False
    started: float = 0.0
    connection: Connection = field(init=False)
    process: BaseProcess = field(init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context()
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.task, os.getpid())
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def give(self, item: Any) -> None:
        self.item, self.busy, self.started = item, True, time.monotonic()
        self.connection.send(item)

    def is_done(self, seconds: float) -> bool:
        return self.connection.poll() or time.monotonic() - self.started > seconds

    def take(self, seconds: float) -> Any:
        self.busy = False
        if not self.connection.poll():
            reason = f"took more than {seconds:g} s"
        else:
            try:
                return self.connection.recv()
            except (EOFError, OSError):
                self.process.join()
                reason = f"ended the process that read it ({_how(self.process.exitcode)})"
        self.stop()
        self.__post_init__()
        return Crash(reason)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, task: Task, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked to stop, and stops its own
    while True:
        while not connection.poll(5.0):
            if os.getppid() != parent:
                return
        try:
            item = connection.recv()
        except EOFError:
            return
        connection.send(task(item))


def _how(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    return signal.Signals(-exit_code).name
