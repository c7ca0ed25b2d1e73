"""Fine-tuning: what becomes of the parameters that a network began with, beside its new ones.

What is frozen in an epoch is a pure function of the epoch: there is nothing to store.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class FineTuning:
    """backbone: names of the parameters that came with trained weights.

    For `frozen_epochs` none of them moves, and no graph is kept for them; nor do the running
    statistics of the backbone's batch norms. With `freeze_batch_norm` these norms keep statistics,
    scale and shift for the whole run, as in TSN's and TSM's fine-tuning.
    """

    backbone: frozenset[str]
    frozen_epochs: int = 0
    freeze_batch_norm: bool = False

    def is_frozen(self, epoch: int) -> bool:
        """Whether all of the backbone is, in `epoch` (from 0)."""
        return epoch < self.frozen_epochs

    def thaw(self, model: nn.Module) -> None:
        """All of the backbone has gradients."""
        for name, parameter in model.named_parameters():
            if name in self.backbone:
                parameter.requires_grad_(True)

    def freeze(self, model: nn.Module, epoch: int) -> None:
        """What `epoch` does not train has no gradients.

        Raises:
            ValueError: then nothing is left to train.
        """
        for name, parameter in model.named_parameters():
            if name in self.backbone and self.is_frozen(epoch):
                parameter.requires_grad_(False)
        if self.freeze_batch_norm:
            for norm in self._norms(model):
                norm.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                f"epoch {epoch + 1} would train nothing: the initial weights reached every "
                "parameter of it, and they are frozen; set freeze_backbone_epochs to 0"
            )

    def hold(self, model: nn.Module, epoch: int) -> None:
        """To be called after `model.train()`: the norms that `epoch` freezes go back to eval."""
        if self.freeze_batch_norm or self.is_frozen(epoch):
            for norm in self._norms(model):
                norm.eval()

    def _norms(self, model: nn.Module) -> Iterator[nn.Module]:
        for name, module in model.named_modules():
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if is_norm and f"{name}.weight" in self.backbone:
                yield module
