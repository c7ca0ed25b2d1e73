"""Builds the optimizer, schedule, objective and precision of a recipe."""

import json
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch
from torch import nn

from videoattn.attention.common import auxiliary_losses
from videoattn.attention.systems import EDITIONS
from videoattn.data.lists import Samples
from videoattn.data.transforms.augment import Mix
from videoattn.engine.parallel import Parallel
from videoattn.engine.plan import FineTuning, restart_schedule, split_epochs
from videoattn.engine.precise import PreciseBatchNorm, batch_norms
from videoattn.engine.precision import Precision, resolve_precision
from videoattn.engine.schedule import cosine, multistep, one_cycle
from videoattn.engine.step import OptimSettings
from videoattn.engine.trackers import MLflow, Tracker, WeightsAndBiases
from videoattn.errors import one_of
from videoattn.files import write_text
from videoattn.models.norms import sync_batch_norms
from videoattn.models.structure import unsafe_convolutions
from videoattn.recipe.config import Config, TrainConfig
from videoattn.recipe.data import make_loader
from videoattn.recipe.folder import TRACKERS, flat
from videoattn.recipe.load import to_dict
from videoattn.recipe.objective import make_objective

_TRACKERS: dict[str, type[MLflow | WeightsAndBiases]] = {
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def make_optimizer(
    model: nn.Module, config: Config, backbone: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Returns SGD with Nesterov momentum 0.9, or AdamW; on a GPU, as one fused kernel.

    Norms and biases have no weight decay. The parameters of a fine-tuned backbone, which are given
    by name, have their own learning rate.
    """
    train = config.train
    parts = {"new": 1.0, "backbone": train.backbone_lr_scale} if backbone else {"new": 1.0}
    groups = [
        {
            "params": [
                (name, parameter)
                for name, parameter in model.named_parameters()
                if (name in backbone) == (part == "backbone") and (parameter.ndim > 1) == decayed
            ],
            "weight_decay": train.weight_decay if decayed else 0.0,
            "lr_scale": scale,
            "part": part,
        }
        for part, scale in parts.items()
        for decayed in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    fused = next(model.parameters()).is_cuda
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr, fused=fused)
    return torch.optim.SGD(groups, lr=train.lr, momentum=0.9, nesterov=True, fused=fused)


def make_fine_tuning(config: Config, model: nn.Module, new: Collection[str] | None) -> FineTuning:
    """Returns the settings of fine-tuning; by default, pretrained parameters train like all others.

    Args:
        new: Names of the parameters without pretrained weights; None without pretrained weights.
    """
    train = config.train
    if not (
        train.freeze_backbone_epochs or train.freeze_batch_norm or train.backbone_lr_scale != 1.0
    ):
        return FineTuning()
    if new is None:
        raise ValueError(
            "train: freeze_backbone_epochs, freeze_batch_norm and backbone_lr_scale apply to "
            "pretrained parameters; set model.weights, or remove them"
        )
    if not 0 <= train.freeze_backbone_epochs <= train.num_epochs:
        raise ValueError(
            f"train.freeze_backbone_epochs: got {train.freeze_backbone_epochs}; need 0 to "
            f"num_epochs, which is {train.num_epochs}"
        )
    if not train.backbone_lr_scale > 0:
        raise ValueError(
            f"train.backbone_lr_scale: got {train.backbone_lr_scale}; need more than 0; to freeze "
            "the backbone, use train.freeze_backbone_epochs"
        )
    return FineTuning(
        frozenset(name for name, _ in model.named_parameters()) - set(new),
        frozen_epochs=train.freeze_backbone_epochs,
        freeze_batch_norm=train.freeze_batch_norm,
    )


def make_precise_bn(
    config: Config, model: nn.Module, parallel: Parallel, samples: Samples
) -> PreciseBatchNorm | None:
    """Returns the precise batch norm of a recipe, or None if the recipe does not use it."""
    num_clips = config.train.precise_norm_clips
    if num_clips == 0:
        return None
    problem = None
    if num_clips < 0:
        problem = f"got {num_clips}; need a number of clips, such as 1000, or 0 for none"
    elif not config.test.num_crops:
        problem = "whole frames (test.num_crops=0) differ in size; use 1 crop or more"
    elif not batch_norms(model):
        problem = f"{config.model.name} has no batch norms; remove it"
    if problem is not None:
        raise ValueError(f"train.precise_norm_clips: {problem}")
    batches = make_loader(config, "train", parallel, samples, test_views=True)
    return PreciseBatchNorm(batches, num_clips)


def synchronize_norms(config: Config, model: nn.Module, parallel: Parallel) -> None:
    """Makes batch norms use the statistics of all processes, if the recipe has `sync_norm`."""
    if not config.train.sync_norm or parallel.world_size == 1:
        return
    if config.data.on_error == "skip":  # a process without a clip makes no forward pass
        raise ValueError("train.sync_norm: skipped videos would block it; use data.on_error=raise")
    if parallel.device.type != "cuda":
        raise ValueError("train.sync_norm: torch synchronizes batch norms on GPUs only; remove it")
    sync_batch_norms(model)


def make_settings(
    config: Config,
    steps_per_epoch: int,
    precision: Precision,
    mix: Mix | None = None,
    num_stages: int = 1,
    class_weights: torch.Tensor | None = None,
) -> OptimSettings:
    """Returns the settings of the optimizer steps.

    Args:
        steps_per_epoch: Optimizer steps, after accumulation.
        mix: Mixes the clips of a batch (mixup, cutmix).
        num_stages: The number of training stages of the model.
        class_weights: Factors of the classes' losses, (K,).
    """
    train = config.train
    auxiliary_weights = _auxiliary_weights(config)
    stage_epochs = split_epochs(train.num_epochs, num_stages, train.stage_epochs)
    return OptimSettings(
        lr_at=restart_schedule(
            partial(_schedule, train, steps_per_epoch),
            [epochs * steps_per_epoch for epochs in stage_epochs],
        ),
        accumulate_steps=train.accumulate_steps,
        clip_norm=train.clip_norm,
        objective=make_objective(train, class_weights),
        precision=precision,
        auxiliary=auxiliary_losses if auxiliary_weights else None,
        auxiliary_weights=auxiliary_weights,
        mix=mix,
        compile=train.compile,
    )


def _schedule(train: TrainConfig, steps_per_epoch: int, num_steps: int) -> Callable[[int], float]:
    """Returns the function from a step of a stage to its learning rate."""
    warmup_steps = round(train.warmup_epochs * steps_per_epoch)
    schedules: dict[str, Callable[[int], float]] = {
        "cosine": partial(cosine, num_steps=num_steps, base=train.lr, warmup_steps=warmup_steps),
        "one_cycle": partial(one_cycle, num_steps=num_steps, peak=train.lr),
        "multistep": partial(
            multistep,
            milestones=[epoch * steps_per_epoch for epoch in train.milestones],
            base=train.lr,
            warmup_steps=warmup_steps,
        ),
    }
    return schedules[train.schedule]


def _auxiliary_weights(config: Config) -> dict[str, float]:
    """Returns loss weights by name: those of the recipe, else those of the attention systems."""
    names = [str(system.name) for system in config.model.attention.systems]
    table = EDITIONS[config.model.edition]
    own = {loss: weight for name in names for loss, weight in table[name].losses.items()}
    chosen = config.train.auxiliary_weights
    for loss in chosen:
        if loss not in own:
            has = f"has {', '.join(own)}" if own else "has none"
            some = ", ".join(key for key, system in table.items() if system.losses)
            raise ValueError(
                f"train.auxiliary_weights: the model has no auxiliary loss {loss!r}; attention "
                f"{'+'.join(names) or 'null'} {has}; remove it, or choose a system with losses: "
                f"{some}"
            )
    return {**own, **chosen}


def make_precision(
    config: Config, model: nn.Module, device: torch.device
) -> tuple[Precision, str | None]:
    """Returns the precision of training, and a note if it differs from the usual one.

    Networks of other libraries whose convolutions have wrong bfloat16 gradients on a CPU (see
    `layers.Conv3d`) are trained in float32 there.
    """
    name = config.train.precision
    if resolve_precision(name, device) != torch.bfloat16 or device.type != "cpu":
        return name, None
    clip = config.clip
    unsafe = unsafe_convolutions(model, torch.zeros(1, 3, clip.num_frames, clip.height, clip.width))
    if not unsafe:
        return name, None
    reason = (
        f"on this CPU bfloat16 gives wrong weight gradients in {len(unsafe)} convolutions of "
        f"{config.model.name} (kernel longer than its clip: {', '.join(unsafe[:3])})"
    )
    if name == "bfloat16":
        raise ValueError(f"train.precision: {reason}; use float32 or auto, or longer clips")
    return "float32", f"{reason}; training in float32"


def make_trackers(config: Config, folder: Path) -> list[Tracker]:
    """Returns the trackers of a recipe, and writes the identifiers of their runs to `folder`. If
    the folder has some already, the trackers continue those runs."""
    names, path = config.train.trackers, folder / TRACKERS
    for name in names:
        one_of("train.trackers", name, _TRACKERS)
    if not names:
        return []
    ids = json.loads(path.read_text()) if path.exists() else {}
    if not isinstance(ids, dict) or not all(re.fullmatch(r"[\w-]+", str(x)) for x in ids.values()):
        raise ValueError(f"{path} is damaged: need one identifier per tracker; remove it")
    values = to_dict(config)
    values["augment"]["flip_labels"] = str(values["augment"]["flip_labels"])  # its keys are classes
    settings = {key: str(value) for key, value in flat(values).items()}
    trackers = {
        name: _TRACKERS[name](config.name, settings, run_id=ids.get(name)) for name in names
    }
    write_text(path, json.dumps({name: t.run_id for name, t in trackers.items()}) + "\n")
    return list(trackers.values())
