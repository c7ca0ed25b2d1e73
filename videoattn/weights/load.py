"""A public checkpoint becomes a network of this project, or an error that says what did not fit."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from videoattn.attention.insert import insert_attention
from videoattn.attention.non_local import NonLocal
from videoattn.models.table import make_network
from videoattn.weights.public import PUBLIC, PublicModel
from videoattn.weights.read import read_state_dict

# Batch norm's counter: it decides nothing in a network whose momentum is a number.
_COUNTER = "num_batches_tracked"


def load_public(name: str, path: Path | str) -> nn.Module:
    """`from_state_dict` for a file: .pth, .pyth, .pt or .safetensors, with or without wrappers."""
    _look_up(name)  # before a large file is read
    return from_state_dict(name, read_state_dict(path))


def from_state_dict(name: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """The public model `name` with these weights, in eval mode; its forward answers logits.

    Video models take (N, 3, T, H, W), torchvision's ResNets (N, 3, H, W), normalised as the table
    says. The number of classes is that of the weights, so fine-tuned files load too.

    Raises:
        ValueError: an unknown name, or weights of which a key or a shape does not fit.
    """
    row = _look_up(name)
    renamed = {key: row.rename(key) for key in state_dict}
    ours = {new: state_dict[key] for key, new in renamed.items() if new is not None}
    model = _build(row, num_classes=len(ours["fc.bias"]) if "fc.bias" in ours else 1)
    own = model.state_dict()

    unused = [key for key, new in renamed.items() if new not in own]
    unfilled = [key for key in own if key not in ours and not key.endswith(_COUNTER)]
    if unused or unfilled:
        raise ValueError(
            f"{name}: these weights are of another model. In them and not in it: "
            f"{_first(unused)}. In it and not in them (our names): {_first(unfilled)}"
        )
    if len(ours) < len(renamed):
        repeated = [key for key, new in renamed.items() if list(renamed.values()).count(new) > 1]
        raise ValueError(f"{name}: several keys are one parameter: {_first(repeated)}")
    shapes = [
        f"{key} {tuple(ours[new].shape)}, needs {tuple(own[new].shape)}"
        for key, new in renamed.items()
        if new is not None and ours[new].shape != own[new].shape
    ]
    if shapes:
        raise ValueError(f"{name}: shapes do not fit: {_first(shapes)}")

    model.to_empty(device="cpu")
    counters = {key: torch.tensor(0) for key in own if key.endswith(_COUNTER)}
    model.load_state_dict(counters | ours)
    return model.eval()


def _build(row: PublicModel, *, num_classes: int) -> nn.Module:
    """The network on the meta device: no memory, no random numbers drawn."""
    with torch.device("meta"):
        if row.network.startswith("resnet"):  # torchvision's image networks, which no recipe names
            model = torchvision.models.get_model(row.network, num_classes=num_classes)
        else:
            model = make_network(row.network, row.options, num_classes=num_classes)
        if row.non_local is not None:
            block = partial(NonLocal, **row.non_local)
            insert_attention(model, block, row.after, name="non_local")
    return model


def _look_up(name: str) -> PublicModel:
    if name not in PUBLIC:
        near = get_close_matches(name, PUBLIC, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{name!r} is not a public model{hint}; choose from {', '.join(PUBLIC)}")
    return PUBLIC[name]


def _first(keys: Sequence[str]) -> str:
    """The first five, and how many more."""
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(keys[:5]) + more if keys else "none"
