"""Public checkpoints: a table of models, a key map per ecosystem, safe reading."""

from videoattn.weights.load import from_state_dict, load_public
from videoattn.weights.public import PUBLIC
from videoattn.weights.read import read_state_dict

__all__ = ["PUBLIC", "from_state_dict", "load_public", "read_state_dict"]
