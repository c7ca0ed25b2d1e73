"""`videoattn train`: trains the network of a recipe."""

from typing import Annotated

import typer

from videoattn.cli.arguments import Device, Overrides, Recipe
from videoattn.recipe.experiment import train


def command(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run from its last checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Erase the run in the folder, and start again.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train the network of a recipe.

    The run is written to runs/NAME, where NAME is the recipe's name. On several GPUs or machines:
    torchrun --nproc-per-node N -m videoattn train RECIPE ...
    """
    train(recipe, *(overrides or ()), resume=resume, overwrite=overwrite, device=device)
