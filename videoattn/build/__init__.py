"""Where a recipe's names meet constructors, and nowhere else.

Constructors take plain arguments; these files read the config and hand them over.
"""

from videoattn.build.data import (
    clock_of,
    make_loader,
    make_mix,
    make_samples,
    make_to_video,
    test_frames,
    test_transform,
)
from videoattn.build.initial import load_initial_weights
from videoattn.build.models import make_model
from videoattn.build.training import (
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
