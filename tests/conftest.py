import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch starts its threads, and for the processes that tests start: several pools of
    # threads on the same cores wait for each other at every step.
    os.environ["OMP_NUM_THREADS"] = "1"

import videoattn as videoattn  # before any test module's `import torchvision`: see _compat.py
