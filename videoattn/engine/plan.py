"""Selects the parameters that each epoch trains (stages, a frozen backbone), and when to validate.

Selections are pure functions of the epoch, so a checkpoint stores none of them.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple, Protocol, runtime_checkable

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from videoattn.engine.batches import Batches
from videoattn.engine.objective import CrossEntropy, Objective
from videoattn.engine.precise import PreciseBatchNorm
from videoattn.engine.state import TrainState


@runtime_checkable
class Staged(Protocol):
    """A network that is trained in stages, one set of modules in each.

    `set_stage(i)`, i from 0, sets `requires_grad` only for the parameters of stage i. In training
    mode all other modules stay in evaluation mode, and `forward` returns logits to which every
    parameter of the stage contributes. If the network has an attribute `keeps_best` that is True,
    each stage starts from the best epoch of the previous stage, according to a validation of that
    stage's classifier (see `HasParts`).
    """

    num_stages: int

    def set_stage(self, stage: int) -> None: ...


def num_stages(model: nn.Module) -> int:
    """Returns the number of training stages of a network; 1 if it is not `Staged`."""
    return model.num_stages if isinstance(model, Staged) else 1


def split_epochs(num_epochs: int, stages: int, given: Sequence[int] = ()) -> tuple[int, ...]:
    """Returns the number of epochs of each stage: the given numbers, or equal shares.

    Raises:
        ValueError: If a stage gets no epoch, or `given` has a wrong length or sum.
    """
    if not given:
        if num_epochs < stages:
            raise ValueError(
                f"num_epochs: got {num_epochs}; need at least {stages}, one for each stage of the "
                "network"
            )
        return tuple(num_epochs // stages + (i < num_epochs % stages) for i in range(stages))
    if stages == 1 and len(given) > 1:
        raise ValueError(
            f"stage_epochs: got {list(given)}; this network is not trained in stages: leave it out"
        )
    if len(given) != stages or min(given) < 1 or sum(given) != num_epochs:
        raise ValueError(
            f"stage_epochs: got {list(given)}; need one number, 1 or more, for each of {stages} "
            f"stages, with the sum {num_epochs} (num_epochs); leave it out for equal shares"
        )
    return tuple(given)


def stage_of(step: int, lengths: Sequence[int]) -> int:
    """Returns the stage (from 0) of a step or an epoch, given the length of each stage."""
    return min(bisect_right(list(accumulate(lengths)), step), len(lengths) - 1)


def restart_schedule(
    schedule: Callable[[int], Callable[[int], float]], lengths: Sequence[int]
) -> Callable[[int], float]:
    """Returns a schedule (step -> learning rate) that restarts in each stage; `schedule(n)` returns
    the schedule of a stage of n steps."""
    schedules = [schedule(length) for length in lengths]

    def lr_at(step: int) -> float:
        stage = stage_of(step, lengths)
        return schedules[stage](step - sum(lengths[:stage]))

    return lr_at


@dataclass(frozen=True)
class FineTuning:
    """Freezes the backbone for some epochs, or its batch norms for the whole run.

    Args:
        backbone: Names of the pretrained parameters.
        frozen_epochs: The number of epochs at the start of the run in which the backbone has no
            gradients, and the running statistics of its batch norms do not change.
        freeze_batch_norm: Whether the backbone's batch norms keep their statistics, scale and shift
            for the whole run, as TSN and TSM do.
    """

    backbone: frozenset[str] = frozenset()
    frozen_epochs: int = 0
    freeze_batch_norm: bool = False

    def norms(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yields the batch norms of the backbone."""
        for name, module in model.named_modules():
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if is_norm and f"{name}.weight" in self.backbone:
                yield module


@dataclass(frozen=True)
class Validation:
    """The settings of validations, which run every `every_epochs` epochs and after the last epoch.

    Args:
        max_views: The largest number of views per forward pass.
        objective: The loss and the metrics, without the label smoothing of training.
        patience: Number of consecutive validations without improvement after which training ends;
            None disables it.
    """

    batches: Batches
    every_epochs: int = 1
    max_views: int = 16
    objective: Objective = field(default_factory=CrossEntropy)
    patience: int | None = None

    def ends_run(self, state: TrainState) -> bool:
        """Returns whether training ends before the next epoch because of `patience`."""
        if self.patience is None or state.best_epoch is None:
            return False
        return state.epoch - state.best_epoch >= self.patience * self.every_epochs


class Phase(NamedTuple):
    """The stage of an epoch, and whether its backbone is frozen."""

    stage: int  # from 0
    is_frozen: bool  # whether the backbone is frozen


