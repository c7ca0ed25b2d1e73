"""`videoattn compare`: trains recipes with each attention system and with none, over seeds."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from videoattn.attention.systems import SYSTEMS
from videoattn.cli.app import expected_errors, one_line
from videoattn.cli.arguments import Device, Overrides, Recipe
from videoattn.cli.comparison import (
    NONE,
    RESULT,
    WITH,
    Result,
    Rows,
    read_result,
    table_of,
    truth_table,
)
from videoattn.cli.tasks import compare_with_truth, has_truth
from videoattn.cli.test import command as evaluate_run
from videoattn.engine.checkpoint import LAST
from videoattn.engine.evaluate import Evaluation
from videoattn.engine.objective import in_top_k
from videoattn.engine.parallel import init_parallel
from videoattn.engine.signals import StoppedError
from videoattn.engine.trackers import read_records
from videoattn.errors import one_of
from videoattn.files import write_text
from videoattn.recipe.console import console, show
from videoattn.recipe.experiment import assemble, train
from videoattn.recipe.folder import RUNS
from videoattn.recipe.load import load
from videoattn.recipe.model import split_systems
from videoattn.recipe.run import Predictor
from videoattn.recipe.run import load as load_predictor

TABLE = "comparison.md"
Systems = Annotated[
    list[str] | None,
    typer.Option(
        help="An attention system, several (non_local+cbam), or none. Repeatable; all if not given."
    ),
]


class Cell(NamedTuple):
    """A run: a recipe, its overrides, the folder and row of its table, its seed, and its folder."""

    recipe: Path
    overrides: tuple[str, ...]
    table: Path
    row: str
    seed: int
    folder: Path


def command(
    recipe: Recipe,
    overrides: Overrides = None,
    system: Systems = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per system, with seeds 0, 1, ...")] = 3,
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder for the runs and the table; runs/compare_NAME if not given."),
    ] = None,
    device: Device = "auto",
    task: Annotated[
        list[Path] | None,
        typer.Option(metavar="RECIPE", help="Another recipe, with its own table. Repeatable."),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(help="A network, such as tsn_r18. Repeatable; the recipe's if not given."),
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Run only each N-th run from the I-th on.")
    ] = "1/1",
    merge: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Take the results of another machine. Repeatable."),
    ] = None,
) -> dict[Path, Rows]:
    """Train a recipe with every attention system and with none.

    Prints a table of test accuracies for each recipe. All networks are built and checked before the
    first run. Finished runs are not repeated: an interrupted comparison continues where it stopped.
    """
    changes, recipes = overrides or (), [recipe, *(task or ())]
    folder = folder or RUNS / f"compare_{load(recipe, changes).name}"
    cells = _cells(recipes, changes, network or [None], _systems(system), seeds, folder)
    for cell in cells:
        _take(cell, folder, merge or ())
    own = cells[_shard(shard, len(cells))]
    errors = _run_all(cells, own, folder, device)
    tables = _write_tables(cells, errors)
    for place in tables:
        if task:
            console.rule(place.name)
        for line in (place / TABLE).read_text("utf-8", "surrogateescape").splitlines():
            show(line)
    if errors:
        raise ValueError(f"{len(errors)} of {len(own)} runs failed; correct them and start again")
    return tables


def _cells(
    recipes: Sequence[Path],
    overrides: Sequence[str],
    networks: Sequence[str | None],
    systems: Sequence[str],
    seeds: int,
    folder: Path,
) -> list[Cell]:
    """Returns all runs; every row has a result before the next seed starts."""
    cells = []
    for seed, recipe, network, system in product(range(seeds), recipes, networks, systems):
        table = folder / recipe.stem if len(recipes) > 1 else folder
        chosen = f".name={'null' if system == NONE else system}"
        if "+" in system:
            chosen = f"=[{system.replace('+', ',')}]"
        changes = (*overrides, f"seed={seed}", f"model.attention{chosen}")
        row = name = system
        if network is not None:
            changes = (*changes, f"model.name={network}")
            row, name = f"{network}{WITH}{system}", f"{network}-{system}"
        cells.append(Cell(recipe, changes, table, row, seed, table / f"{name}_seed{seed}"))
    return cells


def _systems(names: Sequence[str] | None) -> list[str]:
    names = names or [NONE, *SYSTEMS]
    for name in names:
        if "+" in name:
            split_systems("--system", name)
        else:
            one_of("--system", name, [NONE, *SYSTEMS])
    return list(names)


def _shard(text: str, num_runs: int) -> slice:
    """Returns the slice of the runs in shard "I/N": every N-th run from the I-th on."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"--shard: got {text}; need I/N with I from 1 to N, such as 2/4")
    if int(count) > num_runs:
        raise ValueError(f"--shard: got {text} for {num_runs} runs; choose N up to {num_runs}")
    return slice(int(number) - 1, None, int(count))


