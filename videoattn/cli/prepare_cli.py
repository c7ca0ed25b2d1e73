"""The words of `videoattn prepare`; torch is imported when one of them runs."""

import os
from pathlib import Path
from typing import Annotated

import typer

prepare = typer.Typer(help="Look at a data set's files; copy them so that they load faster.")

What = Annotated[
    Path, typer.Argument(metavar="RECIPE_OR_FOLDER", help="A YAML file, or a folder of videos.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the recipe, as key=value: data.root=videos")
]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]
Seconds = Annotated[float, typer.Option(help="A file that takes longer is given up.")]

CORES = os.cpu_count() or 1


@prepare.command("verify")
def verify(
    what: What,
    overrides: Overrides = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="For the lists; runs/verify-NAME.")
    ] = None,
    workers: Workers = CORES,
    seconds: Seconds = 60.0,
) -> None:
    """Decode every frame of every file; list the clean and the broken. Fails if there are some.

    A run that was stopped goes on where it was, and a later one looks at what changed.
    """
    from videoattn.cli.prepare import run_verify

    if run_verify(what, overrides or (), num_workers=workers, seconds=seconds, folder=folder):
        raise typer.Exit(1)


@prepare.command("index")
def index(
    folder: Annotated[Path, typer.Argument(help="A data set's root; the index is written there.")],
    workers: Workers = CORES,
    seconds: Seconds = 60.0,
) -> None:
    """Write down frames, rate, size and key frames of each video, so that training looks at none.

    Again after files were added, changed or removed: only those are looked at.
    """
    from videoattn.cli.prepare import run_index

    run_index(folder, num_workers=workers, seconds=seconds)


@prepare.command("reencode")
def reencode(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder of videos.")],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="For the copies.")],
    short_side: Annotated[int, typer.Option(help="Pixels; an even number.")] = 128,
    key_frame_interval: Annotated[int, typer.Option(help="Frames, at most.")] = 8,
    workers: Workers = CORES,
    seconds: Seconds = 600.0,
) -> None:
    """Copy videos as small H.264 files that are quick to seek in, under the same names (.mp4).

    Every frame keeps its time; sound is left out. Lists (.txt, .csv, .json) are copied too. A run
    that was stopped goes on where it was. Fails if some videos are broken.
    """
    from videoattn.cli.prepare_copies import run_reencode

    if run_reencode(
        source, folder, short_side=short_side, key_frame_interval=key_frame_interval,
        num_workers=workers, seconds=seconds,
    ):  # fmt: skip
        raise typer.Exit(1)


@prepare.command("shards")
def shards(
    what: What,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    overrides: Overrides = None,
    max_mb: Annotated[float, typer.Option(help="Of a shard.")] = 512.0,
    workers: Workers = CORES,
    seconds: Seconds = 60.0,
) -> None:
    """Pack videos into tar files (WebDataset's), from which data.layout=shards streams."""
    from videoattn.cli.prepare_copies import run_shards

    run_shards(what, folder, overrides or (), max_mb=max_mb, num_workers=workers, seconds=seconds)
