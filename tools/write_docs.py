"""Prints the Markdown tables of the documentation.

| command                                | table in                            |
| python tools/write_docs.py attention   | docs/attention.md                   |
| python tools/write_docs.py weights     | not part of a page; for releases    |
| python tools/write_docs.py decoders F  | docs/decoders.md, videos in folder F |
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.append(str(Path(__file__).parent / "bench"))
from common import print_table

from videoattn.cli import list as listing
from videoattn.weights.public import PUBLIC
from videoattn.weights.row import PublicModel

app = typer.Typer(help="Print the Markdown tables of the documentation.", no_args_is_help=True)


@app.command()
def attention() -> None:
    """Print every attention system and its cost in an I3D-R50 (docs/attention.md)."""
    rows = listing.attention_rows()
    print_table(listing.COLUMNS, [(f"`{row.name}`", *row.cells()) for row in rows])


@app.command()
def weights() -> None:
    """Print every public model, its accuracy and its file."""
    columns = ("name", "network", "frames x stride", "attention", "top-1 (views)")
    rows = [_weights_row(name, row) for name, row in PUBLIC.items()]
    print_table((*columns, "license", "file"), rows)


@app.command()
def decoders(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A folder of videos.")
    ],
) -> None:
    """Print the result of each decoder on every frame of every video (docs/decoders.md)."""
    from decoders import COLUMNS, compare

    print_table(COLUMNS, compare(folder))


def _weights_row(name: str, row: PublicModel) -> tuple[str, ...]:
    accuracy, source = listing.accuracy_of(row), row.accuracy.source if row.accuracy else ""
    linked = f"[{accuracy}]({source})" if source.startswith("http") else accuracy
    file = f"[{row.url.rpartition('.')[2]}]({row.url})" if row.url else ""
    frames, attention = listing.frames_of(row), listing.attention_of(row)
    return f"`{name}`", row.network, frames, attention, linked, row.license, file


if __name__ == "__main__":
    app()
