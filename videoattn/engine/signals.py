"""Completes the training step and writes a checkpoint when a signal stops the process.

Cluster managers announce the end of a job by SIGTERM, or by SIGUSR1 some time before its limit.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

from videoattn.engine.batches import Batches
from videoattn.types import Batch

STOPS = (signal.SIGTERM, signal.SIGUSR1)
_SAME_SECONDS = 1.0
_END = b"\0"  # not the number of a signal


class StoppedError(Exception):
    """Raised after a signal, when the last checkpoint is complete."""


class StopSignals:
    """Records SIGTERM and SIGUSR1 inside a `with`. A second signal ends the process at once.

    Signals within a second of the first count as the first: a system may send one to all processes
    of a job, and torchrun sends it to its processes again. Outside the main thread, where Python
    handles no signals, nothing is recorded.

    Attributes:
        received: The first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        self._is_active = threading.current_thread() is threading.main_thread()
        if not self._is_active:
            return self
        # Python calls a signal handler only between bytecode instructions, possibly after minutes
        # of C code. A thread that waits for the signal number reacts immediately.
        self._numbers, writer = socket.socketpair()
        writer.setblocking(False)
        self._writer = writer
        self._handlers = {stop: signal.signal(stop, lambda *_: None) for stop in STOPS}
        self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._is_active:
            return
        signal.set_wakeup_fd(self._wakeup)
        for stop, handler in self._handlers.items():
            signal.signal(stop, handler or signal.SIG_DFL)
        self._writer.send(_END)  # close() would not end recv(): loader processes share it
        self._thread.join()
        self._writer.close()
        self._numbers.close()

    def _watch(self) -> None:
        first = 0.0
        while (number := self._numbers.recv(1)) != _END:
            if number[0] not in STOPS:
                continue
            if self.received is None:
                self.received, first = signal.Signals(number[0]), time.monotonic()
            elif time.monotonic() - first > _SAME_SECONDS:
                os._exit(128 + number[0])


class StoppableBatches:
    """Batches that end early after a signal."""

    def __init__(self, batches: Batches, stop: StopSignals) -> None:
        self._batches = batches
        self._stop = stop

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int, skip_batches: int = 0) -> Iterator[Batch]:
        for batch in self._batches.epoch(epoch, skip_batches):
            if self._stop.received is not None:
                return
            yield batch