def _take(cell: Cell, folder: Path, others: Sequence[Path]) -> None:
    """Copies the result of a run from the folder of another machine, unless it has one here."""
    for other in others:
        if not other.is_dir():
            raise ValueError(f"--merge: {other} is not a folder; name the --folder of a comparison")
        source = other / cell.folder.relative_to(folder)
        if read_result(cell.folder) is None and (found := read_result(source)):
            write_text(cell.folder / RESULT, json.dumps(found._asdict()))


def _check(cells: Sequence[Cell], device: str) -> None:
    rows = {(cell.table, cell.row): cell for cell in cells if read_result(cell.folder) is None}
    wrong = []
    with init_parallel(device) as parallel:
        for cell in rows.values():
            try:
                assemble(load(cell.recipe, cell.overrides), parallel)
            except expected_errors() as error:
                wrong.append(f"{cell.row}: {one_line(error)}")
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(rows)} rows cannot be trained: {'; '.join(wrong)}")


def _run_all(
    cells: Sequence[Cell], own: Sequence[Cell], folder: Path, device: str
) -> dict[Path, str]:
    """Trains and tests the unfinished runs; returns the error of each run that fails."""
    _check(own, device)
    errors: dict[Path, str] = {}
    for cell in own:
        if read_result(cell.folder) is not None:
            continue
        console.rule(f"{cell.folder.relative_to(folder).with_name(cell.row)}, seed {cell.seed}")
        try:
            _run(cell, device)
        except StoppedError:
            raise
        except expected_errors() as error:  # a row of the table; the other runs continue
            errors[cell.folder] = one_line(error)
            show(f"failed: {errors[cell.folder]}")
        _write_tables(cells, errors)
    return errors


def _run(cell: Cell, device: str) -> None:
    folder, resume = cell.folder, (cell.folder / LAST).exists()
    train(
        cell.recipe,
        *cell.overrides,
        folder=folder,
        resume=resume,
        overwrite=not resume,
        device=device,
    )
    scores = evaluate_run(folder, device=device)
    trained = load_predictor(folder, device)
    lines = read_records(folder / "metrics.jsonl", kind=str, step=int)
    result = Result(
        next(iter(scores.video_metrics.values())),
        next(iter(scores.clip_metrics.values())),
        scores.num_labeled,
        sum(parameter.numel() for parameter in trained.model.parameters()),
        statistics.median(line["clips_per_second"] for line in lines if line["kind"] == "train"),
        scores.video_metrics.get("mean_class_accuracy"),
        next(iter(scores.video_metrics)),
        _correct(scores),
        _truth(cell, trained),
    )
    write_text(folder / RESULT, json.dumps(result._asdict()))


def _truth(cell: Cell, trained: Predictor) -> dict[str, dict[str, float | int]]:
    """Returns the scores of the maps before and after training, or {} if the task has no ground
    truth. An error is only printed, because the accuracy of the run does not depend on it."""
    config = load(cell.recipe, cell.overrides)
    root = Path(config.data.root)
    if not has_truth(root):
        return {}
    try:
        with init_parallel(str(trained.device)) as parallel:
            start = assemble(config, parallel)
        untrained = replace(trained, model=start.model.eval(), config=config)
        before = compare_with_truth(untrained, root, kind="before training")
        return before | compare_with_truth(trained, root)
    except ValueError as error:
        show(f"{cell.folder}: its maps are not compared with the truth: {error}")
        return {}


def _correct(scores: Evaluation) -> str:
    if scores.labels.ndim > 1:
        return ""
    right = in_top_k(scores.probabilities, scores.labels, 1)[scores.labels >= 0]
    return "".join(map(str, right.int().tolist()))


def _write_tables(cells: Sequence[Cell], errors: dict[Path, str]) -> dict[Path, Rows]:
    """Writes comparison.md and comparison.json of each recipe, from the results so far."""
    tables: dict[Path, Rows] = {}
    for cell in cells:
        rows = tables.setdefault(cell.table, {})
        if (result := read_result(cell.folder)) is not None:
            rows.setdefault(cell.row, {})[cell.seed] = result
    for place, rows in tables.items():
        own = [cell for cell in cells if cell.table == place and cell.folder in errors]
        failed = {f"{cell.row}, seed {cell.seed}": errors[cell.folder] for cell in own}
        write_text(place / TABLE, table_of(rows, failed) + truth_table(rows))
        values = {name: [one._asdict() for one in row.values()] for name, row in rows.items()}
        write_text(place / "comparison.json", json.dumps(values))
    return tables
