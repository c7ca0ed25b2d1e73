"""Stores the scores of maps, and writes them as tables and curves."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from videoattn.cli.app import one_line
from videoattn.explain.faithful.removal import Groups, area, saco, sign_agreement, steps
from videoattn.explain.faithful.score import FRAMES_ONLY, SIGNED
from videoattn.explain.faithful.statistics import Interval, bootstrap
from videoattn.files import write_text, write_whole
from videoattn.recipe.console import markdown_table

COLUMNS = {
    "gap": "gap", "difference": "gap minus random's", "deletion": "deletion",
    "insertion": "insertion", "relative": "relative deletion", "gap_y": "gap of y",
    "drop": "drop at 10 %", "sign": "sign", "saco": "SaCo", "time": "time", "shuffle": "shuffle",
    "better": "better than random",
}  # fmt: skip
BLOCK_COLUMNS = {
    "highest": "without keys of the highest weight",
    "random": "random keys",
    "lowest": "lowest",
    "difference": "highest minus random",
    "weights": "rank correlation of w with the effect",
    "weighted_values": "of w times the norm of v",
    "off": "accuracy, block off minus on (points)",
}
"""Score -> its heading in the table of maps, and in that of blocks."""
MAX_RESULTS_BYTES = 2**28
"""Largest file of results that is read: 256 MiB."""


class Results:
    """The results of a command, one for each unit of work, in a JSON file.

    Raises:
        ValueError: If the file holds results of other settings, or is damaged.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = dict(settings)
        self.done: dict[int, dict[str, Any]] = {}
        self.num_read = 0
        if not path.exists():
            return
        if path.stat().st_size > MAX_RESULTS_BYTES:
            raise ValueError(
                f"{path} has more than {MAX_RESULTS_BYTES:,} bytes, the limit; remove it"
            )
        try:
            stored = json.loads(path.read_text("utf-8"))
            before, rows = stored["settings"], stored["clips"]
            self.done = {int(row["clip"]): dict(row) for row in rows}
            self.num_read = len(self.done)
            different = [k for k in settings if k != "machine" and before.get(k) != settings[k]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({one_line(error)}); remove it") from error
        if different:
            names = ", ".join(different)
            raise ValueError(f"{path} holds results of other settings ({names}); move or remove it")

    @contextmanager
    def as_tables(self) -> Iterator[list[dict[str, Any]]]:
        """Yields the results. If some of them were read from the file, an error inside the `with`
        means that the file is damaged, and becomes a ValueError."""
        try:
            yield list(self.done.values())
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if not self.num_read:
                raise
            raise ValueError(f"{self.path} is damaged ({one_line(error)}); remove it") from error

    def add(self, number: int, row: Mapping[str, Any]) -> None:
        """Adds the result of a unit, and writes the file."""
        self.done[number] = {"clip": number, **row}
        self.write()

    def write(self, **more: object) -> None:
        content = {"settings": self.settings, **more, "clips": list(self.done.values())}
        write_text(self.path, json.dumps(content) + "\n")

    def header(self, **more: object) -> str:
        """Returns the settings as one paragraph of Markdown."""
        texts = {
            key: ", ".join(map(str, value)) if isinstance(value, list) else value
            for key, value in {**self.settings, **more}.items()
            if value is not None
        }
        return "; ".join(f"{key}: {text}" for key, text in texts.items()) + ".\n"


def write_removal(results: Results) -> list[Path]:
    """Writes faithfulness.md and curves.png, and the tables to faithfulness.json."""
    fills, seed = results.settings["fills"], results.settings["seed"]
    written = [results.path, results.path.with_suffix(".md"), results.path.with_name("curves.png")]
    with results.as_tables() as clips:
        num_right, grid = sum(clip["right"] for clip in clips), clips[0]["grid"]
        header = results.header(
            clips=len(clips),
            grid="x".join(map(str, grid)),
            right=f"{num_right} of {len(clips)} clips ({100 * num_right / len(clips):.1f} %)",
            intervals="95 %, bootstrap over clips",
        )
        text = f"# Faithfulness\n\n{header}"
        tables = {fill: table(clips, fill, seed) for fill in fills}
        for fill, rows in tables.items():
            ranked = dict(sorted(rows.items(), key=lambda item: -item[1]["gap"].mean))
            text += f"\n## Hidden cells show: {fill}\n\n{intervals_table('map', COLUMNS, ranked)}"
        if blocks := block_scores(clips, seed):
            text += "\n## Blocks: the decrease of y without 5 % of the keys of every query\n\n"
            text += intervals_table("block", BLOCK_COLUMNS, blocks)
        results.write(table=tables, blocks=blocks)
        write_text(written[1], text)
        _draw_curves(written[2], clips, fills, prod(grid))
    return written


def table(
    clips: Sequence[Mapping[str, Any]], fill: str, seed: int
) -> dict[str, dict[str, Interval]]:
    """Returns the scores of each map with this fill."""
    names = list(clips[0]["fills"][fill])
    num_cells = prod(clips[0]["grid"])

    def curves(name: str, key: str) -> Tensor:
        return torch.tensor([c["fills"][fill][name][key] for c in clips], dtype=torch.float64)

    def areas(name: str, suffix: str = "") -> tuple[Tensor, Tensor]:
        return tuple(area(curves(name, kind + suffix), num_cells) for kind in _KINDS)  # type: ignore[return-value]

    random = areas("random")
    whole, empty = curves("random", "deletion")[:, [0, -1]].T
    y_range = -curves("random", "deletion_y")[:, [0, -1]].diff(dim=1)[:, 0]
    found: dict[str, dict[str, Interval]] = {}
    for name in names:
        deletion, insertion = areas(name)
        gap_y = areas(name, "_y")[1] - areas(name, "_y")[0]
        gap, random_gap = insertion - deletion, random[1] - random[0]
        tenth, random_tenth = (
            _at_tenth(curves(n, "deletion"), num_cells) for n in (name, "random")
        )
        groups = [
            Groups(*(torch.tensor(c["fills"][fill][name][k]) for k in Groups._fields))
            for c in clips
        ]
        base = name.removesuffix(FRAMES_ONLY)
        values = {
            "gap": gap,
            "difference": gap - random_gap,
            "deletion": deletion,
            "insertion": insertion,
            "drop": random_tenth - tenth,
            "sign": torch.stack([sign_agreement(g, signed=base in SIGNED) for g in groups]),
            "saco": torch.stack([saco(g) for g in groups]),
            "better": (gap > random_gap).double(),
        }
        row = {key: bootstrap(value.double(), seed) for key, value in values.items()}
        row["relative"] = bootstrap(random[0] - deletion, seed, over=whole - empty)
        row["gap_y"] = bootstrap(gap_y, seed, over=y_range)
        if name in clips[0]["time"]:
            times = torch.tensor([c["time"][name] for c in clips], dtype=torch.float64)
            row["time"] = bootstrap(area(times, times.shape[1] - 1), seed)
        if name in clips[0]["shuffle"]:
            row["shuffle"] = bootstrap(torch.tensor([c["shuffle"][name] for c in clips]), seed)
        found[name] = row
    return found


_KINDS = ("deletion", "insertion")


def _at_tenth(curve: Tensor, num_cells: int) -> Tensor:
    """Returns the values (N,) of curves (N, points) at a tenth of the cells, interpolated."""
    at = [step / num_cells for step in steps(num_cells, curve.shape[1])]
    after = next(index for index, share in enumerate(at) if share >= 0.1)
    weight = (0.1 - at[after - 1]) / (at[after] - at[after - 1])
    return curve[:, after - 1] * (1 - weight) + curve[:, after] * weight


def intervals_table(
    first: str, columns: Mapping[str, str], rows: Mapping[str, Mapping[str, Interval]]
) -> str:
    """Returns Markdown: a row for each name, with the scores that it has."""
    cells = [
        (name, *(str(row[key]) if key in row else "-" for key in columns))
        for name, row in rows.items()
    ]
    return markdown_table((first, *columns.values()), cells)


def block_scores(clips: Sequence[Mapping[str, Any]], seed: int) -> dict[str, dict[str, Interval]]:
    """Returns the mean of each score in `BLOCK_COLUMNS`, with its interval, for each block."""
    found: dict[str, dict[str, Interval]] = {}
    for name in clips[0]["blocks"]:
        values: dict[str, list[float]] = defaultdict(list)
        for clip in clips:
            row = dict(clip["blocks"][name])
            if "highest" in row:
                row["difference"] = row["highest"] - row["random"]
            if "answer_off" in row:
                row["off"] = 100 * ((row.pop("answer_off") in clip["labels"]) - clip["right"])
            for key, value in row.items():
                values[key].append(value)
        found[name] = {key: bootstrap(torch.tensor(x).double(), seed) for key, x in values.items()}
    return found


def _draw_curves(
    path: Path, clips: Sequence[Mapping[str, Any]], fills: Sequence[str], num_cells: int
) -> None:
    """Draws the mean deletion and insertion curves: a row of two plots for each fill."""
    figure = Figure(figsize=(12, 4.5 * len(fills)), layout="constrained")
    plots = figure.subplots(len(fills), 2, squeeze=False)
    for fill, row in zip(fills, plots, strict=True):
        for kind, axes in zip(_KINDS, row, strict=True):
            _draw(axes, clips, fill, kind, num_cells)
    plots[0][1].legend(loc="lower right", fontsize=8)
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _draw(
    axes: Axes, clips: Sequence[Mapping[str, Any]], fill: str, kind: str, num_cells: int
) -> None:
    for name in clips[0]["fills"][fill]:
        if FRAMES_ONLY in name:
            continue
        curves = torch.tensor([clip["fills"][fill][name][kind] for clip in clips])
        at = torch.tensor(steps(num_cells, curves.shape[1])) / num_cells
        is_random = name == "random"
        axes.plot(at, curves.mean(0), label=name, color="black" if is_random else None,
                  linestyle="--" if name in ("center", "motion", "smooth") else "-")  # fmt: skip
        if is_random:
            bands = [bootstrap(column.double()) for column in curves.T]
            axes.fill_between(at, [b.low for b in bands], [b.high for b in bands], color="0.8")
    verb = "hidden" if kind == "deletion" else "revealed"
    axes.set(xlabel=f"share of cells {verb}, highest first", ylabel="probability of the class",
             ylim=(0, 1), title=f"{kind}, {fill}")  # fmt: skip
