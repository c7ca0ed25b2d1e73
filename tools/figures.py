"""Draws the figures of docs/evidence.md, curves of stored records, into data/pictures."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from videoattn.cli.comparison import Result
from videoattn.explain.faithful.score import FRAMES_ONLY

PICTURES = Path(__file__).parents[1] / "data/pictures"
STYLE: Any = {"svg.hashsalt": "evidence", "font.size": 9, "path.simplify": False}
"""With this style, equal curves give identical files."""

Record = Mapping[str, Any]
Curve = tuple[str, list[tuple[float, float]]]
"""A label and points (x, y). Curves with the same label have the same color."""


class Plot(NamedTuple):
    """The content of a figure.

    Args:
        needs: The key of a record that the curves are from. Records without it are left out.
        curves: Function from records to curves.
        x, y: The titles of the axes.
        text: The description of the picture.
    """

    needs: str
    curves: Callable[[Sequence[Record]], Iterable[Curve]]
    x: str
    y: str
    text: str


def seen(records: Sequence[Record]) -> Iterable[Curve]:
    for run in records:
        yield system(run), [(int(k) / 1000, 100 * v) for k, v in run["accuracy"].items()]


def gaps(records: Sequence[Record]) -> Iterable[Curve]:
    for run in records:
        yield system(run), sorted((int(k), 100 * v) for k, v in run["gaps"].items())


def masses(records: Sequence[Record]) -> Iterable[Curve]:
    """Yields each block's weight on the evidence, averaged over all right and wrong answers."""
    for run in records:
        points: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for clips, truth in run["truths"].items():
            for block in sorted({name.rpartition(", ")[0] for name in truth}):
                rows = [row for name, row in truth.items() if name.startswith(f"{block}, ")]
                total = sum(row["clips"] for row in rows)
                mass = sum(row["clips"] * row["mass"] for row in rows) / total
                points[block].append((int(clips) / 1000, 100 * mass))
        for block, found in points.items():
            yield f"{system(run)}: {block}", found


def dots(records: Sequence[Record]) -> Iterable[Curve]:
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record["dots"]):
        for name, results in record["results"].items():
            mean = fmean(Result(**one).video_accuracy for one in results.values())
            points[name].append((record["dots"], 100 * mean))
    yield from points.items()


def deletion(records: Sequence[Record]) -> Iterable[Curve]:
    for record in records:
        for name, curve in record["curves"][record["fills"][0]].items():
            if FRAMES_ONLY not in name:
                yield name, [(100 * share, p) for share, p in curve]


SEEN, RIGHT = "thousands of training clips seen", "accuracy on test clips (%)"
PLOTS = {
    "seen": Plot("accuracy", seen, SEEN, RIGHT, "Accuracy over training clips, by system and seed"),
    "gap": Plot("gaps", gaps, "frames between the cue and the candidates", RIGHT,
                "Accuracy over the length of the gap"),
    "mass": Plot("truths", masses, SEEN, "weight on the evidence (%)",
                 "Weight on the evidence over training"),
    "dots": Plot("dots", dots, "dots", RIGHT, "Accuracy over the number of dots"),
    "deletion": Plot("curves", deletion, "cells hidden (%), highest first",
                     "probability of the class", "Deletion curves of maps and baselines"),
}  # fmt: skip
"""Kind of a figure -> its plot."""


def system(run: Record) -> str:
    clips = f"{run['identities']} glyphs, {run['training_clips']:,} clips"
    return f"{run['attention']}, {clips}, from {run['start']}"


def draw(kind: str, records: Sequence[Record], path: Path) -> None:
    """Draws the curves of records as SVG."""
    plot = PLOTS[kind]
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4.8), layout="constrained")
        axes = figure.subplots()
        styles: dict[str, tuple[str, str]] = {}
        for label, points in plot.curves(records):
            shown = None if label in styles else label
            new = f"C{len(styles) % 10}", "-" if len(styles) < 10 else "--"
            color, line = styles.setdefault(label, new)
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, color=color, linestyle=line, label=shown, marker=".")
        axes.set(xlabel=plot.x, ylabel=plot.y, ylim=(0, None))
        axes.grid(alpha=0.3)
        columns = 2 if max(map(len, styles), default=0) <= 64 else 1  # what fits the width
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns)
        figure.savefig(path, format="svg", metadata={"Date": None})
