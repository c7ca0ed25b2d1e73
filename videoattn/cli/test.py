"""`videoattn test` and `videoattn predict`."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from videoattn.cli.report import write_report
from videoattn.engine.checkpoint import check_classes
from videoattn.engine.evaluate import Evaluation
from videoattn.engine.parallel import init_parallel
from videoattn.recipe.console import console as out
from videoattn.recipe.data import make_samples
from videoattn.recipe.folder import remembered_data
from videoattn.recipe.run import Predictor, load


def evaluate_run(
    run: Path, overrides: Sequence[str] = (), *, device: str = "auto", folder: Path | None = None
) -> Evaluation:
    """Scores every view of every test video; writes the report to <run>/test unless told where.

    Raises:
        ValueError: no run, no data, or data of other classes than the run's.
    """
    with init_parallel(device) as place:
        data = remembered_data(run if run.is_dir() else run.parent)
        loaded = load(run, place.device, overrides=overrides, data=data)
        if not loaded.config.data.root:
            raise ValueError(
                f"{run}: give its test videos, as in data.root=FOLDER (and data.layout=..., "
                "data.test_split=... if they are not class folders under test). Only a run that "
                "you trained in this folder finds its data again; a shared config is not trusted"
            )
        samples = make_samples(loaded.config.data, "test")
        check_classes(loaded.checkpoint, loaded.class_names, samples.class_names)
        evaluation = loaded.evaluate(samples, place)
        if place.is_main:
            folder = folder or loaded.folder / "test"
            write_report(
                evaluation,
                folder,
                class_names=loaded.class_names,
                describe=lambda index: str(samples.path(index)),
            )
            out.print(_accuracy_table(loaded, evaluation))
            for failure in evaluation.failures[:5]:
                out.print(f"failed: {failure.path}: {failure.reason}", markup=False)
            out.print(f"tables and confusion matrix: {folder}", markup=False)
        return evaluation


def predict(run: Path, videos: Sequence[Path], *, top: int = 5, device: str = "auto") -> Evaluation:
    """Names the action in each video, with the checkpoint's own sampling and views."""
    with init_parallel(device) as place:
        loaded = load(run, place.device)
        top = min(top, len(loaded.class_names))
        samples = loaded.samples(videos)
        evaluation = loaded.evaluate(samples, place)
        if place.is_main:
            for row, index in enumerate(evaluation.indices.tolist()):
                out.print(str(samples.path(index)), markup=False)
                best = evaluation.probabilities[row].topk(top)
                for share, label in zip(*best, strict=True):
                    out.print(f"  {100 * share:5.1f} %  {loaded.class_names[label]}", markup=False)
            for failure in evaluation.failures:
                out.print(f"failed: {failure.path}: {failure.reason}", markup=False)
        return evaluation


def _accuracy_table(loaded: Predictor, evaluation: Evaluation) -> Table:
    test_config = loaded.config.test
    views = f"{test_config.num_clips} x {test_config.num_crops}"
    table = Table(title=f"{loaded.checkpoint}", title_justify="left")
    for name in ("", "top-1", "top-5", "over"):
        table.add_column(name, justify="right" if name.startswith("top") else "left")
    n = evaluation.num_labelled
    over_views = f"{n * evaluation.num_views} views, each alone"
    over_videos = f"{n} videos, mean of {views} views (clips x crops)"
    for part, of in (evaluation.parts or {"": evaluation}).items():
        for kind, top1, top5, over in (
            ("clip accuracy", of.clip_accuracy, of.clip_metrics["top5"], over_views),
            ("video accuracy", of.video_accuracy, of.video_metrics["top5"], over_videos),
        ):
            name = f"{part} {kind}".strip()
            table.add_row(name, f"{100 * top1:.2f} %", f"{100 * top5:.2f} %", over)
    table.caption = (
        f"{evaluation.num_asked} videos asked for, {evaluation.num_decoded} decoded, "
        f"{evaluation.num_failed} failed"
    )
    return table
