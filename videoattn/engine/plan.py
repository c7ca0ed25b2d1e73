"""Which part of a network each epoch trains."""

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

from torch import nn

from videoattn.engine.batches import ToVideo
from videoattn.engine.finetune import FineTuning
from videoattn.engine.parallel import Parallel
from videoattn.engine.precise import PreciseBatchNorm
from videoattn.engine.precision import Precision
from videoattn.engine.stages import Staged, num_stages, split_epochs, stage_of


class Phase(NamedTuple):
    """Consecutive epochs that train the same parameters."""

    stage: int  # from 0
    is_frozen: bool  # whether the backbone is


@dataclass(frozen=True)
class EpochPlan:
    """How many epochs a run has, and what they train.

    Args:
        stage_epochs: The epochs of each stage of a network that is trained in stages; equal shares
            if empty.
        fine_tuning: Freezes pretrained parameters.
        precise_bn: Recomputes batch-norm statistics before a validation and at the end of a stage.
    """

    num_epochs: int
    stage_epochs: tuple[int, ...] = ()
    fine_tuning: FineTuning | None = None
    precise_bn: PreciseBatchNorm | None = None

    def __post_init__(self) -> None:
        if self.num_epochs < 1:
            raise ValueError(f"num_epochs: {self.num_epochs} is not at least 1")

    def fitted_to(self, model: nn.Module) -> "EpochPlan":
        """Returns the plan with the epochs of each stage of `model`.

        Raises:
            ValueError: If `stage_epochs` does not fit the model.
        """
        lengths = split_epochs(self.num_epochs, num_stages(model), self.stage_epochs)
        return replace(self, stage_epochs=lengths)

    def phase(self, epoch: int) -> Phase:
        """Returns the phase of an epoch (from 0)."""
        tuning = self.fine_tuning
        is_frozen = tuning is not None and tuning.is_frozen(epoch)
        return Phase(stage_of(epoch, self.stage_epochs), is_frozen)

    def is_last_stage(self, epoch: int) -> bool:
        """Whether `epoch` (from 0) belongs to the last stage."""
        return self.phase(epoch).stage + 1 == len(self.stage_epochs)

    def ends_stage(self, epoch: int) -> bool:
        """Whether a stage ends after `epoch` (from 0)."""
        return epoch + 1 in accumulate(self.stage_epochs)

    def set_trainable(self, model: nn.Module, epoch: int) -> None:
        """Sets `requires_grad` of all parameters for `epoch`."""
        if isinstance(model, Staged):
            model.set_stage(stage_of(epoch, self.stage_epochs))
        elif self.fine_tuning is not None:
            self.fine_tuning.unfreeze(model)
        if self.fine_tuning is not None:
            self.fine_tuning.freeze(model, epoch)

    def set_train_mode(self, model: nn.Module, epoch: int) -> None:
        """Puts the model into training mode, except for frozen batch norms."""
        model.train()
        if self.fine_tuning is not None:
            self.fine_tuning.set_train_mode(model, epoch)

    def recompute_norms(
        self,
        model: nn.Module,
        epoch: int,
        to_video: ToVideo,
        precision: Precision,
        parallel: Parallel,
    ) -> None:
        """Recomputes batch-norm statistics, if the plan has `precise_bn`."""
        if self.precise_bn is None:
            return
        self.precise_bn.recompute(model, to_video=to_video, precision=precision, parallel=parallel)
        self.set_train_mode(model, epoch)

    def announce(self, epoch: int, previous: Phase | None) -> list[str]:
        """Returns lines that tell the user what `epoch` trains from now on."""
        stage, is_frozen = self.phase(epoch)
        lengths, lines = self.stage_epochs, []
        if len(lengths) > 1 and (previous is None or stage != previous.stage):
            first = sum(lengths[:stage]) + 1
            last = first + lengths[stage] - 1
            lines.append(f"stage {stage + 1}/{len(lengths)}: epochs {first} to {last}")
        if is_frozen != (previous is not None and previous.is_frozen):
            assert self.fine_tuning is not None
            change = f"is frozen up to epoch {self.fine_tuning.frozen_epochs}"
            change = change if is_frozen else "is trained now"
            lines.append(f"epoch {epoch + 1}: the backbone {change}")
        return lines
