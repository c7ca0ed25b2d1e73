"""Helpers of the benchmarks: Markdown tables and lists of videos."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import typer

from videoattn.data.decode import Decoder
from videoattn.data.lists import VIDEO_SUFFIXES
from videoattn.errors import one_of
from videoattn.recipe.console import markdown_table

DECODERS: tuple[Decoder, ...] = ("pyav", "decord", "torchcodec")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, note: str = ""
) -> None:
    """Prints a Markdown table, and a note below it."""
    print(markdown_table(columns, rows), end="")
    print(f"\n{note}\n" if note else "")


def chosen_decoders(name: str) -> tuple[Decoder, ...]:
    """Returns the decoder with this name, or all decoders for "all".

    Raises:
        ValueError: If no decoder has this name.
    """
    name = one_of("decoder", name, ("all", *DECODERS))
    return tuple(decoder for decoder in DECODERS if name in ("all", decoder))


def videos_under(root: Path, max_bytes: int | None = None) -> list[Path]:
    """Returns the videos in a folder and its subfolders, smallest first.

    Raises:
        typer.BadParameter: If there are none of at most `max_bytes` bytes.
    """
    suffixes = VIDEO_SUFFIXES | {".gif"}
    paths = [path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file()]
    if max_bytes is not None:
        paths = [path for path in paths if path.stat().st_size <= max_bytes]
    if not paths:
        limit = "" if max_bytes is None else f" of at most {max_bytes:,} bytes"
        raise typer.BadParameter(f"{root} contains no video{limit}")
    return sorted(paths, key=lambda path: (path.stat().st_size, str(path)))
