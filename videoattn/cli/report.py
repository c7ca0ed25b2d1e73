"""Writes the report of an evaluation: tables, JSON, and a confusion matrix."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn import metrics

from videoattn.cli.env import machine
from videoattn.engine.evaluate import Evaluation
from videoattn.engine.objective import average_precisions, has_labels, multi_hot, top_classes
from videoattn.explain.text import drawable
from videoattn.files import csv_text, output_folder, write_text, write_whole

Confusion = Int[np.ndarray, "K K"]
"""Counts: rows are the labels, columns the predictions."""


def write_report(
    evaluation: Evaluation,
    folder: Path,
    *,
    class_names: Sequence[str],
    describe: Callable[[int], str] = str,
    checkpoint: str | None = None,
) -> dict[str, object]:
    """Writes report.json and predictions.csv; for labeled videos, also tables and a picture.

    `per_class.csv` has a row per class. `confusion.csv` has a row per label and a column per
    prediction, and `confusion.png` shows it as fractions of each row. If videos may have several
    labels, there is no confusion matrix, and `per_class.csv` has average precisions.

    Args:
        describe: Function from the index of a sample to its name.
        checkpoint: Name of the weights' file, for report.json.

    Returns:
        The content of report.json.
    """
    num_classes = evaluation.probabilities.shape[1]
    if len(class_names) != num_classes:
        raise ValueError(
            f"class_names: got {len(class_names)}; need {num_classes}, the classes of the "
            "network; use its training data"
        )
    output_folder(folder)
    report = summarize(evaluation)
    if checkpoint is not None:
        report["checkpoint"] = checkpoint
    write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    _write_predictions(folder / "predictions.csv", evaluation, class_names, describe)
    if not evaluation.num_labeled:
        return report
    if "mAP" in evaluation.video_metrics:
        _write_average_precisions(folder / "per_class.csv", evaluation, class_names)
    else:
        counts = confusion(evaluation)
        _write_per_class(folder / "per_class.csv", evaluation, class_names)
        header = ["label \\ predicted", *class_names]
        rows = ([name, *row] for name, row in zip(class_names, counts.tolist(), strict=True))
        write_text(folder / "confusion.csv", csv_text([header, *rows]))
        draw_confusion(folder / "confusion.png", counts, class_names)
    return report


def summarize(evaluation: Evaluation) -> dict[str, object]:
    """Returns the content of report.json; metrics are None if no label is known."""
    parts = {name: _numbers(part) for name, part in evaluation.parts.items()}
    return {
        **_numbers(evaluation),
        **({"parts": parts} if parts else {}),
        "videos_asked": evaluation.num_videos,
        "videos_decoded": evaluation.num_decoded,
        "videos_failed": evaluation.num_failed,
        "videos_labelled": evaluation.num_labeled,
        "views_per_video": evaluation.num_views,
        "failures": [asdict(failure) for failure in evaluation.failures],
        "machine": machine(),
    }


def _numbers(evaluation: Evaluation) -> dict[str, float | None]:
    numbers = {f"video_{name}": value for name, value in evaluation.video_metrics.items()}
    numbers |= {f"clip_{name}": value for name, value in evaluation.clip_metrics.items()}
    numbers["loss"] = evaluation.loss
    return {key: None if math.isnan(value) else value for key, value in numbers.items()}


def confusion(evaluation: Evaluation) -> Confusion:
    """Returns the number of videos of each class (row) with each prediction (column)."""
    labels, predicted = _labeled(evaluation)
    num_classes = evaluation.probabilities.shape[1]
    counts: Confusion = metrics.confusion_matrix(labels, predicted, labels=range(num_classes))
    return counts


def draw_confusion(path: Path, counts: Confusion, class_names: Sequence[str]) -> None:
    """Draws the predictions for each label as fractions of its videos; up to 20 classes also get
    counts."""
    num_classes = len(class_names)
    side = min(16.0, 3.0 + 0.45 * num_classes)
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=axes, label="share of the label's videos", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="label")
    if num_classes <= 60:
        ticks = range(num_classes)
        names = [drawable(name) for name in class_names]
        axes.set_xticks(ticks, [text for text, _ in names], rotation=90)
        axes.set_yticks(ticks, [text for text, _ in names])
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            for label, (_, families) in zip(labels, names, strict=True):
                label.set(fontfamily=families, parse_math=False)
    if num_classes <= 20:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _labeled(evaluation: Evaluation) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    known = evaluation.labels >= 0
    predicted = evaluation.probabilities.argmax(dim=1)
    return evaluation.labels[known].numpy(), predicted[known].numpy()


def _write_per_class(path: Path, evaluation: Evaluation, class_names: Sequence[str]) -> None:
    labels, predicted = _labeled(evaluation)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(len(class_names)), zero_division=0.0
    )
    columns = zip(class_names, support, recall, precision, f1, strict=True)
    rows = ([name, count, *(f"{share:.4f}" for share in of)] for name, count, *of in columns)
    # The recall of a class is its accuracy.
    write_text(path, csv_text([["class", "videos", "accuracy", "precision", "f1"], *rows]))


def _write_average_precisions(
    path: Path, evaluation: Evaluation, class_names: Sequence[str]
) -> None:
    """Writes the average precision of each class, and its threshold with the highest F1 score on
    these videos; classes without videos have empty cells."""
    known = has_labels(evaluation.labels)
    averages = average_precisions(evaluation.probabilities[known], evaluation.labels[known])
    scores = evaluation.probabilities[known].numpy()
    target = multi_hot(evaluation.labels[known], len(class_names)).numpy()
    rows: list[list[object]] = [
        ["class", "videos", "average_precision", "threshold", "precision", "recall", "f1"]
    ]
    for k, name in enumerate(class_names):
        count = int(target[:, k].sum())
        cells = [""] * 5
        if count:
            precision, recall, thresholds = metrics.precision_recall_curve(
                target[:, k], scores[:, k]
            )
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            best = int(f1[:-1].argmax())  # the last point has no threshold
            at_best = (curve[best] for curve in (thresholds, precision, recall, f1))
            cells = [f"{number:.4f}" for number in (float(averages[k]), *at_best)]
        rows.append([name, count, *cells])
    write_text(path, csv_text(rows))


def _write_predictions(
    path: Path, evaluation: Evaluation, class_names: Sequence[str], describe: Callable[[int], str]
) -> None:
    classes = top_classes(evaluation.probabilities, 5)
    probabilities = evaluation.probabilities.gather(1, classes)
    header = ["index", "path", "label", "predicted", "probability", "correct", "top5"]
    known, targets = has_labels(evaluation.labels), multi_hot(evaluation.labels, len(class_names))

    def row(number: int) -> list[object]:
        index = int(evaluation.indices[number])
        labels = targets[number].nonzero().flatten().tolist()
        best, shares = classes[number].tolist(), probabilities[number].tolist()
        top = zip(best, shares, strict=True)
        return [
            index,
            describe(index),
            "; ".join(class_names[k] for k in labels),
            class_names[best[0]],
            f"{shares[0]:.4f}",
            int(best[0] in labels) if known[number] else "",
            "; ".join(f"{class_names[k]} {probability:.4f}" for k, probability in top),
        ]

    write_text(path, csv_text([header, *map(row, range(evaluation.num_decoded))]))
