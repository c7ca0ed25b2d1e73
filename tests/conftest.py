import os
from collections.abc import Iterator

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch starts its threads, and for the processes that tests start: several pools of
    # threads on the same cores wait for each other at every step.
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest

import videoattn as videoattn  # before any test module's `import torchvision`: see _compat.py


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
