"""Freezes pretrained parameters in fine-tuning.

The frozen set is a pure function of the epoch, so checkpoints do not store it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class FineTuning:
    """Freezes the backbone for some epochs, or its batch norms for the whole run.

    Args:
        backbone: Names of the pretrained parameters.
        frozen_epochs: For this many epochs the backbone has no gradients, and the running
            statistics of its batch norms do not change.
        freeze_batch_norm: Whether its batch norms keep statistics, scale and shift for the whole
            run, as TSN and TSM do.
    """

    backbone: frozenset[str] = frozenset()
    frozen_epochs: int = 0
    freeze_batch_norm: bool = False

    def is_frozen(self, epoch: int) -> bool:
        """Returns whether the whole backbone is frozen in `epoch` (from 0)."""
        return epoch < self.frozen_epochs

    def unfreeze(self, model: nn.Module) -> None:
        """Enables gradients for the backbone."""
        for name, parameter in model.named_parameters():
            if name in self.backbone:
                parameter.requires_grad_(True)

    def freeze(self, model: nn.Module, epoch: int) -> None:
        """Disables gradients for the parameters that `epoch` does not train.

        Raises:
            ValueError: If no trainable parameter remains.
        """
        for name, parameter in model.named_parameters():
            if name in self.backbone and self.is_frozen(epoch):
                parameter.requires_grad_(False)
        if self.freeze_batch_norm:
            for norm in self._norms(model):
                norm.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                f"epoch {epoch + 1} would train nothing, because every parameter "
                "is pretrained; set frozen_epochs to 0"
            )

    def set_train_mode(self, model: nn.Module, epoch: int) -> None:
        """Puts the batch norms that `epoch` freezes into evaluation mode; call after
        `model.train()`."""
        if self.freeze_batch_norm or self.is_frozen(epoch):
            for norm in self._norms(model):
                norm.eval()

    def _norms(self, model: nn.Module) -> Iterator[nn.Module]:
        for name, module in model.named_modules():
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if is_norm and f"{name}.weight" in self.backbone:
                yield module
