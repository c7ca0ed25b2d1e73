"""Trains a model. A run can be resumed from any checkpoint, bit for bit."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from videoattn._version import __version__
from videoattn.engine import checkpoint
from videoattn.engine.batches import Batches, ToVideo, to_device
from videoattn.engine.checkpoint import LAST, Checkpoint
from videoattn.engine.evaluate import Evaluation, evaluate
from videoattn.engine.failures import count_samples
from videoattn.engine.parallel import Parallel
from videoattn.engine.plan import EpochPlan, Validation
from videoattn.engine.runlog import RunLog
from videoattn.engine.signals import StoppableBatches, StoppedError
from videoattn.engine.state import RunSettings, TrainState, state_from
from videoattn.engine.step import OptimSettings, StepContext, update

BEST = "best.safetensors"
BEST_OF_STAGE = "best-stage-{}.safetensors"


class TrainResult(NamedTuple):
    """The training state at the end of a run, and its last validation."""

    state: TrainState
    evaluation: Evaluation | None  # the last validation of this call
    wait_share: float = 0.0  # fraction of the time that was spent waiting for data


class Job(NamedTuple):
    """The objects of a run that training does not replace."""

    model: nn.Module
    average: AveragedModel | None
    optimizer: Optimizer
    batches: Batches
    to_video: ToVideo
    settings: OptimSettings
    plan: EpochPlan
    run: RunSettings
    parallel: Parallel


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    *,
    to_video: ToVideo,
    settings: OptimSettings,
    plan: EpochPlan,
    run: RunSettings,
    validation: Validation | None = None,
    parallel: Parallel | None = None,
    resume: Checkpoint | None = None,
) -> TrainResult:
    """Trains `model` in place, and writes checkpoints and logs. Resuming is exact, bit for bit.

    Raises:
        NonFiniteError: If a loss or a gradient is not finite.
        StoppedError: After a signal that `run.stop` received.
        TooManyFailuresError: If more samples fail than `run.max_failures`.
        ValueError: If the checkpoint belongs to another model, or to other batches.
    """
    parallel = parallel or Parallel()
    plan = plan.fitted_to(model)
    average = plan.average_of(model)
    job = Job(model, average, optimizer, batches, to_video, settings, plan, run, parallel)
    state = _start(job, resume)
    phase, evaluation = None, None
    with RunLog(run, state, plan=plan, settings=settings, enabled=parallel.is_main) as log:
        for epoch in _remaining_epochs(state, plan, validation, log):
            if plan.phase(epoch) != phase:
                log.lines(plan.announce(epoch, phase))
                phase = plan.phase(epoch)
                plan.set_trainable(model, epoch)
                wrapped = parallel.wrap(model, settings.compile)
            plan.set_train_mode(model, epoch)
            train_one_epoch(job, wrapped, state, log)
            is_due = plan.is_due(validation, model, epoch)
            if plan.precise_bn is not None and (is_due or plan.ends_stage(epoch)):
                plan.precise_bn.recompute(model, to_video, settings.precision, parallel)
                plan.set_train_mode(model, epoch)
            if validation is not None and is_due:
                save_checkpoint(job, state)  # before the validation, which may fail
                evaluation = _validate(job, validation, state, log)
            state.next_epoch()
            save_checkpoint(job, state)
    return TrainResult(state, evaluation, log.clock.wait_share)


def train_one_epoch(job: Job, model: nn.Module, state: TrainState, log: RunLog) -> None:
    """Takes the remaining steps of the current epoch; `model` is the result of `parallel.wrap`."""
    settings, run, parallel = job.settings, job.run, job.parallel
    skipped = state.step * settings.accumulate_steps
    remaining = to_device(job.batches.epoch(state.epoch, skip_batches=skipped), parallel.device)
    while state.step < state.steps_per_epoch:
        started = time.perf_counter()
        group = list(islice(remaining, settings.accumulate_steps))
        waited = time.perf_counter() - started
        if not group:
            raise ValueError(
                f"epoch {state.epoch + 1}: the batches ended after {state.step} of "
                f"{state.steps_per_epoch} steps; correct the length of the batches"
            )
        count_samples(group, state, run=run, parallel=parallel)
        result = update(
            model,
            job.optimizer,
            group,
            to_video=job.to_video,
            settings=settings,
            context=StepContext(run.seed, state.epoch, state.step, state.step_of_run, run.describe),
            parallel=parallel,
        )
        if job.average is not None and result.num_clips:
            job.average.update_parameters(model)
        state.add(result)
        log.step(state, result, waited=waited)
        must_stop = _is_stopped(run, parallel)
        every = run.save_every_steps
        if must_stop or (every and state.step_of_run % every == 0):
            save_checkpoint(job, state)
        if must_stop:
            raise StoppedError(f"stopped by a signal after step {state.step_of_run}")
    next(remaining, None)  # ends the epoch: the loader processes stay alive for the next
    log.lines([log.progress_line(state)])


def save_checkpoint(job: Job, state: TrainState) -> None:
    """Writes the last checkpoint, and keeps a copy every `run.keep_epochs` epochs.

    Collective: every rank must call it; the main process writes. Inside an epoch, the model does
    not change: the checkpoint has the running statistics of the main process, which all ranks use
    in the next step. After the last step, the statistics of all ranks are averaged.

    Raises:
        OSError: If it cannot be written; the previous checkpoint is intact.
    """
    model, average, run, parallel = job.model, job.average, job.run, job.parallel
    if state.step in (0, state.steps_per_epoch):
        for one in (model, average.module) if average is not None else (model,):
            parallel.average_buffers(one)
    weights = parallel.state_dict(model)
    if not parallel.is_main:
        return
    payload: Checkpoint = {
        "format": checkpoint.FORMAT,
        "version": __version__,
        "model": weights,
        "optimizer": job.optimizer.state_dict(),
        "progress": asdict(state),
        "best": {"accuracy": state.best_accuracy, "epoch": state.best_epoch},
        **run.meta,
    }
    if average is not None:
        payload["ema"] = average.module.state_dict()
    checkpoint.save(run.folder / LAST, payload)
    if run.keep_epochs and state.step == 0 and state.epoch % run.keep_epochs == 0:
        checkpoint.save(run.folder / f"checkpoint-epoch-{state.epoch:04d}.pt", payload)


def _start(job: Job, resume: Checkpoint | None) -> TrainState:
    """Returns a new state, or that of `resume`, whose weights and optimizer it also loads."""
    steps_per_epoch = math.ceil(len(job.batches) / job.settings.accumulate_steps)
    if not steps_per_epoch:
        raise ValueError("there is nothing to train on: an epoch has 0 batches; add videos")
    if resume is None:
        return TrainState(steps_per_epoch=steps_per_epoch)
    path = job.run.folder / LAST
    state = state_from(resume["progress"], steps_per_epoch=steps_per_epoch, path=path)
    checkpoint.restore(job.model, resume["model"], path=path)
    if job.average is not None:
        checkpoint.restore(job.average.module, resume["ema"], path=path)
        job.average.n_averaged.fill_(state.step_of_run)  # at 0, the first update copies
    job.optimizer.load_state_dict(resume["optimizer"])
    return state


def _remaining_epochs(
    state: TrainState, plan: EpochPlan, validation: Validation | None, log: RunLog
) -> Iterator[int]:
    if state.step_of_run:
        log.lines([f"resumed after step {state.step_of_run} of {log.num_steps}"])
    while state.epoch < plan.num_epochs:
        in_last_stage = plan.phase(state.epoch).stage + 1 == len(plan.stage_epochs)
        if in_last_stage and validation is not None and validation.ends_run(state):
            log.lines([f"no better validation since epoch {state.best_epoch}: training ends"])
            return
        yield state.epoch


def _validate(job: Job, validation: Validation, state: TrainState, log: RunLog) -> Evaluation:
    """Evaluates after an epoch, and saves the weights if they are the best so far. If the next
    stage starts from the best weights of this stage, loads them into the model."""
    model = job.model if job.average is None else job.average.module
    plan, run, parallel = job.plan, job.run, job.parallel
    try:
        evaluation = evaluate(
            model,
            StoppableBatches(validation.batches, run.stop),
            to_video=job.to_video,
            objective=validation.objective,
            max_views=validation.max_views,
            precision=job.settings.precision,
            parallel=parallel,
            display=log.display,
        )
    except ValueError:  # on all ranks, perhaps because a signal left no scores
        _check_not_stopped(run, parallel)
        raise
    _check_not_stopped(run, parallel)
    log.validation(state, evaluation)
    stage, metric = plan.phase(state.epoch).stage, validation.objective.metric
    if stage + 1 == len(plan.stage_epochs):
        accuracy, file = evaluation.video_metrics[metric], BEST
    elif plan.keeps_best(model):  # the stage's classifier: later ones are untrained
        part = list(evaluation.parts.values())[stage]
        accuracy, file = part.video_metrics[metric], BEST_OF_STAGE.format(stage + 1)
    else:
        return evaluation
    if state.best_accuracy is None or accuracy > state.best_accuracy:
        state.best_accuracy, state.best_epoch = accuracy, state.epoch + 1
        weights = parallel.state_dict(model)
        if parallel.is_main:
            checkpoint.save_weights(run.folder / file, weights, run.meta)
    if plan.hands_over_best(model, state.epoch):
        log.lines([_restore_best_of_stage(job, state)])
    return evaluation


def _check_not_stopped(run: RunSettings, parallel: Parallel) -> None:
    if _is_stopped(run, parallel):
        raise StoppedError("stopped by a signal during a validation")


def _is_stopped(run: RunSettings, parallel: Parallel) -> bool:
    """Returns whether any rank has received a signal. Collective."""
    return parallel.sum([run.stop.received is not None])[0] > 0


def _restore_best_of_stage(job: Job, state: TrainState) -> str:
    """Loads the weights of the stage's best epoch, and returns a line about it."""
    plan, stage, epoch = job.plan, job.plan.phase(state.epoch).stage + 1, state.best_epoch
    path = job.run.folder / BEST_OF_STAGE.format(stage)
    job.parallel.barrier()  # the main process may be writing the file
    checkpoint.restore(job.model, checkpoint.load_weights(path)[0], path=path)
    state.best_accuracy = state.best_epoch = None
    return f"stage {stage}/{len(plan.stage_epochs)}: epoch {epoch} was the best; it is kept"
