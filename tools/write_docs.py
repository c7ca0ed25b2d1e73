"""Prints the Markdown tables of the documentation, or writes them.

| command                                | table in                            |
| python tools/write_docs.py attention   | docs/attention.md                   |
| python tools/write_docs.py models      | docs/models.md, the whole page      |
| python tools/write_docs.py weights     | not part of a page; for releases    |
| python tools/write_docs.py decoders F  | docs/decoders.md, videos in folder F |
| python tools/write_docs.py evidence    | docs/evidence.md; writes it and its figures |
| python tools/write_docs.py store R N task=match | none: stores results R in docs/evidence/N.json |
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "bench")]
import evidence as results
import figures
import torch
import yaml
from common import print_table

from videoattn.cli import list as listing
from videoattn.recipe.model import make_model
from videoattn.recipe.public import public_config
from videoattn.weights.public import PUBLIC
from videoattn.weights.row import PublicModel

MODELS = """\
# Public models

Checkpoints of other projects, which load by name. `python tools/write_docs.py models` writes this
page.

    videoattn predict pytorchvideo/i3d_r50 some.mp4
    videoattn visualize pyslowfast/I3D_NLN_8x8_R50 some.mp4
    videoattn train ucf101_i3d_r50_non_local_8x8 model.weights=pyslowfast/I3D_NLN_8x8_R50

A name may replace a run in `predict`, `test`, `visualize` and `export`, and a file in `convert`. In
Python: `videoattn.load("mmaction2/tsm_r50")` and `load_public`. The network, the preprocessing and
the test views are those of the published accuracy.

The file is downloaded once, and kept as published in `$VIDEOATTN_HOME/weights`, by default
`$XDG_CACHE_HOME/videoattn/weights` or `~/.cache/videoattn/weights`. `videoattn env` prints the
folder. At each use the SHA-256 of the file is compared with the one in the table of models, or
else with that of the first download.

| variable | effect |
| --- | --- |
| `VIDEOATTN_OFFLINE=1` | nothing is downloaded |
| `VIDEOATTN_MIRROR=http://host:port` | replaces the scheme and the host of every address |
| `VIDEOATTN_NONCOMMERCIAL=1` | you accept licenses that forbid commercial use (CC-BY-NC) |

Without the last one, files under such a license are not downloaded. For a file that you have:
`videoattn convert FILE --as NAME OUT`, and then OUT in the place of the name.

MACs are multiply-adds of one view: a crop of a clip, or of 8 frames for an image network. The
accuracies are from the linked pages. None was measured here.
"""

app = typer.Typer(help="Print the Markdown tables of the documentation.", no_args_is_help=True)


@app.command()
def attention() -> None:
    """Print every attention system and its cost in an I3D-R50 (docs/attention.md)."""
    rows = listing.attention_rows()
    print_table(listing.COLUMNS, [(f"`{row.name}`", *row.cells()) for row in rows])


@app.command()
def store(
    path: Annotated[
        Path,
        typer.Argument(
            help="A run on a task, a folder of `videoattn compare`, faithfulness.json, or "
            "randomization.json."
        ),
    ],
    name: Annotated[str, typer.Argument(help="The name of the file in docs/evidence.")],
    about: Annotated[
        list[str] | None, typer.Argument(help="Facts: task=match identities=8 machine=...")
    ] = None,
) -> None:
    """Write results to docs/evidence/NAME.json."""
    facts = {
        key: yaml.safe_load(text) for key, _, text in (word.partition("=") for word in about or ())
    }
    print(results.store(name, results.record_of(path, facts)))


@app.command()
def evidence() -> None:
    """Write the tables and figures of docs/evidence.md from docs/evidence/*.json."""
    page = results.filled(results.PAGE.read_text(), pictures=figures.PICTURES)
    results.PAGE.write_text(page)


@app.command()
def models() -> None:
    """Print the page about public models (docs/models.md)."""
    print(MODELS)
    columns = ("name", "network", "data", "frames x stride", "views", "top-1", "parameters", "MACs")
    rows = [model_row(name, row) for name, row in PUBLIC.items()]
    print_table((*columns, "license", "address", "run it"), rows)
    print("## Files that are not published, and doubts\n")
    for name, row in PUBLIC.items():
        if row.accuracy is not None and row.accuracy.doubt:
            print(f"- `{name}`: its accuracy was {row.accuracy.doubt}.")
        if row.url is None:
            print(f"- `{name}`: not published. {row.file.absent}.")


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


def model_row(name: str, row: PublicModel) -> tuple[str, ...]:
    config = public_config(name)
    clip, test = config.clip, config.test
    num_classes = 1000 if row.dataset == "ImageNet-1K" else 400
    with torch.device("meta"):
        model = make_model(config.model, num_classes)
    size = (test.height or clip.height, test.width or clip.width)
    parameters, macs = listing.count(model, (1, 3, clip.num_frames, *size))
    top1 = f"[{row.accuracy.top1:g} %]({row.accuracy.source})" if row.accuracy else "not published"
    if row.accuracy and not row.accuracy.source.startswith("http"):
        top1 = f"{row.accuracy.top1:g} %"
    attention = listing.attention_of(row)
    return (
        f"`{name}`",
        f"{row.network} + {attention}" if attention else row.network,
        row.dataset,
        listing.frames_of(row),
        row.preprocessing.views,
        top1,
        f"{parameters / 1e6:.2f} M",
        f"{macs / 1e9:.1f} G",
        row.license,
        f"[{row.url.rpartition('/')[2]}]({row.url})" if row.url else "none",
        f"`videoattn predict {name} some.mp4`" if row.url else "",
    )


def _weights_row(name: str, row: PublicModel) -> tuple[str, ...]:
    accuracy, source = listing.accuracy_of(row), row.accuracy.source if row.accuracy else ""
    linked = f"[{accuracy}]({source})" if source.startswith("http") else accuracy
    file = f"[{row.url.rpartition('.')[2]}]({row.url})" if row.url else ""
    frames, attention = listing.frames_of(row), listing.attention_of(row)
    return f"`{name}`", row.network, frames, attention, linked, row.license, file


if __name__ == "__main__":
    app()
