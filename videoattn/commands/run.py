"""A run's folder: what training writes, and what every other command starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from videoattn.build import make_model
from videoattn.config import Config, from_dict
from videoattn.engine import checkpoint
from videoattn.engine.train import LAST

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


def load_run(path: str | Path, device: torch.device, overrides: Sequence[str] = ()) -> LoadedRun:
    """From a run's folder (its last checkpoint), or from a .pt or .safetensors file in one.

    overrides: `key=value` words that change the checkpoint's config, such as data.root=...

    Raises:
        ValueError: no such run, or a file that is not a checkpoint of ours.
    """
    path = Path(path)
    file = path / LAST if path.is_dir() else path
    if not file.exists():
        raise ValueError(
            f"{path} is neither a run's folder with a {LAST} nor a checkpoint; "
            "videoattn train writes one to runs/<name>"
        )
    if file.suffix == ".safetensors":
        state, about = checkpoint.load_weights(file)
    else:
        payload = checkpoint.load(file)
        state, about = payload["model"], payload
    config = from_dict(about["config"], overrides)
    class_names = tuple(about["class_names"])
    model = make_model(config.model, len(class_names))
    checkpoint.restore(model, state, path=file)
    return LoadedRun(file.parent, file, config, class_names, model.to(device).eval())
