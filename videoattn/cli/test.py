"""`videoattn test`: measures the accuracy of a run."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from videoattn.cli.arguments import Device, Overrides, Run
from videoattn.data.lists import Samples
from videoattn.engine.checkpoint import check_classes
from videoattn.engine.evaluate import Evaluation
from videoattn.engine.parallel import init_parallel
from videoattn.files import output_folder
from videoattn.recipe.console import console, show, visible
from videoattn.recipe.data import make_samples
from videoattn.recipe.memory import remembered_data
from videoattn.recipe.run import Predictor, load

METRICS = {
    "accuracy": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean class",
    "mAP": "mAP",
    "hit1": "hit@1",
}
"""The columns of the table, by the names of metrics."""

_UNKNOWN = (
    "only runs that you trained in this folder remember their data; set data.root=FOLDER (and "
    "data.layout, data.test_split if the videos are not in class folders below test)"
)


def command(
    run: Run,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the tables; RUN/test if not given.")
    ] = None,
    errors: Annotated[
        bool,
        typer.Option(
            "--errors", help="Also write errors.html: the test videos, the most wrong first."
        ),
    ] = False,
    explorers: Annotated[
        int,
        typer.Option(
            min=0, help="With --errors: the number of videos that get an explorer page each."
        ),
    ] = 5,
    device: Device = "auto",
) -> Evaluation:
    """Measure the accuracy of a run on its test videos.

    Prints clip and video accuracy, and the mean over the classes (for several labels per video:
    mAP), and writes tables of predictions and classes.
    """
    with init_parallel(device) as parallel:
        data = remembered_data(run)
        predictor = load(run, parallel.device, overrides=overrides or (), data=data)
        if not predictor.config.data.root:
            raise ValueError(f"{run}: its test videos are unknown, because {_UNKNOWN}")
        samples = make_samples(predictor.config.data, "test")
        check_classes(predictor.checkpoint, predictor.class_names, samples.class_names)
        folder = out or predictor.folder / "test"
        if errors:
            from videoattn.cli.explore import write_errors_page  # loads the drawing code

            if samples.label_sets is not None:
                raise ValueError(
                    "errors: got several labels for a video; the page needs one class for each"
                )
        if parallel.is_main:
            _check_writable(folder)
        evaluation = predictor.evaluate(samples, parallel)
        if parallel.is_main:
            show_accuracy(predictor, evaluation)
            _write_tables(predictor, evaluation, samples, folder)
            if errors:
                show(write_errors_page(run, predictor, evaluation, samples, folder, explorers))
        return evaluation


def _write_tables(
    predictor: Predictor, evaluation: Evaluation, samples: Samples, folder: Path
) -> None:
    from videoattn.cli.report import write_report  # scikit-learn and matplotlib take seconds

    write_report(
        evaluation,
        folder,
        class_names=predictor.class_names,
        describe=lambda index: str(samples.path(index)),
        checkpoint=predictor.checkpoint.name,
    )
    show(f"tables and confusion matrix: {folder}")


def _check_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=output_folder(folder)):
            pass
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write to {folder}: {error.strerror}; choose a folder with --out"
        ) from error


def show_accuracy(predictor: Predictor, evaluation: Evaluation) -> None:
    """Prints a table of accuracies, the number of videos, and the first failures."""
    test = predictor.config.test
    table = Table(title=Text(visible(predictor.checkpoint)), title_justify="left")
    names = [name for name in METRICS if name in evaluation.video_metrics]
    table.add_column(no_wrap=True)
    for name in names:
        table.add_column(METRICS[name], justify="right", no_wrap=True)
    table.add_column("over")
    score = "accuracy" if "accuracy" in names else "scores"
    n = evaluation.num_labeled
    over_views = f"{n * evaluation.num_views} views, each alone"
    over_videos = f"{n} videos, mean of {test.num_clips} x {test.num_crops} views (clips x crops)"
    for part, scores in (evaluation.parts or {"": evaluation}).items():
        for kind, metrics, over in (
            (f"clip {score}", scores.clip_metrics, over_views),
            (f"video {score}", scores.video_metrics, over_videos),
        ):
            numbers = (f"{100 * metrics[name]:.2f} %" if name in metrics else "" for name in names)
            table.add_row(f"{part} {kind}".strip(), *numbers, over)
    table.caption = (
        f"{evaluation.num_videos} videos, {evaluation.num_decoded} decoded, "
        f"{evaluation.num_failed} failed"
    )
    console.print(table)
    for failure in evaluation.failures[:5]:
        show(f"failed: {failure.path}: {failure.reason}")
