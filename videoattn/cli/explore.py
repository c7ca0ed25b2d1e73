"""`videoattn explore`: writes a page that shows where a network looks from a clicked pixel."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from videoattn.attention.archive import MapArchive
from videoattn.cli.arguments import Device
from videoattn.cli.clip import read_clip
from videoattn.cli.recording import record_clip
from videoattn.engine.parallel import resolve_device
from videoattn.explain.explorer.pack import (
    BUDGET,
    SECONDS_PER_MEGABYTE,
    SLOW_BUDGET,
    Budget,
    write_explorer,
)
from videoattn.files import output_folder, require_suffix
from videoattn.recipe.console import show
from videoattn.recipe.folder import RUNS
from videoattn.recipe.run import Predictor, load

EXPLORER = "explorer.html"


def command(
    run: Annotated[
        Path,
        typer.Argument(
            help="The folder of a run, its name in runs, a shared folder, a checkpoint file in "
            "one, or the name of a public model (see `videoattn list weights`)."
        ),
    ],
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Video files.")],
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Another run on the same videos, in the same page. Repeatable."
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Maps whose names start with this are packed first.")
    ] = None,
    budget: Annotated[
        float, typer.Option(metavar="MB", help="Size of the maps and frames in the file.")
    ] = BUDGET,
    compact: Annotated[
        bool, typer.Option("--compact", help="Store maps in 8 bits: smaller, and less exact.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--out", help=f"The file; RUN/{EXPLORER} if not given.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Write a page that shows where a network looks from a pixel.

    The page is one HTML file that opens from disk and needs no network.
    """
    explore(
        [run, *(compare or ())],
        videos,
        output=output,
        budget=Budget(budget, layer=layer or "", compact=compact),
        device=device,
    )


def explore(
    runs: Sequence[Path],
    videos: Sequence[Path],
    *,
    output: Path | None = None,
    budget: Budget | None = None,
    truths: Sequence[str | None] | None = None,
    device: str = "auto",
) -> Path:
    """Writes an explorer page of videos and runs, and returns its path.

    Args:
        output: The file. Default: explorer.html in the first run's folder.
        budget: The limits of the file. This function sets `num_clips`.
        truths: The class of each video. Default: the name of its folder, if that is a class.

    Raises:
        ValueError: If the name of `output` does not end in .html.
    """
    require_suffix(output, ".html")
    loaded = [load(_found(run), resolve_device(device)) for run in runs]
    budget = (budget or Budget())._replace(num_clips=len(loaded) * len(videos))
    if budget.megabytes > SLOW_BUDGET:
        seconds = budget.megabytes * SECONDS_PER_MEGABYTE
        show(f"note: a page of {budget.megabytes:g} MB takes {seconds:.0f} seconds to open")
    if output is None:
        output = output_folder(loaded[0].folder) / EXPLORER
    clips = _archives(loaded, videos, truths or [None] * len(videos))
    for note in write_explorer(output, clips, budget):
        show(f"left out: {note}")
    show(output)
    return output


def _found(run: Path) -> Path:
    """Returns the path of a run: the given path, or the folder with this name in runs."""
    named = RUNS / run
    return named if not run.exists() and named.exists() else run


def _archives(
    loaded: Sequence[Predictor], videos: Sequence[Path], truths: Sequence[str | None]
) -> Iterator[MapArchive]:
    for video, truth in zip(videos, truths, strict=True):
        for predictor in loaded:
            folder = video.absolute().parent.name
            known = truth or (folder if folder in predictor.class_names else None)
            yield record_clip(predictor, video, read_clip(predictor, video), truth=known, cams=True)
