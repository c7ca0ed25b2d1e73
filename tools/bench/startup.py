"""Measures how long the command and the imports take to start, each in a new process."""

import statistics
import subprocess
import sys
import time
from typing import Annotated

import typer
from common import print_table

STATEMENTS = {
    "python": "pass",
    "import videoattn": "import videoattn",
    "import torch": "import torch",
    "videoattn.load": "from videoattn import load",
    "videoattn --help": "import sys; from videoattn.cli.app import main; main(['--help'])",
    "videoattn train --help": "from videoattn.cli.app import main; main(['train', '--help'])",
}


def startup(
    rounds: Annotated[int, typer.Option(min=1, help="Timed starts of each.")] = 5,
) -> None:
    """Measure the start of the command and of the imports."""
    rows = []
    for name, code in STATEMENTS.items():
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        rows.append((name, *(f"{f(times):.2f}" for f in (statistics.median, min, max))))
    print_table(("start", "median seconds", "min", "max"), rows, note=f"{rounds} starts each.")


if __name__ == "__main__":
    typer.run(startup)
