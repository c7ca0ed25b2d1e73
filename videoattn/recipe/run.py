"""A run's folder: what training writes, and what every other command starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import CheckpointMeta
from videoattn.recipe import make_model
from videoattn.recipe.config import Config, from_dict

RUNS = Path("runs")
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


def load_run(path: str | Path, device: torch.device, overrides: Sequence[str] = ()) -> LoadedRun:
    """From a run's folder (its last checkpoint), a shared one (model.safetensors and config.json),
    or a .pt or .safetensors file in one. None of them can run code.

    overrides: `key=value` words that change the checkpoint's config, such as data.root=...

    Raises:
        ValueError: no such run, a file that is not a checkpoint of ours, weights of another model.
    """
    file, state, about = checkpoint.read(Path(path))
    config = from_dict(about["config"], overrides)
    class_names = tuple(about["class_names"])
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
