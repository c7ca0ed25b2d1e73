"""Loads and writes public checkpoints: a table of models, parameter names, safe reading, downloads.

All names but `PUBLIC` import torch on first use, so that the table can be read quickly.
"""

from typing import TYPE_CHECKING

from videoattn.weights.public import PUBLIC

if TYPE_CHECKING:
    from videoattn.weights.load import explain, from_state_dict, load_public, to_public
    from videoattn.weights.read import read_state_dict

__all__ = ["PUBLIC", "explain", "from_state_dict", "load_public", "read_state_dict", "to_public"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = "read" if name == "read_state_dict" else "load"
    return getattr(import_module(f"{__name__}.{module}"), name)
