"""Stores results of runs as JSON files in docs/evidence, and writes the tables of docs/evidence.md.

| stored                                    | its record                                       |
| a run of `videoattn train` on a task      | test accuracy during training, maps and truth    |
| a folder of `videoattn compare`           | the result of every run                          |
| faithfulness.json, `videoattn faithful`   | scores by removal, mean deletion curves          |
| randomization.json, with `--randomize`    | rank correlations and verdicts                   |
"""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import figures
import torch
import yaml

from videoattn.cli.comparison import (
    TRUTH_COLUMNS,
    WITH,
    Result,
    Rows,
    read_result,
    table_of,
    truth_cells,
    truth_table,
)
from videoattn.cli.faithful_report import BLOCK_COLUMNS, COLUMNS, intervals_table
from videoattn.data.tasks.clips import TASKS
from videoattn.explain.faithful.removal import steps
from videoattn.explain.faithful.statistics import Interval, bootstrap
from videoattn.recipe.console import markdown_table

PAGE = Path(__file__).parents[1] / "docs/evidence.md"
FOLDER = PAGE.with_suffix("")
PART = re.compile(r"(<!-- (table|figure): (\w+) ([\w, ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
"""Matches a table or figure of the page: its kind, and the names of its records or their task."""
BLOCKS = 2  # of each system, in the tables of a comparison's maps
NONE = "Not measured yet: no result is stored.\n"

Record = Mapping[str, Any]
SEEN = (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104)
"""The columns of accuracy: thousands of clips since the start of training."""
REMOVAL = ("gap", "drop", "saco", "better")
RUN = {
    "identities": "glyphs",
    "training_clips": "clips",
    "start": "start",
    "attention": "attention",
    "seed": "seed",
}
CONTROLS = {
    "center": "insensitive",
    "guided_backprop": "insensitive",
    "saliency": "sensitive",
    "occlusion": "sensitive",
}
"""Verdicts that Adebayo et al. report, or, for `center`, that hold by construction."""


def record_of(path: Path, about: Record) -> dict[str, Any]:
    """Returns the record of a run, a comparison, or a file of `videoattn faithful`.

    Args:
        about: Facts that the results lack: the task, the number of identities, the machine.
    """
    if path.is_dir():
        return (comparison if (path / "comparison.json").exists() else run_record)(path, about)
    found = json.loads(path.read_text())
    clips = found.pop("clips")
    if "verdicts" in found:
        return {**about, **found.pop("settings"), **found}
    about = {**about, **found["settings"], "clips": len(clips), "grid": clips[0]["grid"]}
    right = sum(clip["right"] for clip in clips)
    curves = {fill: dict(_curves(clips, fill)) for fill in about["fills"]}
    tables = {"table": found["table"], "blocks": found["blocks"]}
    return {**about, "right": right, **tables, "curves": curves}


def _curves(clips: Sequence[Record], fill: str) -> Iterator[tuple[str, list[Any]]]:
    """Yields the mean deletion curve of each map: points (share of hidden cells, probability)."""
    for name in clips[0]["fills"][fill]:
        mean = torch.tensor([clip["fills"][fill][name]["deletion"] for clip in clips]).mean(0)
        num_cells = prod(clips[0]["grid"])
        shares = [step / num_cells for step in steps(num_cells, len(mean))]
        yield name, list(zip(shares, mean.tolist(), strict=True))


def run_record(run: Path, about: Record) -> dict[str, Any]:
    """Returns the record of a run of `videoattn train` on a task.

    `truths` has the scores of the maps at kept checkpoints, `gaps` the test accuracy in folders
    RUN/gapN that `videoattn test --out` wrote.
    """
    config = yaml.safe_load((run / "config.yaml").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tests = [row for row in rows if row["kind"] == "validation"]
    seen = max(row["seen"] for row in rows[: rows.index(tests[0])])
    train, model, size = config["train"], config["model"], config["train"]["batch_size"]
    options = {k: v for k, v in model["attention"]["options"].items() if k != "key_pool"}
    num_clips = seen // tests[0]["epoch"]
    truth = run / "truth.json"
    reports = sorted(run.glob("gap*/report.json"), key=lambda path: int(path.parent.name[3:]))
    return {
        **about,
        "network": model["name"],
        "attention": ", ".join([model["attention"]["name"] or "none", *map(str, options.values())]),
        "start": Path(model["weights"]).name if model["weights"] else "random weights",
        "seed": config["seed"],
        "training_clips": num_clips,
        "epochs": train["num_epochs"],
        "lr": train["lr"],
        "test_clips": tests[0]["videos"],
        "accuracy": {str(row["step"] * size): row["video_accuracy"] for row in tests},
        "truth": json.loads(truth.read_text()) if truth.exists() else {},
        "truths": {
            str(int(path.stem.rpartition("-")[2]) * num_clips): json.loads(path.read_text())
            for path in sorted(run.glob("truth-epoch-*.json"))
        },
        "gaps": {
            path.parent.name[3:]: json.loads(path.read_text())["video_accuracy"] for path in reports
        },
    }


def comparison(folder: Path, about: Record) -> dict[str, Any]:
    """Returns the record of a comparison: its results by row and seed."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*_seed*/result.json")):
        name, _, seed = path.parent.name.rpartition("_seed")
        result = read_result(path.parent)
        assert result is not None
        rows.setdefault(name.replace("-", WITH), {})[seed] = result._asdict()
    return {**about, "results": rows}


def store(name: str, record: Record, folder: Path = FOLDER) -> Path:
    """Writes a record with numbers of five significant digits; returns the path of the file."""
    rounded = json.loads(json.dumps(record), parse_float=lambda text: float(f"{float(text):.5g}"))
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rounded, indent=1) + "\n")
    return path


def filled(page: str, folder: Path = FOLDER, pictures: Path | None = None) -> str:
    """Returns a page whose tables and figures are replaced by those of the records in a folder.

    Args:
        pictures: Also draw the figures into this folder.
    """
    records = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}

    def part(found: re.Match[str]) -> str:
        start, what, kind, names, end = found.groups()
        chosen = [row for row in records.values() if row.get("task") == names]
        if names not in TASKS and not chosen:
            chosen = [records[name] for name in names.split(", ")]
        needs = (TABLES if what == "table" else figures.PLOTS)[kind][0]
        chosen = [record for record in chosen if record.get(needs)]
        if what == "table":
            return f"{start}\n{TABLES[kind][1](chosen) if chosen else NONE}\n{end}"
        if not chosen:
            return start + end
        name = f"{kind}_{names.replace(', ', '_')}.svg"
        if pictures is not None:
            figures.draw(kind, chosen, pictures / name)
        return f"{start}\n![{figures.PLOTS[kind].text}](../data/pictures/{name})\n\n{end}"

    return PART.sub(part, page)


def accuracy_table(records: Sequence[Record]) -> str:
    def columns(run: Record) -> Iterator[list[str]]:
        tests = {int(seen) / 1000: share for seen, share in run["accuracy"].items()}
        near = [[share for seen, share in tests.items() if abs(seen - k) < 1] for k in SEEN]
        yield [f"{100 * found[-1]:.1f}" if found else "-" for found in near]

    return _runs(records, [f"{k}k" for k in SEEN], columns)


def truth_runs(records: Sequence[Record]) -> str:
    def columns(run: Record) -> Iterator[list[str]]:
        for name, score in run["truth"].items():
            cells = (cell.removesuffix(" %") for cell in truth_cells([score]))
            yield [name, score["clips"], *cells]

    titles = ["block, answer", "test clips", *TRUTH_COLUMNS.values()]
    return _runs(records, titles, columns)


def _runs(runs: Sequence[Record], titles: Sequence[str], columns: Any) -> str:
    """Returns a table of runs. Settings that are the same in all runs are in a line above it."""
    runs = sorted(runs, key=lambda run: [run[key] for key in RUN])
    same = [key for key in RUN if len({run[key] for run in runs}) == 1]
    common = "; ".join(f"{RUN[key]}: {_cell(runs[0][key])}" for key in same)
    rows = [
        (*(_cell(run[key]) for key in RUN if key not in same), *cells)
        for run in runs
        for cells in columns(run)
    ]
    varied = [title for key, title in RUN.items() if key not in same]
    return (f"{common}\n\n" if common else "") + markdown_table((*varied, *titles), rows)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def comparisons(records: Sequence[Record]) -> str:
    """Returns the tables of `videoattn compare` for each record, the easiest task first."""
    parts = []
    for record in sorted(records, key=lambda record: record.get("dots", 0)):
        rows = {
            name: {int(seed): Result(**result) for seed, result in results.items()}
            for name, results in record["results"].items()
        }
        first = next(iter(next(iter(rows.values())).values()))
        dots = f", {record['dots']} dots" if "dots" in record else ""
        about = f"`{record['task']}`{dots}: {first.num_videos} test clips; {record['machine']}\n\n"
        parts.append(about + table_of(rows, {}) + truth_table(_best_blocks(rows)))
    return "\n".join(parts)


def _best_blocks(rows: Rows) -> Rows:
    """Returns the rows with the truth of `BLOCKS` blocks of each system: those whose rows have
    their highest cell on the evidence most often, after training."""
    kept: Rows = {}
    for name, row in rows.items():
        scores = defaultdict(list)
        for result in row.values():
            for key, score in (result.truth or {}).items():
                block, _, answer = key.rpartition(", ")
                if answer != "before training":
                    scores[block].append(score["pointing"])
        best = sorted(scores, key=lambda block: -statistics.mean(scores[block]))[:BLOCKS]
        kept[name] = {
            seed: result._replace(
                truth={
                    key: score
                    for key, score in (result.truth or {}).items()
                    if key.rpartition(", ")[0] in best
                }
            )
            for seed, result in row.items()
        }
    return kept


def removal_table(records: Sequence[Record]) -> str:
    (record,) = records
    table = record["table"]
    scores = next(iter(table.values()))
    names = sorted(scores, key=lambda name: -scores[name]["gap"][0])
    rows = {
        name: {
            f"{key} {fill}": Interval(*table[fill][name][key])
            for key in REMOVAL
            for fill in table
            if key in table[fill][name]
        }
        for name in names
    }
    columns = {f"{key} {fill}": f"{COLUMNS[key]}, `{fill}`" for key in REMOVAL for fill in table}
    return intervals_table("map", columns, rows)


def blocks_table(records: Sequence[Record]) -> str:
    (record,) = records
    rows = {
        name: {key: Interval(*score) for key, score in scores.items()}
        for name, scores in record["blocks"].items()
    }
    return intervals_table("block", BLOCK_COLUMNS, rows)


def randomization_table(records: Sequence[Record]) -> str:
    """Returns a table of the verdicts and the expected verdicts for each record."""
    verdicts = "all stages redrawn", "unrelated clips", "verdict", "expected"
    columns = ("map", "head and last stage redrawn", *verdicts, "minus the mean map")
    parts = []
    for record in records:
        about = f"{record['run']}, {record['videos']} clips, {record['seeds']} seeds"
        rows = []
        for name, verdict in record["verdicts"].items():
            keys = "upper", "signed", "own"
            upper, signed, own = (Interval(*record["table"][name][key]) for key in keys)
            band = "{:z.2f} to {:z.2f}".format(*record["bands"][name])
            cells = [name, upper, signed, band, verdict, CONTROLS.get(name, ""), own]
            if record["against"]:
                cells.append(bootstrap(torch.tensor(record["against"][name]).double()))
            rows.append(cells)
        titles = [*columns, "of a run on wrong labels"] if record["against"] else columns
        parts.append(f"{about}; {record['machine']}\n\n{markdown_table(titles, rows)}")
    return "\n".join(parts)


TABLES = {
    "accuracy": ("accuracy", accuracy_table),
    "truth": ("truth", truth_runs),
    "compare": ("results", comparisons),
    "removal": ("fills", removal_table),
    "blocks": ("blocks", blocks_table),
    "randomization": ("verdicts", randomization_table),
}
"""Kind of a table -> the key of the records that it shows, and the function that writes it."""
