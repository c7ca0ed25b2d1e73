"""`videoattn compare`: the same recipe with each attention system and with none, over seeds."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from videoattn.attention.systems import SYSTEMS
from videoattn.cli.test import evaluate_run
from videoattn.cli.train import train
from videoattn.engine.checkpoint import LAST
from videoattn.engine.parallel import resolve_device
from videoattn.recipe.console import console as out
from videoattn.recipe.load import load
from videoattn.recipe.run import load as load_predictor

RESULT = "result.json"
NONE = "none"


class Result(NamedTuple):
    """One finished run: accuracies 0 - 1, and the median of the training clips/s."""

    video_accuracy: float
    clip_accuracy: float
    num_videos: int
    num_parameters: int
    clips_per_second: float


def compare(
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    systems: Sequence[str] = (),
    num_seeds: int = 3,
    folder: Path | None = None,
    device: str = "auto",
) -> Path:
    """Trains and tests every system and the bare backbone with seeds 0, 1, ...; writes a table.

    Runs that are finished are not repeated, so an interrupted comparison goes on where it stopped.
    Returns the Markdown file.

    Raises:
        ValueError: a system that does not exist; a wrong recipe.
    """
    names = list(systems) or [NONE, *SYSTEMS]
    for name in names:
        if name != NONE and name not in SYSTEMS:
            raise ValueError(f"{name!r} is no system; choose from {NONE}, {', '.join(SYSTEMS)}")
    config = load(recipe, overrides)
    folder = folder or Path("runs") / f"compare_{config.name}"
    results: dict[str, list[Result]] = {}
    for seed in range(num_seeds):  # a whole round of systems before the next seed
        for name in names:
            out.rule(f"{name}, seed {seed}")
            run = folder / f"{name}_seed{seed}"
            changes = [*overrides, f"seed={seed}", f"model.attention.name={_value(name)}"]
            results.setdefault(name, []).append(_run(recipe, changes, run, device))
            table = _table(results)
            (folder / "comparison.md").write_text(table)
            (folder / "comparison.json").write_text(
                json.dumps({key: [r._asdict() for r in rows] for key, rows in results.items()})
            )
    out.print(table, markup=False)
    return folder / "comparison.md"


def _run(recipe: Path, overrides: Sequence[str], folder: Path, device: str) -> Result:
    file = folder / RESULT
    if file.exists():
        return Result(**json.loads(file.read_text()))
    resume = (folder / LAST).exists()  # of an interrupted comparison
    train(recipe, overrides, folder=folder, resume=resume, overwrite=not resume, device=device)
    scores = evaluate_run(folder, device=device)
    model = load_predictor(folder, resolve_device(device)).model
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["clips_per_second"] for line in lines if line["kind"] == "train"]
    result = Result(
        scores.video_accuracy,
        scores.clip_accuracy,
        scores.num_labelled,
        sum(parameter.numel() for parameter in model.parameters()),
        statistics.median(speeds),
    )
    file.write_text(json.dumps(result._asdict()))
    return result


def _table(results: dict[str, list[Result]]) -> str:
    """Markdown: mean and range of the video accuracy over the seeds, in order of the mean."""
    lines = [
        "| attention | video accuracy: mean (range) | seeds | parameters | training clips/s |",
        "| --- | --- | --- | --- | --- |",
    ]
    ranked = sorted(
        results.items(), key=lambda item: -statistics.mean(r.video_accuracy for r in item[1])
    )
    for name, rows in ranked:
        scores = [100 * row.video_accuracy for row in rows]
        speed = statistics.median(row.clips_per_second for row in rows)
        lines.append(
            f"| {name} | {statistics.mean(scores):.1f} % ({min(scores):.1f} - {max(scores):.1f}) "
            f"| {len(rows)} | {rows[0].num_parameters / 1e6:.2f} M | {speed:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _value(name: str) -> str:
    return "null" if name == NONE else name
