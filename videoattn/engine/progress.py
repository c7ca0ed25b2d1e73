"""How far a run is: what a checkpoint holds beside weights, and what a line of progress says."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from videoattn.engine.metrics import share
from videoattn.engine.step import StepResult
from videoattn.engine.trackers import Clock


@dataclass
class Sums:
    """Sums over clips."""

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
class Progress:
    """The epoch under way (from 0), the steps of it that are done, and what they gave."""

    steps_per_epoch: int
    epoch: int = 0
    step: int = 0
    of_epoch: Sums = field(default_factory=Sums)
    since_log: Sums = field(default_factory=Sums)
    num_seen: int = 0  # samples that trained the network, each as often as it did
    num_skipped: int = 0  # and those that did not, since they failed
    failed: list[int] = field(default_factory=list)  # their indices, in order
    best_accuracy: float | None = None
    best_epoch: int | None = None  # from 1

    @property
    def step_of_run(self) -> int:
        """Steps that are done since the run began."""
        return self.epoch * self.steps_per_epoch + self.step

    def next_epoch(self) -> None:
        self.epoch, self.step, self.of_epoch = self.epoch + 1, 0, Sums()

    def state(self) -> dict[str, object]:
        """All of it, as plain values."""
        return asdict(self)


def from_state(state: Mapping[str, object], *, steps_per_epoch: int, path: Path) -> Progress:
    """The inverse of `Progress.state`; `path` is where it came from.

    Raises:
        ValueError: when it is inside an epoch of another length than `steps_per_epoch`.
    """
    sums = {name: Sums(**cast(dict[str, Any], state[name])) for name in ("of_epoch", "since_log")}
    # The format that `checkpoint.load` has checked says which fields there are, and of what type.
    progress = Progress(**{**state, **sums, "steps_per_epoch": steps_per_epoch})  # type: ignore[arg-type]
    if progress.step and state["steps_per_epoch"] != steps_per_epoch:
        raise ValueError(
            f"{path}: was written inside an epoch of {state['steps_per_epoch']} steps, an epoch "
            f"has {steps_per_epoch} now; resume with the same data, batch size and processes"
        )
    return progress


def line(progress: Progress, *, num_epochs: int, clock: Clock) -> str:
    """Epoch, step, losses and accuracy of the epoch so far, how often a sample was skipped in the
    run, speed, share of waiting, time left."""
    sums = progress.of_epoch
    auxiliary = "".join(
        f"{name} {share(value, sums.num_clips):.4f}  "
        for name, value in sums.auxiliary_losses.items()
    )
    skipped = f"skipped {progress.num_skipped}  " if progress.num_skipped else ""
    return (
        f"epoch {progress.epoch + 1}/{num_epochs}  "
        f"step {progress.step}/{progress.steps_per_epoch}  "
        f"loss {share(sums.loss, sums.num_clips):.4f}  {auxiliary}"
        f"accuracy {100 * share(sums.correct, sums.num_clips):.1f} %  {skipped}"
        f"{clock.clips_per_second:.1f} clips/s  data {100 * clock.wait_share:.0f} %  "
        f"left {clock.time_left}"
    )
