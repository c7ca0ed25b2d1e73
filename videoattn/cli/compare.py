"""`videoattn compare`: trains a recipe with each attention system and with none, over seeds."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from videoattn.attention.systems import SYSTEMS
from videoattn.cli.arguments import Device, Overrides, Recipe
from videoattn.cli.test import command as evaluate_run
from videoattn.engine.checkpoint import LAST
from videoattn.engine.trackers import read_records
from videoattn.errors import one_of
from videoattn.files import write_text
from videoattn.recipe.console import console, show
from videoattn.recipe.experiment import train
from videoattn.recipe.folder import RUNS
from videoattn.recipe.load import load
from videoattn.recipe.model import split_systems
from videoattn.recipe.run import load as load_predictor

RESULT = "result.json"
NONE = "none"


class Result(NamedTuple):
    """The result of a finished run: accuracies in 0 - 1, median training speed in clips/s.

    With several labels per video, the accuracies are the mAP of videos and the hit@1 of clips.
    """

    video_accuracy: float
    clip_accuracy: float
    num_videos: int
    num_parameters: int
    clips_per_second: float
    mean_class_accuracy: float | None = None  # not in results of earlier versions
    metric: str = "accuracy"


def command(
    recipe: Recipe,
    overrides: Overrides = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="An attention system, several (non_local+cbam), or none. Repeatable; all if not "
            "given."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per system, with seeds 0, 1, ...")] = 3,
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder for the runs and the table; runs/compare_NAME if not given."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a recipe with every attention system and with none.

    Prints a table of test accuracies. Finished runs are not repeated: an interrupted comparison
    continues where it stopped.
    """
    names = system or [NONE, *SYSTEMS]
    for name in names:
        if "+" in name:
            split_systems("--system", name)
        else:
            one_of("--system", name, [NONE, *SYSTEMS])
    config = load(recipe, overrides or ())
    folder = folder or RUNS / f"compare_{config.name}"
    results = compare(recipe, overrides or (), names, seeds=seeds, folder=folder, device=device)
    for line in _table(results).splitlines():
        show(line)


def compare(
    recipe: Path,
    overrides: Sequence[str],
    names: Sequence[str],
    *,
    seeds: int,
    folder: Path,
    device: str = "auto",
) -> dict[str, list[Result]]:
    """Trains and tests a recipe with each attention system, and returns the results of its seeds.

    Writes a table to the folder. Finished runs in the folder are not repeated.

    Args:
        names: Names of systems, "non_local+cbam" for both in one network, or "none".
        seeds: Runs per system, with seeds 0, 1, ...
    """
    results: dict[str, list[Result]] = {}
    for seed in range(seeds):  # every system has a result before the next seed starts
        for name in names:
            console.rule(f"{name}, seed {seed}")
            chosen = f".name={'null' if name == NONE else name}"
            if "+" in name:
                chosen = f"=[{name.replace('+', ',')}]"
            changes = [f"seed={seed}", f"model.attention{chosen}"]
            run = folder / f"{name}_seed{seed}"
            result = _result(recipe, [*overrides, *changes], run, device)
            results.setdefault(name, []).append(result)
            write_text(folder / "comparison.md", _table(results))
            values = {key: [row._asdict() for row in rows] for key, rows in results.items()}
            write_text(folder / "comparison.json", json.dumps(values))
    return results


def _result(recipe: Path, overrides: Sequence[str], folder: Path, device: str) -> Result:
    """Trains and tests a run, or reads its result if it is finished."""
    file = folder / RESULT
    if found := read_records(file, **dict.fromkeys(Result._fields[:5], int | float)):
        return Result(**{name: found[0][name] for name in Result._fields if name in found[0]})
    resume = (folder / LAST).exists()
    train(recipe, *overrides, folder=folder, resume=resume, overwrite=not resume, device=device)
    scores = evaluate_run(folder, device=device)
    model = load_predictor(folder).model
    lines = read_records(folder / "metrics.jsonl", kind=str, step=int)
    result = Result(
        next(iter(scores.video_metrics.values())),
        next(iter(scores.clip_metrics.values())),
        scores.num_labeled,
        sum(parameter.numel() for parameter in model.parameters()),
        statistics.median(line["clips_per_second"] for line in lines if line["kind"] == "train"),
        scores.video_metrics.get("mean_class_accuracy"),
        next(iter(scores.video_metrics)),
    )
    write_text(file, json.dumps(result._asdict()))
    return result


def _table(results: dict[str, list[Result]]) -> str:
    """Returns Markdown: mean and range of the video accuracy over the seeds, highest mean first."""
    metric = next(iter(results.values()))[0].metric
    lines = [
        f"| attention | video {metric}: mean (range) | mean class accuracy | seeds | parameters | "
        "training clips/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    ranked = sorted(
        results.items(), key=lambda item: -statistics.mean(r.video_accuracy for r in item[1])
    )
    for name, rows in ranked:
        scores = [100 * row.video_accuracy for row in rows]
        of_classes = [
            row.mean_class_accuracy for row in rows if row.mean_class_accuracy is not None
        ]
        speed = statistics.median(row.clips_per_second for row in rows)
        lines.append(
            f"| {name} | {statistics.mean(scores):.1f} % ({min(scores):.1f} - {max(scores):.1f}) "
            f"| {f'{100 * statistics.mean(of_classes):.1f} %' if of_classes else '-'} "
            f"| {len(rows)} | {rows[0].num_parameters / 1e6:.2f} M | {speed:.0f} |"
        )
    return "\n".join(lines) + "\n"
