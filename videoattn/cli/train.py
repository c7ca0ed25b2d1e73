"""`videoattn train`: trains the network of a recipe."""

from typing import Annotated

import typer

from videoattn.cli.arguments import Device, Overrides, Recipe
from videoattn.recipe.experiment import train
from videoattn.recipe.folder import Resume


def command(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run from its last checkpoint.")
    ] = False,
    resume_if_possible: Annotated[
        bool,
        typer.Option(
            "--resume-if-possible",
            help="The same as --resume=auto: continue if there is a checkpoint, else start.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Erase the run in the folder, and start again.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train the network of a recipe.

    The run is written to runs/NAME, where NAME is the recipe's name. On several GPUs or machines:
    videoattn launch --nproc-per-node N train RECIPE ... (docs/training.md).

    After SIGTERM or SIGUSR1 the step is completed, a checkpoint is written, and the exit status is
    75. A second signal ends the process at once.
    """
    mode: Resume = "auto" if resume_if_possible and not resume else resume
    train(recipe, *(overrides or ()), resume=mode, overwrite=overwrite, device=device)
