"""Signals that stop training; the processes of tests/cli/test_launch.py receive them too."""

import os
import signal
import subprocess
import sys
import threading
import time

from tests.engine.fakes import FakeBatches
from videoattn.engine.batches import Batches
from videoattn.engine.signals import STOPS, StoppableBatches, StopSignals


def wait_for(stop: StopSignals) -> None:
    deadline = time.monotonic() + 10
    while stop.received is None and time.monotonic() < deadline:
        time.sleep(0.001)


def test_signals_are_recorded_inside_the_block_and_handlers_come_back() -> None:
    for number in STOPS:
        before = [signal.getsignal(stop) for stop in STOPS]
        with StopSignals() as stop:
            assert stop.received is None
            os.kill(os.getpid(), number)
            wait_for(stop)
            os.kill(os.getpid(), number)  # the same signal, which torchrun sends once more
        assert stop.received is number
        assert [signal.getsignal(stop) for stop in STOPS] == before


def test_other_signals_do_not_stop() -> None:
    with StopSignals() as stop:
        subprocess.run(["true"], check=True)  # SIGCHLD
        os.kill(os.getpid(), signal.SIGWINCH)
    assert stop.received is None


def test_a_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import sys, time\n"
        "from videoattn.engine.signals import StopSignals\n"
        "with StopSignals() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while stop.received is None: time.sleep(0.01)\n"
        "    print(stop.received.name, flush=True)\n"
        "    time.sleep(600)\n"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "SIGUSR1\n"
        time.sleep(1.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_in_another_thread_nothing_is_recorded() -> None:
    entered = []

    def enter() -> None:
        with StopSignals() as stop:
            entered.append(stop.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [None]


def test_stoppable_batches_are_the_batches() -> None:
    batches = FakeBatches(num_samples=12)
    stoppable = StoppableBatches(batches, StopSignals())
    assert isinstance(stoppable, Batches)
    assert len(stoppable) == 3
    got = [batch.indices.tolist() for batch in stoppable.epoch(1, skip_batches=1)]
    assert got == [batch.indices.tolist() for batch in batches.epoch(1, skip_batches=1)]
