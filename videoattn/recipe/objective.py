"""Builds the objective of a recipe: its loss, mixed clips, balanced classes and wrong labels."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from videoattn.attention.capture import Taps
from videoattn.attention.insert import dry_run
from videoattn.data.classes import LabelNoise, class_weights
from videoattn.data.lists import Samples
from videoattn.data.transforms.augment import Mix
from videoattn.engine.objective import BinaryCrossEntropy, CrossEntropy, Objective
from videoattn.engine.step import OptimSettings
from videoattn.models import info
from videoattn.recipe.config import AugmentConfig, Config, TrainConfig, section


def make_objective(train: TrainConfig, class_weights: torch.Tensor | None = None) -> Objective:
    """Returns the loss and metrics of a recipe; `class_weights` (K,) are factors of the losses."""
    if train.loss == "cross_entropy":
        return CrossEntropy(train.label_smoothing, class_weights)
    if train.label_smoothing:
        raise ValueError("train.label_smoothing: applies to train.loss=cross_entropy; remove it")
    if class_weights is not None:
        raise ValueError(
            f"train.class_balance: {train.class_balance} weighs train.loss=cross_entropy; use a "
            "number, or remove it"
        )
    return BinaryCrossEntropy()


def test_objective(train: TrainConfig) -> Objective:
    """Returns the loss and metrics of test videos: without label smoothing and class weights."""
    return make_objective(replace(train, label_smoothing=0.0))


def with_frame_losses(settings: OptimSettings, config: Config, model: nn.Module) -> OptimSettings:
    """Returns the settings, with one loss per frame if the recipe has `per_frame_loss`. A hook then
    keeps the logits (N, T, K) that the classifier returns in each forward pass."""
    if not config.train.per_frame_loss:
        return settings
    classifier = info(model).classifier
    outputs = dry_run(model, [classifier], info(model))
    shape = (1, *outputs[classifier].shape[1:]) if classifier in outputs else ()
    if len(shape) != 3 or shape[1] == 1:
        raise ValueError(
            f"train.per_frame_loss: the classifier of this network returns {shape} for a clip of 8 "
            "frames; need logits of each frame (N, T, K), as in tsn_r50 with consensus=mean; "
            "remove it"
        )
    taps = Taps()
    taps.tap_output(model.get_submodule(classifier), classifier)
    return replace(settings, frame_logits=lambda model: taps.pop(classifier))


def make_mix(augment: AugmentConfig, num_classes: int, num_clips: int = 1) -> Mix | None:
    """Returns the mixup and cutmix of a recipe, or None if it uses neither."""
    with section("augment"):
        mix = Mix(num_classes, mixup=augment.mixup, cutmix=augment.cutmix, num_clips=num_clips)
    return mix if sum(mix.fractions) else None


def sampling_exponent(config: Config, subset: Literal["train", "test"], samples: Samples) -> float:
    """Returns the exponent of class-balanced sampling, 0 to 1; 0 (no balancing) for test videos."""
    balance = config.train.class_balance
    if samples.label_sets is not None and config.train.loss != "bce":
        raise ValueError("train.loss: the videos have several labels; set train.loss=bce")
    if subset == "test" or balance == 0 or isinstance(balance, str):
        return 0.0
    if not 0 <= balance <= 1:
        raise ValueError(
            f"train.class_balance: got {balance}; need 0 (each video once) to 1 (equal classes), "
            "inverse or effective"
        )
    _check_balance(config, samples)
    return float(balance)


def make_class_weights(config: Config, samples: Samples, device: torch.device) -> Tensor | None:
    """Returns the loss weights of the classes, (K,), or None if the recipe has none."""
    method = config.train.class_balance
    if not isinstance(method, str):
        return None
    _check_balance(config, samples)
    weights = class_weights(samples.class_counts(), method)
    return torch.from_numpy(weights).float().to(device)


def _check_balance(config: Config, samples: Samples) -> None:
    """Checks that the class of each video is known before training."""
    if config.data.label_noise:
        raise ValueError(
            "train.class_balance: the true classes of wrong labels are not known; remove it, or "
            "data.label_noise"
        )
    if config.data.layout == "shards":
        raise ValueError(
            "train.class_balance: shards list their labels only inside; train from the videos, or "
            "remove it"
        )
    if not (samples.labels >= 0).all():
        raise ValueError("train.class_balance: needs one label for every video; remove it")


def make_label_noise(config: Config, samples: Samples) -> LabelNoise | None:
    """Returns the noise in the training labels of a recipe, or None if it has none."""
    with section("data"):
        noise = LabelNoise(config.data.label_noise, len(samples.class_names), config.seed)
        if noise.share and samples.label_sets is not None:
            raise ValueError("label_noise: the videos have several labels each; use 0")
    return noise if noise.share else None
