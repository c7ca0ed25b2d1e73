"""Converts public checkpoints to networks of this project, and back."""

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from videoattn.attention.blocks.non_local import NonLocal
from videoattn.attention.insert import insert_attention
from videoattn.errors import first_few, one_of
from videoattn.models import info
from videoattn.models.libraries import torchvision_model
from videoattn.models.structure import NoInit
from videoattn.models.table import make_network
from videoattn.weights.download import fetch
from videoattn.weights.keys import Layout
from videoattn.weights.public import PUBLIC
from videoattn.weights.read import read_state_dict
from videoattn.weights.row import PublicModel

# The counter of batch norm. It has no effect if the momentum is a number.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Explanation:
    """How `from_state_dict` uses every key of a file.

    Attributes:
        used: Their key -> our key.
        ignored: Their key -> the reason why it does not belong to the network.
        filled: Our key that the file lacks -> a description of its value.
    """

    used: Mapping[str, str]
    ignored: Mapping[str, str]
    filled: Mapping[str, str]


def load_public(name: str, path: Path | str | None = None) -> nn.Module:
    """Returns the public model `name`, loaded from a published file; see `from_state_dict`.

    Args:
        path: A .pth, .pyth, .pt, .safetensors or Caffe2 .pkl file, as published. Default: the file
            at the model's address, which is downloaded once (see `download`).

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: As in `from_state_dict`, or if the file cannot be downloaded or is damaged.
    """
    _look_up(name)  # before reading a large file
    return from_state_dict(name, read_state_dict(fetch(name) if path is None else path))


