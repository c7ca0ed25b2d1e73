"""Measures `predict` on many short clips against `test` on the same clips, and its memory.

python tools/bench/predict.py runs/demo/moving --clips 1000
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from common import print_table

from videoattn.cli.predict import command as predict
from videoattn.cli.predict import find_videos
from videoattn.data.synthetic import MOTIONS, write_demo_clips
from videoattn.engine.parallel import Parallel, resolve_device
from videoattn.recipe.run import load


def bench(
    run: Annotated[Path, typer.Argument(help="A run.")],
    clips: Annotated[int, typer.Option(min=len(MOTIONS), help="Number of clips.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each, in turn.")] = 3,
) -> None:
    """Measure the clips per second of `predict` and `test`, and the memory of `predict`."""
    per_class = clips // len(MOTIONS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo_clips(folder, num_train_per_class=1, num_test_per_class=per_class)
        videos = folder / "test"
        number = per_class * len(MOTIONS)
        speeds: dict[str, list[float]] = {"test": [], "predict": []}
        memory = []
        for turn in range(rounds):
            tested = _seconds(partial(_test, run, videos))
            predicted = _seconds(partial(predict, run, [str(videos)], csv=folder / f"{turn}.csv"))
            speeds["test"].append(number / tested)
            speeds["predict"].append(number / predicted)
            memory.append(_resident_mb())
        rows = [(name, f"{max(found):.1f}") for name, found in speeds.items()]
        ratio = max(speeds["predict"]) / max(speeds["test"])
        print_table(
            ("command", "clips/s, best"),
            rows,
            note=f"{number} clips, {rounds} rounds; predict / test {ratio:.2f}; memory after each "
            f"round {', '.join(f'{mb:.0f}' for mb in memory)} MB",
        )


def _test(run: Path, folder: Path) -> None:
    """Scores the clips as `videoattn test` does, without its tables and pictures."""
    predictor = load(run, resolve_device())
    videos = predictor.samples(find_videos([folder]))
    predictor.evaluate(videos, Parallel(device=predictor.device))


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    typer.run(bench)
