"""Trains the diagnostic tasks with attention systems, and writes the tables of docs/evidence.md.

    videoattn tasks write match runs/match/clips      # and the other tasks
    python tools/evidence.py run match --system none --system non_local --seeds 5
    python tools/evidence.py run match track --shard 1/2      # on the second of two machines
    python tools/evidence.py write

Every run leaves a file in docs/evidence/, with its error if it failed. Runs that have a file are
not repeated, so an interrupted call continues where it stopped, and the files of several machines
are merged by copying them to one folder.
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from videoattn.attention.systems import SYSTEMS
from videoattn.cli.arguments import Device
from videoattn.cli.compare import NONE, run_once
from videoattn.cli.env import machine
from videoattn.cli.tasks import compare_with_truth
from videoattn.data.tasks.clips import TASKS
from videoattn.errors import one_of
from videoattn.files import write_text
from videoattn.recipe.console import console, show
from videoattn.recipe.load import load
from videoattn.recipe.model import make_model

RESULTS = Path("docs/evidence")
DEFAULT = (NONE, "non_local", "squeeze_excite", "cbam")
PAIRWISE = ("non_local", "cross_layer", "sagan", "similarity", "stand_alone")
"""Systems whose maps have a row per query."""

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
Results = Annotated[Path, typer.Option(help="Folder of the results.")]


@app.command()
def run(
    tasks: Annotated[list[str], typer.Argument(help=f"Tasks: {', '.join(TASKS)}.")],
    system: Annotated[
        list[str], typer.Option(help="An attention system, or none. Repeatable.")
    ] = list(DEFAULT),  # noqa: B006 (typer copies it)
    change: Annotated[
        list[str] | None, typer.Option(help="A change to every recipe: key=value. Repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per cell, with seeds 0, 1, ...")] = 5,
    shard: Annotated[str, typer.Option(help="I/N: every N-th run, from number I (0 to N-1).")] = (
        "0/1"
    ),
    folder: Annotated[Path, typer.Option(help="Holds TASK/clips; runs are written here.")] = Path(
        "runs"
    ),
    results: Results = RESULTS,
    device: Device = "auto",
) -> None:
    """Train and test every system on every task. Every seed is complete before the next starts."""
    jobs = [(seed, task, name) for seed in range(seeds) for task in tasks for name in system]
    index, count = (int(number) for number in shard.split("/"))
    plans = [(*job, _changes(*job, folder, change or [])) for job in jobs]
    for _, task, _, changes in plans:  # an error in any recipe comes before the first run
        make_model(load(_recipe(task), changes).model, num_classes=len(TASKS[task]))
    for seed, task, name, changes in plans[index::count]:
        file = results / f"{task}_{name}_seed{seed}.json"
        if file.exists():
            continue
        console.rule(file.stem)
        about = {"task": task, "system": name, "seed": seed, "changes": change or []}
        record: dict[str, Any] = {**about, "machine": machine()}
        out = folder / task / f"{name}_seed{seed}"
        try:
            record |= run_once(_recipe(task), changes, out, device)._asdict()
            if name in PAIRWISE:
                record["truth"] = compare_with_truth(out, folder / task / "clips", device=device)
        except (ValueError, OSError, ArithmeticError) as error:
            record["error"] = str(error)
            show(f"failed: {error}")
        write_text(file, json.dumps(record, indent=1))


@app.command()
def write(results: Results = RESULTS) -> None:
    """Print one table per task, as Markdown."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(results.glob("*.json")):
        record = json.loads(file.read_text())
        cells[record["task"], record["system"]].append(record)
    for task in dict.fromkeys(task for task, _ in cells):
        print(f"\n### {task} (chance {100 / len(TASKS[task]):.0f} %)\n")
        print("| system | accuracy: mean (range) | seeds | parameters | clips/s | truth mass |")
        print("| --- | --- | --- | --- | --- | --- |")
        for (_, name), records in ((key, found) for key, found in cells.items() if key[0] == task):
            print(f"| {name} | {_row(records)} |")


def _recipe(task: str) -> Path:
    name = one_of("task", task, TASKS).removesuffix("_unmarked")
    return Path("configs") / f"task_{name}.yaml"


def _changes(seed: int, task: str, system: str, folder: Path, changes: list[str]) -> list[str]:
    one_of("--system", system, [NONE, *SYSTEMS])
    chosen = f"model.attention.name={'null' if system == NONE else system}"
    return [*changes, f"data.root={folder / task / 'clips'}", f"seed={seed}", chosen]


def _row(records: list[dict[str, Any]]) -> str:
    done = [record for record in records if "error" not in record]
    if not done:
        return f"failed: {records[0]['error']} | 0 of {len(records)} | | |"
    scores = [100 * record["video_accuracy"] for record in done]
    speed = statistics.median(record["clips_per_second"] for record in done)
    masses = [
        row["mass"] / row["area"]
        for record in done
        for key, row in record.get("truth", {}).items()
        if key.endswith("correct")
    ]
    mass = f"up to {max(masses):.1f} x its area" if masses else "-"
    return (
        f"{statistics.mean(scores):.1f} % ({min(scores):.1f} - {max(scores):.1f}) "
        f"| {len(done)} of {len(records)} | {done[0]['num_parameters'] / 1e6:.2f} M "
        f"| {speed:.0f} | {mass}"
    )


if __name__ == "__main__":
    app()