def from_state_dict(name: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Returns the public model `name` with the given weights, in eval mode.

    Video models take (N, 3, T, H, W), torchvision's ResNets (N, 3, H, W), normalized with the mean
    and standard deviation of the table, and return logits. The weights determine the number of
    classes, so that fine-tuned files load too.

    Raises:
        ValueError: If the name is unknown, or a key or shape does not fit. The message names the
            public models that the weights fit, if any.
    """
    explanation = explain(name, state_dict)
    ours = {new: state_dict[key] for key, new in explanation.used.items()}
    model = copy.deepcopy(_build(name, _num_classes(name, ours)))
    own = model.state_dict()
    ours = {key: value.reshape(own[key].shape) for key, value in ours.items()}
    for key in explanation.filled:
        ours[key] = _fill(model, key)
    model.to_empty(device="cpu")
    model.load_state_dict(ours)
    return model.eval()


def to_public(name: str, model: nn.Module) -> dict[str, Tensor]:
    """Returns a network's weights under the public names of `name`; inverts `from_state_dict`.

    Raises:
        ValueError: If the name is unknown, or the network's parameters differ from the public
            model's.
    """
    row = _look_up(name)
    state = model.state_dict()
    own = _shapes(name, _num_classes(name, state))
    other = [key for key in (*state, *own) if key not in state or key not in own]
    other += [key for key in own if key in state and state[key].shape != own[key]]
    if other:
        raise ValueError(
            f"{name}: the network differs from this public model in {first_few(other)} (missing "
            "on one side, or of another shape); choose the name of its own public model"
        )
    layout = row.layouts[0]
    public = {
        layout.theirs(key): value.reshape(layout.shape_there(key, value.shape))
        for key, value in state.items()
    }
    # Caffe2 has no counters. Every other parameter of a public model has a public name.
    return {key: value for key, value in public.items() if key is not None}


def explain(name: str, state_dict: Mapping[str, Tensor]) -> Explanation:
    """Returns how `from_state_dict` uses each key, and raises the same errors."""
    _look_up(name)
    explanation, problem = _match(name, state_dict)
    if problem:
        raise ValueError(f"{name}: {problem}{_hint(name, state_dict)}")
    return explanation


def _match(name: str, state_dict: Mapping[str, Tensor]) -> tuple[Explanation, str | None]:
    """Returns how every key is used, and the first problem, or None."""
    row = PUBLIC[name]
    layout = max(row.layouts, key=lambda one: _share(one, state_dict))
    ignored = {key: why for key in state_dict if (why := layout.reason_to_ignore(key))}
    renamed = {key: layout.ours(key) for key in state_dict if key not in ignored}
    used = {key: new for key, new in renamed.items() if new is not None}
    ours = {new: state_dict[key] for key, new in used.items()}
    own = _shapes(name, _num_classes(name, ours))
    filled = _filled(own, ours, layout)
    explanation = Explanation(used, ignored, filled)

    unused = [key for key, new in renamed.items() if new not in own]
    lacking = [key for key in own if key not in ours and key not in filled]
    if unused or lacking:
        return explanation, (
            f"these weights belong to another model. Unknown keys: {first_few(unused)}. "
            f"Missing parameters (our names): {first_few(lacking)}"
        )
    if len(ours) < len(used):
        repeated = [key for key, new in used.items() if list(used.values()).count(new) > 1]
        return explanation, f"several keys name one parameter: {first_few(repeated)}"
    misshapen = [
        f"{key} {tuple(ours[new].shape)}, needs {needed}"
        for key, new in used.items()
        if ours[new].shape != (needed := layout.shape_there(new, own[new]))
    ]
    return explanation, f"shapes do not fit: {first_few(misshapen)}" if misshapen else None


def _filled(own: Iterable[str], ours: Mapping[str, Tensor], layout: Layout) -> dict[str, str]:
    """Returns the parameters that the file lacks and need not have, with their values in words."""
    filled = {}
    for key in own:
        norm, _, end = key.rpartition(".")
        if key in ours:
            continue
        if end == _COUNTER:
            filled[key] = "0, which has no effect"
        elif (
            layout.frozen_norms
            and end in ("running_mean", "running_var")
            and f"{norm}.weight" in ours
            and not {f"{norm}.running_mean", f"{norm}.running_var"} & ours.keys()
        ):
            filled[key] = "0" if end == "running_mean" else "1 - epsilon"
    return filled


def _fill(model: nn.Module, key: str) -> Tensor:
    """Returns the value of a missing parameter. A frozen norm stores only w and b of y = w x + b. A
    batch norm computes the same with mean 0 and variance 1 - epsilon."""
    norm, _, end = key.rpartition(".")
    if end == _COUNTER:
        return torch.tensor(0)
    layer = model.get_submodule(norm)
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    return torch.full((layer.num_features,), 0.0 if end == "running_mean" else 1 - layer.eps)


def _hint(name: str, state_dict: Mapping[str, Tensor]) -> str:
    """Returns a sentence that names the public models that the weights may belong to."""
    layouts = {one.title: one for row in PUBLIC.values() for one in row.layouts}
    best = max(layouts.values(), key=lambda one: _share(one, state_dict))
    share = _share(best, state_dict)
    if share < 0.5:
        return ". No known project names its parameters like this"
    names = [one for one, row in PUBLIC.items() if best in row.layouts]
    ours = [best.ours(key) or "" for key in state_dict]
    blocks = {key.split("_non_local")[0] for key in ours if "_non_local" in key}
    likely = [one for one in names if share == 1 and blocks == set(PUBLIC[one].after)]
    fitting = [one for one in likely if _match(one, state_dict)[1] is None]
    if best in PUBLIC[name].layouts:
        return f". They fit {', '.join(fitting)}" if fitting else ""
    return f". These keys are {best.title}'s; try {', '.join(fitting or names)}"


def _share(layout: Layout, keys: Collection[str]) -> float:
    """Returns the fraction of the keys that the layout knows."""
    known = sum(layout.ours(k) is not None or bool(layout.reason_to_ignore(k)) for k in keys)
    return known / max(len(keys), 1)


def classifier_of(name: str) -> str:
    """Returns our name for the public model's classifier."""
    return info(_build(name, 1)).classifier


def _num_classes(name: str, ours: Mapping[str, Tensor]) -> int:
    bias = ours.get(f"{classifier_of(name)}.bias")
    return len(bias) if bias is not None and bias.ndim else 1


def _shapes(name: str, num_classes: int) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in _build(name, num_classes).state_dict().items()}


@cache
def _build(name: str, num_classes: int) -> nn.Module:
    """Returns the network on the meta device, without memory. It is cached: do not change it."""
    row = PUBLIC[name]
    with torch.device("meta"), NoInit():
        if row.network.startswith("resnet"):  # an image network of torchvision
            model = torchvision_model(row.network, num_classes=num_classes)
        else:
            model = make_network(row.network, row.options, num_classes=num_classes)
        if row.non_local is not None:
            block = partial(NonLocal, **row.non_local)
            insert_attention(model, block, row.after, name="non_local")
    return model


def _look_up(name: str) -> PublicModel:
    return PUBLIC[one_of("public model", name, PUBLIC)]