@dataclass(frozen=True)
class EpochPlan:
    """The epochs of a run, and the parameters that they train.

    Args:
        stage_epochs: The epochs of each stage of a network that is trained in stages; equal shares
            if empty.
        fine_tuning: Freezes pretrained parameters.
        precise_bn: Recomputes batch-norm statistics before a validation and at the end of a stage.
        ema_decay: Decay of a moving average of the weights and buffers, which is validated and
            saved: after each step, average = decay · average + (1 - decay) · weights.
    """

    num_epochs: int
    stage_epochs: tuple[int, ...] = ()
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    precise_bn: PreciseBatchNorm | None = None
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema: got {self.ema_decay}; need a decay above 0 and below 1")
        if self.ema_decay is not None and self.precise_bn is not None:
            raise ValueError("ema: averages batch-norm statistics, too; remove precise_norm_clips")
        if self.num_epochs < 1:
            raise ValueError(f"num_epochs: got {self.num_epochs}; need at least 1")

    def fitted_to(self, model: nn.Module) -> "EpochPlan":
        """Returns the plan with the epochs of each stage of `model`.

        Raises:
            ValueError: If `stage_epochs` or `ema_decay` does not fit the model.
        """
        lengths = split_epochs(self.num_epochs, num_stages(model), self.stage_epochs)
        if self.ema_decay is not None and len(lengths) > 1:
            raise ValueError("ema: this network is trained in stages; remove ema")
        return replace(self, stage_epochs=lengths)

    def average_of(self, model: nn.Module) -> AveragedModel | None:
        """Returns the moving average of a model's weights, or None without `ema_decay`."""
        if self.ema_decay is None:
            return None
        return AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(self.ema_decay), use_buffers=True
        )

    def phase(self, epoch: int) -> Phase:
        """Returns the phase of an epoch (from 0)."""
        is_frozen = epoch < self.fine_tuning.frozen_epochs
        return Phase(stage_of(epoch, self.stage_epochs), is_frozen)

    def ends_stage(self, epoch: int) -> bool:
        """Returns whether a stage ends after `epoch` (from 0)."""
        return epoch + 1 in accumulate(self.stage_epochs)

    def keeps_best(self, model: nn.Module) -> bool:
        """Returns whether each stage starts from the best weights of the previous one."""
        return isinstance(model, Staged) and bool(getattr(model, "keeps_best", False))

    def hands_over_best(self, model: nn.Module, epoch: int) -> bool:
        """Returns whether a stage ends after `epoch`, and the next starts from its best weights."""
        more = epoch + 1 < self.num_epochs
        return self.keeps_best(model) and more and self.ends_stage(epoch)

    def is_due(self, validation: Validation | None, model: nn.Module, epoch: int) -> bool:
        """Returns whether a validation follows `epoch` (from 0)."""
        if validation is None:
            return False
        is_regular = (epoch + 1) % validation.every_epochs == 0 or epoch + 1 == self.num_epochs
        return is_regular or self.hands_over_best(model, epoch)

    def set_trainable(self, model: nn.Module, epoch: int) -> None:
        """Sets `requires_grad` of all parameters for `epoch`.

        Raises:
            ValueError: If no trainable parameter remains.
        """
        stage, is_frozen = self.phase(epoch)
        if isinstance(model, Staged):
            model.set_stage(stage)
        for name, parameter in model.named_parameters():
            is_own = name in self.fine_tuning.backbone
            if is_own and (is_frozen or not isinstance(model, Staged)):
                parameter.requires_grad_(not is_frozen)
        if self.fine_tuning.freeze_batch_norm:
            for norm in self.fine_tuning.norms(model):
                norm.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                f"epoch {epoch + 1} would train nothing, because every parameter "
                "is pretrained; set frozen_epochs to 0"
            )

    def set_train_mode(self, model: nn.Module, epoch: int) -> None:
        """Puts the model into training mode, except for frozen batch norms."""
        model.train()
        if self.fine_tuning.freeze_batch_norm or self.phase(epoch).is_frozen:
            for norm in self.fine_tuning.norms(model):
                norm.eval()

    def announce(self, epoch: int, previous: Phase | None) -> list[str]:
        """Returns lines for the user about changes at the start of `epoch`."""
        stage, is_frozen = self.phase(epoch)
        lengths, lines = self.stage_epochs, []
        if len(lengths) > 1 and (previous is None or stage != previous.stage):
            first = sum(lengths[:stage]) + 1
            last = first + lengths[stage] - 1
            lines.append(f"stage {stage + 1}/{len(lengths)}: epochs {first} to {last}")
        if is_frozen != (previous is not None and previous.is_frozen):
            until = f"is frozen up to epoch {self.fine_tuning.frozen_epochs}"
            change = until if is_frozen else "is trained now"
            lines.append(f"epoch {epoch + 1}: the backbone {change}")
        return lines
