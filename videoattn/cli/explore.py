"""`videoattn explore`: writes a page that shows where a network looks from a clicked pixel."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from videoattn.attention.archive import MapArchive
from videoattn.cli.arguments import Costs, Device
from videoattn.cli.clip import read_clip, record_clip
from videoattn.engine.parallel import resolve_device
from videoattn.explain.explorer import pack
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
    ] = pack.BUDGET,
    compact: Annotated[
        bool, typer.Option("--compact", help="Store maps in 8 bits: smaller, and less exact.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--out", help=f"The file; RUN/{EXPLORER} if not given.")
    ] = None,
    score: Costs = False,
    device: Device = "auto",
) -> Path:
    """Write a page that shows where a network looks from a pixel.

    The page is one HTML file that opens from disk and needs no network.
    """
    require_suffix(output, ".html")
    loaded = [load(_found(run), resolve_device(device)) for run in (run, *(compare or ()))]
    if budget > pack.SLOW_BUDGET:
        seconds = budget * pack.SECONDS_PER_MEGABYTE
        show(f"note: a page of {budget:g} MB takes {seconds:.0f} seconds to open")
    if output is None:
        output = output_folder(loaded[0].folder) / EXPLORER
    limits = pack.Budget(budget, len(loaded) * len(videos), layer or "", compact)
    for note in pack.write_explorer(output, _archives(loaded, videos, score), limits):
        show(f"left out: {note}")
    show(output)
    return output


def _found(run: Path) -> Path:
    """Returns the path of a run: the given path, or the folder with this name in runs."""
    named = RUNS / run
    return named if not run.exists() and named.exists() else run


def _archives(
    loaded: Sequence[Predictor], videos: Sequence[Path], costs: bool
) -> Iterator[MapArchive]:
    """Yields the maps of each video and run. The folder of a video may be its true class."""
    for video in videos:
        folder = video.absolute().parent.name
        for predictor in loaded:
            truth = folder if folder in predictor.class_names else None
            clip = read_clip(predictor, video)
            yield record_clip(predictor, video, clip, truth=truth, cams=True, costs=costs)
