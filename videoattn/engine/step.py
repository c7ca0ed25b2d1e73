"""Takes an optimizer step on one or more batches, in one process or several."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from videoattn.engine.batches import ToVideo
from videoattn.engine.compiled import Compile
from videoattn.engine.objective import CrossEntropy, Objective, has_labels
from videoattn.engine.parallel import Parallel
from videoattn.engine.precision import Precision, autocast, resolve_precision
from videoattn.types import Batch


@dataclass(frozen=True)
class OptimSettings:
    """Settings of the optimizer steps.

    Args:
        lr_at: Function from a step of the run to its learning rate. A parameter group multiplies
            the rate by its `lr_scale`, if it has one.
        accumulate_steps: The number of batches per step.
        clip_norm: The largest norm of all gradients together; None disables clipping.
        auxiliary: Returns named scalar losses (means over samples) after each forward pass.
        auxiliary_weights: The weight of each auxiliary loss.
        mix: Blends the clips of a batch: (videos, labels) -> (videos, targets (n, K)). It may use
            torch's global random state, which is seeded at each step.
        frame_logits: Returns the logits (n, T, K) of each frame after a forward pass. The loss of a
            clip is then the mean loss of its frames (Du et al., ECCV 2018), an upper bound of the
            loss of the mean logits.
        compile: Whether the forward and backward passes are compiled; see `compiled`.
    """

    lr_at: Callable[[int], float]
    accumulate_steps: int = 1
    clip_norm: float | None = None
    precision: Precision = "auto"
    objective: Objective = field(default_factory=CrossEntropy)
    auxiliary: Callable[[nn.Module], Mapping[str, Tensor]] | None = None
    auxiliary_weights: Mapping[str, float] = field(default_factory=dict)
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    frame_logits: Callable[[nn.Module], Tensor] | None = None
    compile: Compile = "off"

    def __post_init__(self) -> None:
        if self.accumulate_steps < 1:
            raise ValueError(f"accumulate_steps: got {self.accumulate_steps}; need at least 1")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"clip_norm: got {self.clip_norm}; need more than 0; leave it out to disable it"
            )


class NonFiniteError(FloatingPointError):
    """Raised if a loss or a gradient is NaN or infinite. The weights are unchanged."""


class StepContext(NamedTuple):
    """The position of a step in the run, and a function from a sample's index to its name."""

    seed: int
    epoch: int  # from 0
    step: int  # of the epoch, from 0
    step_of_run: int
    describe: Callable[[int], str]


class StepResult(NamedTuple):
    """Sums over the clips of a step on all ranks, and the norm of its gradient."""

    loss: float
    auxiliary: float  # the weighted sum of the auxiliary losses, times the number of clips
    correct: float
    num_clips: int
    gradient_norm: float  # before clipping
    auxiliary_losses: Mapping[str, float]  # by name, unweighted, times the number of clips


class _Pass(NamedTuple):
    """Results of a forward and backward pass on this rank, on the device."""

    losses: Tensor  # (n V,)
    indices: Tensor  # (n V,)
    sums: Tensor  # over clips, in float64: loss, correct, unweighted auxiliary losses by name


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    group: Sequence[Batch],
    *,
    to_video: ToVideo,
    settings: OptimSettings,
    context: StepContext,
    parallel: Parallel,
) -> StepResult:
    """Takes one optimizer step on the mean loss over all clips of `group` on all ranks.

    `model` is the result of `parallel.wrap`. Each view counts as a clip. If no rank has a
    clip, nothing changes.

    Raises:
        NonFiniteError: If the loss or the gradient is not finite; the message names the samples.
        ValueError: If a sample has no label.
    """
    seed_step(context.seed, context.epoch, context.step, parallel.rank)
    for parameters in optimizer.param_groups:
        parameters["lr"] = settings.lr_at(context.step_of_run) * parameters.get("lr_scale", 1.0)
    batches = [batch for batch in group if len(batch.indices)]
    num_own = sum(batch.frames.shape[0] * batch.frames.shape[1] for batch in batches)
    total, num_idle = parallel.sum([num_own, not batches])
    if not total:
        return StepResult(0.0, 0.0, 0.0, 0, 0.0, {})
    optimizer.zero_grad(set_to_none=True)
    # Passes through the wrapper communicate, so they would wait for a rank without clips.
    network = parallel.unwrap(model) if num_idle else model
    passes = []
    for batch in batches:
        _check_labels(batch, context)
        with parallel.accumulate(network, last=batch is batches[-1]):
            passes.append(
                _forward_backward(network, batch, to_video, settings, parallel, scale=1.0 / total)
            )
    parallel.sum_gradients(model, averaged=not num_idle)
    norm = parallel.clip_grad_norm(model, settings.clip_norm)
    result = _sum_over_ranks(passes, norm, settings, parallel)
    _check_finite(result, passes, context)
    optimizer.step()
    return result


