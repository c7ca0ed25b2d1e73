"""The arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    Path,
    typer.Argument(help="A recipe (YAML): a file, or the name of one that is installed: demo."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the recipe, as key=value: train.lr=0.02 model.name=tsn_r18"),
]
Run = Annotated[
    Path,
    typer.Argument(
        help="The folder of a run, a shared folder, a checkpoint file in one, or the name of a "
        "public model (see `videoattn list weights`)."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Costs = Annotated[
    bool,
    typer.Option(
        "--score", help="Add what hiding the top tenth of each map costs: 12 passes for each map."
    ),
]
