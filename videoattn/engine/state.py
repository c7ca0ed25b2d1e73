"""The settings and the training state of a run. Checkpoints store the state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from videoattn.engine.checkpoint import CheckpointMeta
from videoattn.engine.signals import StopSignals
from videoattn.engine.step import StepResult
from videoattn.engine.trackers import Tracker


@dataclass(frozen=True)
class RunSettings:
    """The output folder of a run, the files that it writes, and when it stops.

    Args:
        meta: Metadata for checkpoints.
        describe: Function from the index of a sample to its name.
        max_failures: Stop if more samples than this could not be decoded; None means no limit.
        save_every_steps: Also save the last checkpoint every this many steps.
        keep_epochs: Keep a copy of the last checkpoint every this many epochs.
        trackers: Trackers in addition to metrics.jsonl and TensorBoard.
        stop: The signals that stop the run, if this context manager is entered.
    """

    folder: Path
    meta: CheckpointMeta
    seed: int = 0
    describe: Callable[[int], str] = str
    max_failures: int | None = None
    save_every_steps: int | None = None
    log_every_steps: int = 10
    keep_epochs: int | None = None
    trackers: Sequence[Tracker] = ()
    stop: StopSignals = field(default_factory=StopSignals)


@dataclass
class Sums:
    """Sums of losses and of correct predictions over clips."""

    loss: float = 0.0
    auxiliary: float = 0.0
    correct: float = 0.0
    num_clips: int = 0
    auxiliary_losses: dict[str, float] = field(default_factory=dict)

    def add(self, result: StepResult) -> None:
        self.loss += result.loss
        self.auxiliary += result.auxiliary
        self.correct += result.correct
        self.num_clips += result.num_clips
        for name, value in result.auxiliary_losses.items():
            self.auxiliary_losses[name] = self.auxiliary_losses.get(name, 0.0) + value


@dataclass
class TrainState:
    """The progress of training: the current epoch, its completed steps, and their sums."""

    steps_per_epoch: int
    epoch: int = 0
    step: int = 0
    of_epoch: Sums = field(default_factory=Sums)
    since_log: Sums = field(default_factory=Sums)
    num_seen: int = 0  # samples that were trained on, counted in each epoch
    num_skipped: int = 0  # samples that could not be decoded, counted in each epoch
    failed: list[int] = field(default_factory=list)  # indices of the failed samples, sorted
    best_accuracy: float | None = None
    best_epoch: int | None = None  # from 1

    @property
    def step_of_run(self) -> int:
        """The number of completed steps since the run began."""
        return self.epoch * self.steps_per_epoch + self.step

    def add(self, result: StepResult) -> None:
        """Counts a completed step."""
        self.step += 1
        self.of_epoch.add(result)
        self.since_log.add(result)

    def next_epoch(self) -> None:
        self.epoch, self.step, self.of_epoch = self.epoch + 1, 0, Sums()


def state_from(values: Mapping[str, object], *, steps_per_epoch: int, path: Path) -> TrainState:
    """Returns the training state from `values`, the "progress" of the checkpoint at `path`.

    Raises:
        ValueError: If the checkpoint is from inside an epoch with another number of steps.
    """
    sums = {name: Sums(**cast(dict[str, Any], values[name])) for name in ("of_epoch", "since_log")}
    # The format that `checkpoint.load` has checked determines the fields and their types.
    state = TrainState(**{**values, **sums, "steps_per_epoch": steps_per_epoch})  # type: ignore[arg-type]
    if state.step and values["steps_per_epoch"] != steps_per_epoch:
        raise ValueError(
            f"{path}: was written inside an epoch of {values['steps_per_epoch']} steps, but an "
            f"epoch now has {steps_per_epoch}; resume with the same data, batch size and processes"
        )
    return state
