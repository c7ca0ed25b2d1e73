import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch starts its threads, and for the processes that tests start: several pools of
    # threads on the same cores wait for each other at every step.
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest

import videoattn as videoattn  # before any test module's `import torchvision`: see _compat.py
from tests.security import KINDS


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs are recorded in a temporary folder, not in the user's home."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VIDEOATTN_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def pytest_configure(config: pytest.Config) -> None:
    """A GPU is for `-m gpu` alone: other tests compare bits, which its sums do not repeat."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the tests of untrusted inputs within limits."""
    names = {name for tests in KINDS.values() for name in tests}
    for item in items:
        if isinstance(item, pytest.Function):
            path = item.path.relative_to(Path(__file__).parent).as_posix()
            if f"{path}::{item.originalname}" in names and "limits" not in item.fixturenames:
                item.fixturenames.insert(0, "limits")


@pytest.fixture
def limits() -> Iterator[None]:
    """Limits a test to two minutes, and to 2 GiB of memory more than the process has."""

    def stop(*_: object) -> None:
        pytest.fail("took more than 120 seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    with _memory(2**31):
        yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory(num_bytes: int) -> Iterator[None]:
    sizes = Path("/proc/self/statm")
    if not sizes.exists():  # only Linux limits the address space
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(sizes.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
