"""Balances the classes of a recipe, and checks that its loss fits the labels."""

import torch
from torch import Tensor

from videoattn.data.balance import class_weights
from videoattn.data.lists import Samples
from videoattn.recipe.config import Config
from videoattn.recipe.samples import Subset


def sampling_exponent(config: Config, subset: Subset, samples: Samples) -> float:
    """Returns the exponent of balanced sampling; 0 for none, and for test videos.

    Raises:
        ValueError: If it is out of range or needs one label per video, or if the loss does.
    """
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
    """Returns the loss weights of the classes, (K,), or None if the recipe has none.

    Raises:
        ValueError: If videos do not have one known label each.
    """
    method = config.train.class_balance
    if not isinstance(method, str):
        return None
    _check_balance(config, samples)
    weights = class_weights(samples.class_counts(), method)
    return torch.from_numpy(weights).float().to(device)


def _check_balance(config: Config, samples: Samples) -> None:
    """Checks that the class of each video is known before training."""
    if config.data.layout == "shards":
        raise ValueError(
            "train.class_balance: shards list their labels only inside; train from the videos, or "
            "remove it"
        )
    if not (samples.labels >= 0).all():
        raise ValueError("train.class_balance: needs one label for every video; remove it")
