"""Results of runs, a small JSON file each in docs/evidence, and the tables of the page about them.

A run on a diagnostic task has its settings, its test accuracy over the training, and the scores of
its maps against the truth (`videoattn tasks truth`). A network has its scores by removal
(`videoattn faithful`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PAGE = Path(__file__).parents[1] / "docs/evidence.md"
FOLDER = PAGE.with_suffix("")
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
"""A table of the page, by its name."""

Stored = Mapping[str, Any]
SEEN = (8, 16, 24, 32, 40, 48, 56, 72, 88, 104)
"""The columns of accuracy: thousands of training clips."""
FAITHFUL = ("gap", "drop", "saco", "time", "better")


def run_record(run: Path, about: Stored) -> dict[str, Any]:
    """Returns the record of a run: its settings, and its accuracies by the number of clips seen.

    Args:
        about: What the run does not know, such as the task, the number of identities, the machine.
    """
    config = yaml.safe_load((run / "config.yaml").read_text())
    train, model, lines = config["train"], config["model"], (run / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    tested = [row for row in rows if row["kind"] == "validation"]
    truth = run / "truth.json"
    return {
        **about,
        "network": model["name"],
        "attention": attention_name(model["attention"]),
        "start": Path(model["weights"]).name if model["weights"] else "random weights",
        "seed": config["seed"],
        "training_clips": round(tested[0]["step"] * train["batch_size"] / tested[0]["epoch"]),
        "epochs": train["num_epochs"],
        "test_clips": tested[-1]["videos"],
        "accuracy": {
            str(row["step"] * train["batch_size"]): row["video_accuracy"] for row in tested
        },
        "truth": json.loads(truth.read_text()) if truth.exists() else {},
    }


def attention_name(attention: Stored) -> str:
    """Returns the system and its options, such as "similarity, cosine"."""
    options = {k: v for k, v in attention["options"].items() if k != "key_pool"}
    return ", ".join([attention["name"] or "none", *map(str, options.values())])


def faithful_record(path: Path, about: Stored) -> dict[str, Any]:
    """Returns the record of a network's scores by removal, without its clips."""
    found = json.loads(path.read_text())
    clips = found["clips"]
    return {
        **about,
        **found["settings"],
        "clips": len(clips),
        "right": sum(clip["right"] for clip in clips),
        "grid": clips[0]["grid"],
        "table": found["table"],
        "blocks": found["blocks"],
    }


def read(folder: Path = FOLDER) -> dict[str, Stored]:
    """Returns the stored records by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def filled(page: str, records: Mapping[str, Stored]) -> str:
    """Returns a page with its tables written again.

    The table "accuracy" or "truth TASK" has all runs with an accuracy, or all of a task with a
    truth; "removal NAME" and "blocks NAME" are those of a record.
    """

    def table(found: re.Match[str]) -> str:
        kind, _, name = found[2].partition(" ")
        if kind in ("removal", "blocks"):
            return found[1] + TABLES[kind](records[name]) + found[3]
        runs = [row for row in records.values() if row.get("task") == name]
        return found[1] + TABLES[kind](sorted(runs, key=_order)) + found[3]

    return TABLE.sub(table, page)


def _order(run: Stored) -> tuple[Any, ...]:
    return run["identities"], -run["training_clips"], run["attention"], run["seed"]


def accuracy_table(runs: Sequence[Stored]) -> str:
    columns = ("glyphs", "clips", "attention", "seed", *(f"{k}k" for k in SEEN))
    rows = []
    for run in runs:
        found = {round(int(seen) / 1000): x for seen, x in run["accuracy"].items()}
        cells = [_percent(found[k]) if k in found else "-" for k in SEEN]
        rows.append((*_cells(run), *cells))
    return markdown(columns, rows)


def truth_table(runs: Sequence[Stored]) -> str:
    columns = (
        "glyphs", "clips", "attention", "seed", "block", "test clips", "on the cue", "its share",
        "on others", "their share", "highest cell on the cue", "by chance",
    )  # fmt: skip
    keys = ("mass", "area", "distractor_mass", "distractor_area", "pointing", "chance")
    rows = [
        (*_cells(run), *_block(name, score["clips"]), *(_percent(score[key]) for key in keys))
        for run in runs
        for name, score in run["truth"].items()
    ]
    return markdown(columns, rows)


def _cells(run: Stored) -> tuple[str, ...]:
    clips = f"{run['training_clips']:,}"
    return str(run["identities"]), clips, run["attention"], str(run["seed"])


def _block(name: str, clips: int) -> tuple[str, str]:
    block, _, kind = name.partition(", ")
    return block.rpartition("_")[0] or block, f"{clips} {kind}"


def removal_table(record: Stored) -> str:
    columns = ["map"]
    fills = list(record["table"])
    columns += [f"{FAITHFUL_NAMES[key]}, `{fill}`" for fill in fills for key in FAITHFUL]
    first = record["table"][fills[0]]
    rows = [
        [name, *(_interval(record["table"][fill][name].get(k)) for fill in fills for k in FAITHFUL)]
        for name in sorted(first, key=lambda name: -first[name]["gap"][0])
    ]
    return markdown(columns, rows)


FAITHFUL_NAMES = {
    "gap": "gap", "drop": "drop at 10 %", "saco": "SaCo", "time": "time", "better": "beats random",
}  # fmt: skip


def blocks_table(record: Stored) -> str:
    columns = ("block", *next(iter(record["blocks"].values())))
    rows = [[name, *(_interval(x) for x in row.values())] for name, row in record["blocks"].items()]
    return markdown(columns, rows)


TABLES: dict[str, Any] = {
    "accuracy": accuracy_table,
    "truth": truth_table,
    "removal": removal_table,
    "blocks": blocks_table,
}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(found: Sequence[float] | None) -> str:
    return "-" if found is None else "{:z.2f} ({:z.2f} to {:z.2f})".format(*found)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (columns, ["---"] * len(columns), *rows)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
