"""The results of `videoattn compare`, and its tables."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from videoattn.engine.trackers import read_records
from videoattn.explain.faithful.statistics import middle
from videoattn.recipe.console import markdown_table

RESULT = "result.json"
NONE = "none"
TRUTH = ("clips", "mass", "area", "pointing", "chance")
"""The scores in every value of `Result.truth`."""
TRUTH_COLUMNS = {
    "mass": "weight on the evidence",
    "area": "its area",
    "wrong_mass": "from wrong queries",
    "distractor_mass": "on distractors",
    "distractor_area": "their area",
    "pointing": "highest cell on the evidence",
    "chance": "by chance",
    "right_off": "right answers without the block",
}
"""Score of a map against the truth -> its heading, in the tables of all commands."""
WITH = " + "
"""Separates the network and the attention in the name of a row."""
NUM_RESAMPLES = 2000


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
    correct: str = ""  # 1 or 0 for each decoded video, in the order of the list; "" for mAP
    truth: dict[str, dict[str, float | int]] | None = None  # if the task has ground truth


Rows = dict[str, dict[int, Result]]
"""The results of each row of a table, by seed."""


def read_result(folder: Path) -> Result | None:
    """Returns the result of a run, or None if the run has not finished.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / RESULT
    if not (found := read_records(path, **dict.fromkeys(Result._fields[:5], int | float))):
        return None
    result = Result(**{name: found[0][name] for name in Result._fields if name in found[0]})
    mean, correct = result.mean_class_accuracy, result.correct
    texts = isinstance(result.metric, str) and isinstance(correct, str) and set(correct) <= {*"01"}
    if not texts or not isinstance(mean, int | float | None) or not _is_truth(result.truth):
        raise ValueError(f"{path} is damaged; remove it")
    return result


def _is_truth(found: Any) -> bool:
    return found is None or (
        isinstance(found, dict)
        and all(isinstance(row, dict) for row in found.values())
        and all(isinstance(row.get(key), int | float) for row in found.values() for key in TRUTH)
    )


def table_of(rows: Rows, failed: dict[str, str]) -> str:
    """Returns Markdown: mean and range of the video accuracy over the seeds, highest mean first."""
    metric = next((one.metric for row in rows.values() for one in row.values()), "accuracy")
    columns = (
        "attention",
        f"video {metric}: mean (range)",
        "difference to none (95 %)",
        "mean class accuracy",
        "seeds",
        "parameters",
        "training clips/s",
    )
    cells: list[Sequence[str]] = []
    for name, row in sorted(rows.items(), key=lambda item: -_mean(item[1])):
        results = list(row.values())
        scores = [100 * one.video_accuracy for one in results]
        of_classes = [
            one.mean_class_accuracy for one in results if one.mean_class_accuracy is not None
        ]
        speed = statistics.median(one.clips_per_second for one in results)
        bare = "".join(name.rpartition(WITH)[:2]) + NONE
        row_cells = (
            name,
            f"{100 * _mean(row):.1f} % ({min(scores):.1f} - {max(scores):.1f})",
            "" if name == bare else difference(row, rows.get(bare, {})),
            f"{100 * statistics.mean(of_classes):.1f} %" if of_classes else "-",
            str(len(row)),
            f"{results[0].num_parameters / 1e6:.2f} M",
            f"{speed:.0f}",
        )
        cells.append(row_cells)
    cells += [(name, f"failed: {error}", *[""] * 5) for name, error in failed.items()]
    return markdown_table(columns, cells)


def truth_table(rows: Rows) -> str:
    """Returns an empty line and a Markdown table with the scores of maps against the ground truth,
    as means over the seeds that have them, or "" for a task without ground truth."""
    cells: list[Sequence[str]] = []
    for name, row in rows.items():
        found = [one.truth for one in row.values() if one.truth]
        for key in sorted({key for truth in found for key in truth}):
            scores = [truth[key] for truth in found if key in truth]
            clips = sum(one["clips"] for one in scores)
            cells.append((name, key, f"{clips:.0f}", *truth_cells(scores)))
    columns = ("attention", "rows of the queries in", "clips", *TRUTH_COLUMNS.values())
    return "\n" + markdown_table(columns, cells) if cells else ""


def truth_cells(scores: Sequence[Mapping[str, float | int]]) -> list[str]:
    """Returns the cells below `TRUTH_COLUMNS`: means, or "-" for scores that are not measured."""
    return [
        f"{100 * statistics.mean(one[key] for one in scores):.1f} %"
        if all(key in one for one in scores)
        else "-"
        for key in TRUTH_COLUMNS
    ]


def _mean(row: Mapping[int, Result]) -> float:
    return statistics.mean(result.video_accuracy for result in row.values())


def difference(row: Mapping[int, Result], bare: Mapping[int, Result]) -> str:
    """Returns text with the mean difference of two rows in points, on the same seeds and videos.

    The 95 % interval is over 2,000 bootstrap resamples of seeds and of videos. If it contains 0,
    the rows are a tie. Returns "-" if the rows cannot be compared.
    """
    pairs = [(row[seed].correct, bare[seed].correct) for seed in sorted(row.keys() & bare.keys())]
    if not pairs or len({len(text) for pair in pairs for text in pair} | {0}) != 2:
        return "-"  # no common seed, different videos, or mAP
    ours, theirs = torch.tensor([[list(map(int, text)) for text in pair] for pair in pairs]).unbind(
        1
    )
    points = 100.0 * (ours - theirs).double()
    generator = torch.Generator().manual_seed(0)
    seeds, videos = (
        _shares(torch.randint(size, (NUM_RESAMPLES, size), generator=generator), size)
        for size in points.shape
    )
    means = torch.einsum("rs,sv,rv->r", seeds, points, videos)
    low, high = middle(means)
    tie = ", tie" if low <= 0 <= high else ""
    return f"{points.mean():+.1f} ({low:+.1f} to {high:+.1f}){tie}"


def _shares(drawn: Tensor, size: int) -> Tensor:
    """Returns the share (R, size) of each of `size` items in resamples of indices (R, size)."""
    counts = torch.zeros(len(drawn), size, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts)) / size
