"""`videoattn predict`: names the action in videos."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from videoattn.cli.arguments import Device, Run
from videoattn.engine.evaluate import Evaluation
from videoattn.engine.parallel import init_parallel
from videoattn.recipe.console import show
from videoattn.recipe.run import load


def command(
    run: Run,
    videos: Annotated[list[str], typer.Argument(help="Video files.")],
    top: Annotated[int, typer.Option(min=1, help="Number of classes to print.")] = 5,
    device: Device = "auto",
) -> None:
    """Name the action in each video.

    Prints the most likely classes. The exit status is 1 if a video cannot be decoded.
    """
    if predict(run, videos, top=top, device=device).num_failed:
        raise typer.Exit(1)


def predict(
    run: Path, videos: Sequence[str | Path], *, top: int = 5, device: str = "auto"
) -> Evaluation:
    """Prints the `top` classes of each video, and returns the scores.

    The config of the run determines the sampled frames.

    Raises:
        ValueError: If the run cannot be loaded, or a video is a folder or an address.
    """
    paths = [_file_of(str(video)) for video in videos]
    with init_parallel(device) as parallel:
        predictor = load(run, parallel.device)
        samples, names = predictor.samples(paths), predictor.class_names
        evaluation = predictor.evaluate(samples, parallel)
        if parallel.is_main:
            for index, scores in zip(
                evaluation.indices.tolist(), evaluation.probabilities, strict=True
            ):
                show(samples.path(index))
                for score, label in zip(*scores.topk(min(top, len(names))), strict=True):
                    show(f"  {100 * score:5.1f} %  {names[label]}")
            for failure in evaluation.failures:
                show(f"failed: {failure.path}: {failure.reason}")
        return evaluation


def _file_of(video: str) -> str:
    """Returns the path of a video file.

    Raises:
        ValueError: If it is not a file.
    """
    if Path(video).is_dir():
        raise ValueError(f"{video} is a folder; name its videos, as in {video}/*.mp4")
    if re.match(r"\w[\w+.-]*://", video):
        raise ValueError(
            f"{video} is an address; need a file: save some seconds first, with "
            f"ffmpeg -i {video} -t 10 clip.mp4"
        )
    return video