def _forward_backward(
    model: nn.Module,
    batch: Batch,
    to_video: ToVideo,
    settings: OptimSettings,
    parallel: Parallel,
    scale: float,
) -> _Pass:
    """Accumulates the gradients of the summed loss times `scale`."""
    num_views = batch.frames.shape[1]
    target = batch.labels.repeat_interleave(num_views, dim=0).to(parallel.device)
    video = to_video(batch.frames.flatten(0, 1))
    if settings.mix is not None:
        video, target = settings.mix(video, target)
    with autocast(resolve_precision(settings.precision, parallel.device), parallel.device):
        logits = model(video)  # (n V, K)
    losses = _clip_losses(logits, target, parallel.unwrap(model), settings)
    auxiliary = _auxiliary_losses(parallel.unwrap(model), settings)
    total = losses.sum()
    for name, loss in auxiliary.items():
        total = total + settings.auxiliary_weights[name] * len(target) * loss.to(total)
    (total * scale).backward()
    metrics = settings.objective.metrics(logits.detach().float(), target)
    sums = [losses.double().sum(), metrics[settings.objective.progress].sum().double()]
    sums += [(auxiliary[name].detach() * len(target)).double() for name in sorted(auxiliary)]
    indices = batch.indices.repeat_interleave(num_views)
    return _Pass(losses.detach(), indices, torch.stack(sums).detach())


def _clip_losses(
    logits: Tensor, target: Tensor, model: nn.Module, settings: OptimSettings
) -> Tensor:
    """Returns the loss of each clip, (n,)."""
    if settings.frame_logits is None:
        return settings.objective.loss(logits, target)
    frames = settings.frame_logits(model)
    num_frames = frames.shape[1]
    targets = target.repeat_interleave(num_frames, dim=0)
    losses: Tensor = settings.objective.loss(frames.flatten(0, 1), targets)
    return losses.unflatten(0, (-1, num_frames)).mean(1)


def _auxiliary_losses(model: nn.Module, settings: OptimSettings) -> Mapping[str, Tensor]:
    if settings.auxiliary is None:
        return {}
    losses = settings.auxiliary(model)
    if set(losses) != set(settings.auxiliary_weights):
        raise ValueError(
            f"auxiliary losses: the model has {sorted(losses)}, but the weights are for "
            f"{sorted(settings.auxiliary_weights)}; set a weight for each loss, 0 to ignore it"
        )
    return losses


def _sum_over_ranks(
    passes: Sequence[_Pass], norm: Tensor, settings: OptimSettings, parallel: Parallel
) -> StepResult:
    # A rank without clips has no losses, so the names come from the weights.
    weights = settings.auxiliary_weights if settings.auxiliary is not None else {}
    names = sorted(weights)
    zeros = torch.zeros(2 + len(names), dtype=torch.float64, device=norm.device)
    sums = sum((one.sums for one in passes), zeros)
    # The only wait for the device in a step.
    *own, own_norm = torch.cat([sums, norm.double().view(1)]).tolist()
    num_clips = sum(len(one.losses) for one in passes)
    clips, loss, correct, *of_names = parallel.sum([num_clips, *own])
    auxiliary_losses = dict(zip(names, of_names, strict=True))
    auxiliary = sum(weights[name] * value for name, value in auxiliary_losses.items())
    return StepResult(loss, auxiliary, correct, int(clips), own_norm, auxiliary_losses)


def _check_labels(batch: Batch, context: StepContext) -> None:
    unlabeled = batch.indices[~has_labels(batch.labels)].tolist()
    if unlabeled:
        name = context.describe(unlabeled[0])
        raise ValueError(
            f"sample {unlabeled[0]} ({name}) has no label; training needs one: add it to the list"
        )


def _check_finite(result: StepResult, passes: Sequence[_Pass], context: StepContext) -> None:
    values = {"loss": result.loss}
    values |= {f"{name} loss": value for name, value in result.auxiliary_losses.items()}
    values["gradient"] = result.gradient_norm
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if not wrong:
        return
    suspects: list[int] = []
    for one in passes:
        # The loss of a clip identifies it; a gradient could come from any clip.
        is_suspect = ~one.losses.isfinite().cpu() if wrong[0] == "loss" else one.indices >= 0
        suspects += one.indices[is_suspect].unique().tolist()
    names = [f"{index} ({context.describe(index)})" for index in suspects]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    raise NonFiniteError(
        f"epoch {context.epoch + 1}, step {context.step + 1}: the {wrong[0]} is not finite; "
        f"samples {', '.join(names[:8]) or 'of another process'}{more}. The weights are "
        "unchanged. Try a lower learning rate, gradient clipping, or precision float32"
    )


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seeds torch's global random state for a step, so that dropout and mixed clips are the same in
    a resumed run although a checkpoint stores no random state."""
    numbers = (seed, epoch, step, rank)
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
