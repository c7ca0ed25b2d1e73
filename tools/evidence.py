"""Results of runs, a small JSON file each in docs/evidence, and the tables of the page about them.

A run on a diagnostic task has its settings, its test accuracy during training, and the scores of
its maps against the truth (`videoattn tasks truth`). A network has its scores by removal
(`videoattn faithful`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from videoattn.explain.faithful.statistics import Interval
from videoattn.recipe.console import markdown_table

PAGE = Path(__file__).parents[1] / "docs/evidence.md"
FOLDER = PAGE.with_suffix("")
TABLE = re.compile(r"(<!-- table: (\w+) ([\w, ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
"""A table of the page: its kind and the names of its records, or the name of its task."""

Record = Mapping[str, Any]
SEEN = (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104)
"""The columns of accuracy: thousands of clips since the start of training."""
TRUTH = {
    "mass": "weight on the evidence",
    "area": "its area",
    "distractor_mass": "on distractors",
    "distractor_area": "their area",
    "pointing": "highest cell on the evidence",
    "chance": "by chance",
}
REMOVAL = {"gap": "gap", "drop": "drop at 10 %", "saco": "SaCo", "better": "better than random"}
BLOCKS = {
    "highest": "y, without keys of the highest weight",
    "random": "random keys",
    "lowest": "lowest",
    "weights": "w and the effect",
    "weighted_values": "w times the norm of v",
    "off": "accuracy, block off (points)",
}


def run_record(run: Path, about: Record) -> dict[str, Any]:
    """Returns the record of a run of `videoattn train` on a task.

    Args:
        about: What the run does not know: the task, the number of identities, the machine.
    """
    config = yaml.safe_load((run / "config.yaml").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tests = [row for row in rows if row["kind"] == "validation"]
    seen = max(row["seen"] for row in rows[: rows.index(tests[0])])
    train, model, size = config["train"], config["model"], config["train"]["batch_size"]
    options = {k: v for k, v in model["attention"]["options"].items() if k != "key_pool"}
    truth = run / "truth.json"
    return {
        **about,
        "network": model["name"],
        "attention": ", ".join([model["attention"]["name"] or "none", *map(str, options.values())]),
        "start": Path(model["weights"]).name if model["weights"] else "random weights",
        "seed": config["seed"],
        "training_clips": seen // tests[0]["epoch"],
        "epochs": train["num_epochs"],
        "lr": train["lr"],
        "test_clips": tests[0]["videos"],
        "accuracy": {str(row["step"] * size): row["video_accuracy"] for row in tests},
        "truth": json.loads(truth.read_text()) if truth.exists() else {},
    }


def removal_record(path: Path, about: Record) -> dict[str, Any]:
    """Returns the record of faithfulness.json, without its clips."""
    found = json.loads(path.read_text())
    clips = found["clips"]
    about = {**about, **found["settings"], "clips": len(clips), "grid": clips[0]["grid"]}
    right = sum(clip["right"] for clip in clips)
    return {**about, "right": right, "table": found["table"], "blocks": found["blocks"]}


def store(name: str, record: Record, folder: Path = FOLDER) -> Path:
    """Writes a record; numbers have five digits."""
    rounded = json.loads(json.dumps(record), parse_float=lambda text: float(f"{float(text):.5g}"))
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rounded, indent=1) + "\n")
    return path


def filled(page: str, folder: Path = FOLDER) -> str:
    """Returns a page with its tables written again from the records in a folder."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}

    def table(found: re.Match[str]) -> str:
        start, kind, names, end = found.groups()
        chosen = [row for row in records.values() if row.get("task") == names]
        chosen = chosen or [records[name] for name in names.split(", ")]
        return f"{start}\n{TABLES[kind](chosen)}\n{end}"

    return TABLE.sub(table, page)


def accuracy_table(runs: Sequence[Record]) -> str:
    rows = []
    for run in sorted(runs, key=_order):
        found = {round(int(seen) / 1000): share for seen, share in run["accuracy"].items()}
        rows.append((*_run(run), *(_percent(found.get(k)) for k in SEEN)))
    return markdown_table((*RUN, *(f"{k}k" for k in SEEN)), rows)


def truth_table(runs: Sequence[Record]) -> str:
    rows = [
        (*_run(run), name, score["clips"], *(_percent(score[key]) for key in TRUTH))
        for run in sorted(runs, key=_order)
        for name, score in run["truth"].items()
    ]
    return markdown_table((*RUN, "block, answer", "test clips", *TRUTH.values()), rows)


RUN = ("glyphs", "clips", "attention", "seed")


def _run(run: Record) -> tuple[object, ...]:
    return run["identities"], f"{run['training_clips']:,}", run["attention"], run["seed"]


def _order(run: Record) -> tuple[Any, ...]:
    return run["identities"], -run["training_clips"], run["attention"], run["seed"]


def removal_table(records: Sequence[Record]) -> str:
    (record,) = records
    table = record["table"]
    columns = [f"{title}, `{fill}`" for title in REMOVAL.values() for fill in table]
    scores = next(iter(table.values()))
    rows = [
        (name, *(_interval(table[fill][name].get(key)) for key in REMOVAL for fill in table))
        for name in sorted(scores, key=lambda name: -scores[name]["gap"][0])
    ]
    return markdown_table(("map", *columns), rows)


def blocks_table(records: Sequence[Record]) -> str:
    (record,) = records
    rows = [
        (name, *(_interval(row.get(key)) for key in BLOCKS))
        for name, row in record["blocks"].items()
    ]
    return markdown_table(("block", *BLOCKS.values()), rows)


TABLES = {
    "accuracy": accuracy_table,
    "truth": truth_table,
    "removal": removal_table,
    "blocks": blocks_table,
}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _interval(found: Sequence[float] | None) -> str:
    return "-" if found is None else str(Interval(*found))
