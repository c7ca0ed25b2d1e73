"""Loads pretrained weights into a network: `model.weights` of a recipe."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.attention.blocks.hard_crop import HardCrop
from videoattn.attention.capture import capture
from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import Checkpoint
from videoattn.errors import did_you_mean, first_few
from videoattn.models import info
from videoattn.models.inflate import load_inflated
from videoattn.recipe.config import ClipConfig, Config
from videoattn.types import Video
from videoattn.weights import PUBLIC, load_public
from videoattn.weights.download import DownloadError


def initialize(
    model: nn.Module, config: Config, previous: Checkpoint | None
) -> tuple[list[str] | None, list[str]]:
    """Loads pretrained weights, unless the run is resumed. Returns the names of the parameters that
    are not pretrained (None if the recipe has no weights), and notes for the user."""
    if config.model.weights is None:
        return None, []
    if previous is not None:
        return new_parameters(previous), []
    return load_initial_weights(model, config)


def new_parameters(previous: Checkpoint) -> list[str]:
    """Returns the names of the parameters that were not pretrained when a run began."""
    groups: Any = previous["optimizer"]["param_groups"]
    return [name for group in groups if group.get("part") == "new" for name in group["param_names"]]


def load_initial_weights(model: nn.Module, config: Config) -> tuple[list[str], list[str]]:
    """Loads the weights of `model.weights` into the model.

    `model.weights` is a run, a shared folder or a checkpoint; a public name, such as
    `torchvision/resnet50`, whose file is downloaded; or a public name with its file, such as
    `pyslowfast/I3D_8x8_R50:FILE`. For a 3-D network, 2-D weights are inflated by the method
    `model.inflate`. A classifier for other classes, and attention blocks that are missing in the
    weights, keep their initialization.

    Returns:
        The names of the parameters that the weights lack, and notes about them.
    """
    source = config.model.weights
    assert source is not None
    state = _read(source)
    networks = {"": model}
    if isinstance(model, HardCrop) and "fusion.weight" not in state:
        # Both branches start from the same weights.
        networks = {"global_branch.": model.global_branch, "local_branch.": model.local_branch}
    fresh: list[str] = []
    notes: list[str] = []
    reached: set[str] = set()
    for prefix, network in networks.items():
        head = info(network).classifier
        missing = load_inflated(network, state, method=config.model.inflate, head=f"{head}.")
        reached |= {prefix + name for name in network.state_dict() if name not in missing}
        for name in _outermost(network, missing):
            if not f"{head}.".startswith(f"{name}."):
                fresh.append(prefix + name)
                continue
            theirs, ours = state.get(f"{head}.bias"), network.state_dict().get(f"{head}.bias")
            reason = "no such classifier"
            if theirs is not None and ours is not None:
                reason = f"{len(theirs)} classes, the data {len(ours)}"
            notes.append(f"{source} has {reason}: {prefix}{head} starts from random weights")
    same = _identities(model, fresh, config.clip) if fresh else []
    others = [name for name in fresh if name not in same]
    for names, how in ((same, "start as the identity"), (others, "start from random weights")):
        if names:
            notes.append(f"{source} has no {first_few(names)}: they {how}")
    return [name for name, _ in model.named_parameters() if name not in reached], notes


def _read(source: str) -> dict[str, Tensor]:
    name, _, file = source.partition(":")
    if Path(source).exists():
        return checkpoint.read(Path(source))[1]
    if name not in PUBLIC:
        raise ValueError(
            f"model.weights: {source!r} is not a run, a shared folder, a checkpoint, or the name "
            f"of a public model{did_you_mean(name, PUBLIC)}, NAME or NAME:FILE; names are "
            f"{', '.join(PUBLIC)}"
        )
    try:
        return load_public(name, os.path.expanduser(file) if file else None).state_dict()
    except DownloadError as error:
        raise ValueError(
            f"model.weights: {error.problem}; if you have the file, use {name}:FILE"
        ) from error


def _outermost(model: nn.Module, missing: Sequence[str]) -> list[str]:
    """Returns the outermost modules whose parameters are all missing, and other missing names."""
    counter = "num_batches_tracked"  # of batch norms; ignored
    lacking, found = set(missing), dict[str, None]()
    kept = [key for key in model.state_dict() if key not in lacking and not key.endswith(counter)]
    for name in missing:
        if name.endswith(counter):
            continue
        parts = name.split(".")
        outer = (".".join(parts[:end]) for end in range(1, len(parts)))
        whole = (one for one in outer if not any(key.startswith(f"{one}.") for key in kept))
        found[next(whole, name)] = None
    return list(found)


def _identities(model: nn.Module, names: Sequence[str], clip: ClipConfig) -> list[str]:
    """Returns the names of the modules whose output equals their input, on a random clip."""
    generator = torch.Generator().manual_seed(0)  # leaves the run's random state unchanged
    video = torch.randn(1, 3, clip.num_frames, clip.height, clip.width, generator=generator)
    was_training = model.training
    try:
        changes = relative_changes(model.eval(), names, video.to(next(model.parameters()).device))
    finally:
        model.train(was_training)
    return [name for name, change in changes.items() if change == 0]


def relative_changes(model: nn.Module, names: Sequence[str], video: Video) -> dict[str, float]:
    """Returns |output - input| / |input| of the modules whose output has the shape of their input,
    by name. Names that are not modules are left out."""
    modules = dict(model.named_modules())
    names = [name for name in names if name in modules]
    with (
        torch.no_grad(),
        capture(model, names, inputs=True, copy=True) as inputs,
        capture(model, names, copy=True) as outputs,
    ):
        model(video)
    return {
        name: float((outputs[name] - inputs[name]).norm() / inputs[name].norm().clamp(min=1e-12))
        for name in names
        if name in inputs and name in outputs and inputs[name].shape == outputs[name].shape
    }
