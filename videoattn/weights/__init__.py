"""Loads and writes public checkpoints: a table of models, parameter names, safe reading."""

from videoattn.weights.load import explain, from_state_dict, load_public, to_public
from videoattn.weights.public import PUBLIC
from videoattn.weights.read import read_state_dict

__all__ = ["PUBLIC", "explain", "from_state_dict", "load_public", "read_state_dict", "to_public"]
