"""Where a recipe's names meet constructors, and nowhere else.

Constructors take plain arguments; these files read the config and hand them over.
"""

from videoattn.recipe.data import (
    clock_of,
    make_loader,
    make_mix,
    make_samples,
    make_to_video,
    test_frames,
    test_transform,
)
from videoattn.recipe.initial import load_initial_weights
from videoattn.recipe.model import make_model
from videoattn.recipe.training import (
    make_fine_tuning,
    make_optimisation,
    make_optimizer,
    make_precise_norms,
    make_precision,
    new_parameters,
)

__all__ = [
    "clock_of",
    "load_initial_weights",
    "make_fine_tuning",
    "make_loader",
    "make_mix",
    "make_model",
    "make_optimisation",
    "make_optimizer",
    "make_precise_norms",
    "make_precision",
    "make_samples",
    "make_to_video",
    "new_parameters",
    "test_frames",
    "test_transform",
]
