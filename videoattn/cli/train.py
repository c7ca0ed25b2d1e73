"""`videoattn train`."""

from collections.abc import Sequence
from pathlib import Path

from videoattn.engine.train import TrainResult
from videoattn.recipe import experiment


def train(
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    folder: Path | None = None,
) -> TrainResult:
    """Trains a recipe; see `videoattn.recipe.experiment.train`."""
    return experiment.train(
        recipe, *overrides, resume=resume, overwrite=overwrite, device=device, folder=folder
    )
