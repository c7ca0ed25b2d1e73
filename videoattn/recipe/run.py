"""A run's folder: what training writes, and what every other command starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import CheckpointMeta
from videoattn.recipe import make_model
from videoattn.recipe.config import Config
from videoattn.recipe.load import from_stored

out = Console(highlight=False, soft_wrap=True)
"""Where commands say what came of them."""


@dataclass(frozen=True)
class LoadedRun:
    """A trained network, ready to score: eval mode, on its device."""

    folder: Path
    checkpoint: Path
    config: Config
    class_names: tuple[str, ...]
    model: nn.Module
    about: CheckpointMeta
    """As it was stored, without overrides."""


def load_run(
    path: str | Path,
    device: torch.device,
    overrides: Sequence[str] = (),
    *,
    data: Mapping[str, Any] | None = None,
) -> LoadedRun:
    """Loads the network of a run's folder (its last checkpoint), of a shared folder
    (model.safetensors and config.json), or of a .pt or .safetensors file in one.

    Nothing in the folder can run code, read other files or reach the network: its config's data
    section is not used.

    Args:
        overrides: `key=value` words that the user typed, such as data.root=...
        data: A data section from a source that the user controls.

    Raises:
        ValueError: If there is no such run, a file is not a checkpoint of ours, or its weights
            belong to another network.
    """
    file, state, about = checkpoint.read(Path(path))
    config = from_stored(about["config"], data, overrides)
    class_names = tuple(about["class_names"])
    with torch.device("meta"):  # before memory for the network is allocated
        checkpoint.check_fit(make_model(config.model, len(class_names)), state, path=file)
    model = make_model(config.model, len(class_names))
    checkpoint.restore(model, state, path=file)
    return LoadedRun(file.parent, file, config, class_names, model.to(device).eval(), about)


def load(path: str | Path, device: str = "cpu") -> nn.Module:
    """The network of a run or of a shared folder, or of a checkpoint file in one: in eval mode,
    (N, 3, T, H, W) -> logits (N, K).

    Two attributes say how to use it. `class_names` has the K names. `config` is the recipe:
    `config.clip` has T (num_frames), H and W (height, width), and the mean and std by which RGB in
    0 - 1 is normalized.

    Raises:
        ValueError: as `load_run`.
    """
    loaded = load_run(path, torch.device(device))
    vars(loaded.model).update(class_names=loaded.class_names, config=loaded.config)
    return loaded.model


def check_free(path: Path) -> None:
    """Raises: ValueError where there is something already."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists already; choose another name, or remove it")
