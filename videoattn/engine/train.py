"""The training loop: plain, resumable at any step to the last bit."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path

import torch
from torch import nn

from videoattn._version import __version__
from videoattn.engine import checkpoint
from videoattn.engine.batches import Batches, ToVideo
from videoattn.engine.checkpoint import LAST, Checkpoint, CheckpointMeta
from videoattn.engine.evaluate import Evaluation, evaluate
from videoattn.engine.metrics import share
from videoattn.engine.parallel import Parallel
from videoattn.engine.precise import PreciseBatchNorm
from videoattn.engine.progress import Progress, Sums, from_state, line
from videoattn.engine.stages import Staged, num_stages, split_epochs, stage_of
from videoattn.engine.step import OptimSettings, StepContext, StepResult, update
from videoattn.engine.trackers import Clock, Display, Log, append_failures, keep_failures
from videoattn.types import Batch, Failure

BEST, SKIPPED = "best.safetensors", "skipped.jsonl"


@dataclass(frozen=True)
class Validation:
    """Scored after every `every_epochs`, and after the last; its video accuracy elects the best."""

    batches: Batches
    every_epochs: int = 1
    max_views: int = 16

    def is_due(self, epoch: int, num_epochs: int) -> bool:
        """Whether it follows `epoch` (from 0)."""
        return (epoch + 1) % self.every_epochs == 0 or epoch + 1 == num_epochs


@dataclass(frozen=True)
class RunSettings:
    """Where a run writes, how often, and what it must know to say and to store.

    `describe` names a sample by its index. A run stops when more than `max_failures` samples could
    not be decoded (None: no limit). `keep_epochs`: a checkpoint of every so many epochs is kept
    beside the last one.
    """

    folder: Path
    about: CheckpointMeta
    seed: int = 0
    describe: Callable[[int], str] = str
    max_failures: int | None = None
    save_every_steps: int | None = None
    log_every_steps: int = 10
    keep_epochs: int | None = None


@dataclass(frozen=True)
class TrainResult:
    """What came of a run: accuracies are shares of 1, None where there was no validation."""

    num_steps: int
    num_seen: int  # samples in all epochs; with those skipped: all that was asked for
    num_skipped: int
    failed: tuple[int, ...]  # samples that were skipped, once or more
    best_accuracy: float | None
    best_epoch: int | None  # from 1
    evaluation: Evaluation | None  # of the last validation of this call


class TooManyFailuresError(RuntimeError):
    """More samples could not be decoded than the recipe allows."""


@dataclass(frozen=True)
class _Training:
    """What stays the same during a stage of training (most networks have one)."""

    model: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    to_video: ToVideo
    optimisation: OptimSettings
    run: RunSettings
    validation: Validation | None
    precise_norms: PreciseBatchNorm | None
    distributed: Parallel
    stage_epochs: tuple[int, ...]
    stage: int | None = None  # from 0; None before the first
    frozen: bool = False  # whether the backbone is

    def train_mode(self, epoch: int) -> None:
        """Training mode, less the norms that are frozen."""
        self.model.train()
        if self.optimisation.fine_tuning is not None:
            self.optimisation.fine_tuning.hold(self.model, epoch)

    def renew_norms(self, epoch: int) -> None:
        """Their statistics, where the run says so; what is trained after does not read them."""
        if self.precise_norms is not None:
            self.precise_norms.recompute(
                self.model,
                to_video=self.to_video,
                precision=self.optimisation.precision,
                distributed=self.distributed,
            )
            self.train_mode(epoch)

    def save(self, progress: Progress) -> None:
        """Every process calls it; the main one writes."""
        self.distributed.average_buffers(self.model)
        if not self.distributed.is_main:
            return
        payload: Checkpoint = {
            "format": checkpoint.FORMAT,
            "version": __version__,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": progress.state(),
            "best": {"accuracy": progress.best_accuracy, "epoch": progress.best_epoch},
            **self.run.about,
        }
        checkpoint.save(self.run.folder / LAST, payload)
        every = self.run.keep_epochs
        if every and not progress.step and progress.epoch % every == 0:
            kept = self.run.folder / f"checkpoint-epoch-{progress.epoch:04d}.pt"
            checkpoint.save(kept, payload)


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    *,
    to_video: ToVideo,
    optimisation: OptimSettings,
    run: RunSettings,
    validation: Validation | None = None,
    precise_norms: PreciseBatchNorm | None = None,
    distributed: Parallel | None = None,
    resume: Checkpoint | None = None,
) -> TrainResult:
    """Trains `model` (already on the device) and leaves it at its last step.

    Writes `checkpoint-last.pt` after every epoch (and every `save_every_steps`),
    `best.safetensors`, `metrics.jsonl`, TensorBoard events and `skipped.jsonl`. `resume` is a
    loaded checkpoint of the same run: what follows is what would have followed, bit for bit.

    Raises:
        NonFiniteError: when a loss or gradient is not finite.
        TooManyFailuresError: when more samples fail than `run.max_failures`.
        ValueError: for a checkpoint of another model, or of other batches.
        OSError: when a checkpoint cannot be written; the one before it is intact.
    """
    distributed = distributed or Parallel()
    progress = _start(model, optimizer, batches, optimisation=optimisation, run=run, resume=resume)
    stages = split_epochs(optimisation.num_epochs, num_stages(model), optimisation.stage_epochs)
    training = _Training(
        model, model, optimizer, batches, to_video, optimisation, run, validation, precise_norms,
        distributed, stages,
    )  # fmt: skip
    log = Log(
        run.folder,
        enabled=distributed.is_main,
        resumed_at=progress.step_of_run,
        validated=progress.step == 0,
    )
    if distributed.is_main:
        keep_failures(run.folder / SKIPPED, progress.failed)
    num_steps = optimisation.num_epochs * progress.steps_per_epoch
    clock = Clock(steps_left=num_steps - progress.step_of_run)
    evaluation = None
    try:
        with Display(enabled=distributed.is_main) as display:
            while progress.epoch < optimisation.num_epochs:
                training = _in_stage(training, progress.epoch, display)
                _train_epoch(training, progress, clock=clock, display=display, log=log)
                is_due = validation and validation.is_due(progress.epoch, optimisation.num_epochs)
                # A stage's last epoch too: what it trained is in evaluation mode from then on.
                if is_due or progress.epoch + 1 in accumulate(stages):
                    training.renew_norms(progress.epoch)
                if is_due:
                    training.save(progress)  # an evaluation that fails costs no training
                    evaluation = _validate(training, progress, display=display, log=log)
                progress.next_epoch()
                training.save(progress)
    finally:
        log.close()
    return TrainResult(
        progress.step_of_run, progress.num_seen, progress.num_skipped, tuple(progress.failed),
        progress.best_accuracy, progress.best_epoch, evaluation,
    )  # fmt: skip


def _start(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    *,
    optimisation: OptimSettings,
    run: RunSettings,
    resume: Checkpoint | None,
) -> Progress:
    """The beginning, or where `resume` was written, with its weights and optimizer in place."""
    steps_per_epoch = math.ceil(len(batches) / optimisation.accumulate_steps)
    if not steps_per_epoch:
        raise ValueError("there is nothing to train on: an epoch has 0 batches")
    if resume is None:
        return Progress(steps_per_epoch=steps_per_epoch)
    path = run.folder / LAST
    progress = from_state(resume["progress"], steps_per_epoch=steps_per_epoch, path=path)
    checkpoint.restore(model, resume["model"], path=path)
    optimizer.load_state_dict(resume["optimizer"])
    return progress


def _in_stage(training: _Training, epoch: int, display: Display) -> _Training:
    """The training, gone on to the stage of its epoch, with its backbone frozen or thawed."""
    model, lengths = training.model, training.stage_epochs
    stage, tuning = stage_of(epoch, lengths), training.optimisation.fine_tuning
    frozen = tuning is not None and tuning.is_frozen(epoch)
    if (stage, frozen) == (training.stage, training.frozen):
        return training
    if isinstance(model, Staged):
        model.set_stage(stage)
    elif tuning is not None:
        tuning.thaw(model)
    if tuning is not None:
        tuning.freeze(model, epoch)
    if stage != training.stage and len(lengths) > 1:
        first = sum(lengths[:stage]) + 1
        display.line(
            f"stage {stage + 1}/{len(lengths)}: epochs {first} to {first + lengths[stage] - 1}"
        )
    if tuning is not None and frozen != training.frozen:
        until = f"is frozen up to epoch {tuning.frozen_epochs}" if frozen else "is trained now"
        display.line(f"epoch {epoch + 1}: the backbone {until}")
    # The wrapper takes note, once, of what has gradients: each change needs one of its own.
    wrapped = training.distributed.wrap(model)
    return replace(training, stage=stage, frozen=frozen, wrapped=wrapped)


def _train_epoch(
    training: _Training, progress: Progress, *, clock: Clock, display: Display, log: Log
) -> None:
    run, accumulate = training.run, training.optimisation.accumulate_steps
    num_epochs = training.optimisation.num_epochs
    training.train_mode(progress.epoch)
    iterator = training.batches.epoch(progress.epoch, skip_batches=progress.step * accumulate)
    while progress.step < progress.steps_per_epoch:
        group, waited = _next(iterator, accumulate, progress)
        _count(training, progress, group)
        result = update(
            training.wrapped,
            training.optimizer,
            group,
            to_video=training.to_video,
            optimisation=training.optimisation,
            moment=StepContext(
                run.seed, progress.epoch, progress.step, progress.step_of_run, run.describe
            ),
            distributed=training.distributed,
        )
        progress.step += 1
        progress.of_epoch.add(result)
        progress.since_log.add(result)
        clock.step(clips=result.num_clips, waited=waited)
        text = line(progress, num_epochs=num_epochs, clock=clock)
        total = num_epochs * progress.steps_per_epoch
        display.update(text, done=progress.step_of_run, total=total)
        is_last = progress.step == progress.steps_per_epoch
        if progress.step_of_run % run.log_every_steps == 0 or is_last:
            _write(training, progress, result, clock=clock, log=log)
        if run.save_every_steps and progress.step_of_run % run.save_every_steps == 0:
            training.save(progress)
    display.line(line(progress, num_epochs=num_epochs, clock=clock))


def _next(iterator: Iterator[Batch], count: int, progress: Progress) -> tuple[list[Batch], float]:
    """The batches of one step, and the seconds spent waiting for them."""
    started = time.perf_counter()
    group = list(islice(iterator, count))
    if not group:
        raise ValueError(
            f"epoch {progress.epoch + 1}: the batches ended after {progress.step} steps, "
            f"their length promised {progress.steps_per_epoch}"
        )
    return group, time.perf_counter() - started


def _validate(training: _Training, progress: Progress, *, display: Display, log: Log) -> Evaluation:
    assert training.validation is not None
    evaluation = evaluate(
        training.model,
        training.validation.batches,
        to_video=training.to_video,
        max_views=training.validation.max_views,
        precision=training.optimisation.precision,
        distributed=training.distributed,
        display=display,
    )
    training.train_mode(progress.epoch)
    display.line(f"epoch {progress.epoch + 1}  {evaluation.describe()}")
    record = {
        "epoch": progress.epoch + 1,
        "loss": evaluation.loss,
        "video_accuracy": evaluation.video_accuracy,
        "clip_accuracy": evaluation.clip_accuracy,
        "videos": evaluation.num_labelled,
        "views": evaluation.num_views,
        "failed": evaluation.num_failed,
    }
    record |= {
        f"video_accuracy_{name}": part.video_accuracy for name, part in evaluation.parts.items()
    }
    log.write("validation", step=progress.step_of_run, record=record)
    if training.stage != len(training.stage_epochs) - 1:
        return evaluation  # parts of it have not been trained yet
    if progress.best_accuracy is None or evaluation.video_accuracy > progress.best_accuracy:
        progress.best_accuracy = evaluation.video_accuracy
        progress.best_epoch = progress.epoch + 1
        if training.distributed.is_main:
            checkpoint.save_weights(
                training.run.folder / BEST, training.model.state_dict(), training.run.about
            )
    return evaluation


def _count(training: _Training, progress: Progress, group: list[Batch]) -> None:
    """Counts samples, over all processes. Writes down each that failed for the first time, and
    stops a run that loses many."""
    own = [failure for batch in group for failure in batch.failures]
    seen = sum(len(batch.indices) for batch in group)
    num_seen, num_skipped = training.distributed.sum([seen, len(own)])
    progress.num_seen += int(num_seen)
    progress.num_skipped += int(num_skipped)
    if not num_skipped:
        return
    new: dict[int, Failure] = {
        failure.index: failure
        for failures in training.distributed.gather(own)
        for failure in failures
        if failure.index not in progress.failed
    }
    progress.failed = sorted([*progress.failed, *new])
    if training.distributed.is_main:
        append_failures(training.run.folder / SKIPPED, new.values())
    limit = training.run.max_failures
    if limit is not None and len(progress.failed) > limit:
        last = list(new.values())[-1]
        raise TooManyFailuresError(
            f"{len(progress.failed)} videos could not be decoded, {limit} are allowed; see "
            f"{training.run.folder / SKIPPED}; the last: {last.path}: {last.reason}"
        )


def _write(
    training: _Training, progress: Progress, result: StepResult, *, clock: Clock, log: Log
) -> None:
    sums = progress.since_log
    record: dict[str, str | int | float | None] = {
        "epoch": progress.epoch + 1,
        "loss": share(sums.loss, sums.num_clips),
        "accuracy": share(sums.correct, sums.num_clips),
        "lr": training.optimisation.lr_at(progress.step_of_run - 1),
        "gradient_norm": result.gradient_norm,
        "clips_per_second": clock.clips_per_second,
        "wait_share": clock.wait_share,
        "seen": progress.num_seen,
        "skipped": progress.num_skipped,
        "failed": len(progress.failed),
    }
    if len(training.stage_epochs) > 1 and training.stage is not None:
        record["stage"] = training.stage + 1
    if training.optimisation.auxiliary is not None:
        record["auxiliary_loss"] = share(sums.auxiliary, sums.num_clips)
        for name, value in sums.auxiliary_losses.items():
            record[name] = share(value, sums.num_clips)
    log.write("train", step=progress.step_of_run, record=record)
    progress.since_log = Sums()
