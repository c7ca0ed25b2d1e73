"""One update of the weights from one or more batches, over one process or many."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from videoattn.engine.batches import ToVideo
from videoattn.engine.finetune import FineTuning
from videoattn.engine.metrics import in_top_k
from videoattn.engine.parallel import Parallel
from videoattn.engine.precision import Precision, autocast, resolve_precision
from videoattn.types import Batch


@dataclass(frozen=True)
class OptimSettings:
    """How the weights are changed.

    `lr_at` gives the learning rate of a step of the run; a parameter group's own `lr_scale`
    multiplies it. `auxiliary` is asked for named scalar losses (means over the samples) after each
    forward pass; `auxiliary_weights` has a weight for each. `mix` blends the clips of a batch: from
    (videos, labels) to (videos, class shares (n, K)); it may use torch's global random state, which
    is seeded anew at each step. `stage_epochs`: of a network that is trained in stages, the epochs
    of each; equal parts where it is empty. `fine_tuning`: what is frozen, and when.
    """

    lr_at: Callable[[int], float]
    num_epochs: int
    accumulate_steps: int = 1
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    precision: Precision = "auto"
    auxiliary: Callable[[nn.Module], Mapping[str, Tensor]] | None = None
    auxiliary_weights: Mapping[str, float] = field(default_factory=dict)
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    stage_epochs: tuple[int, ...] = ()
    fine_tuning: FineTuning | None = None

    def __post_init__(self) -> None:
        for name in ("num_epochs", "accumulate_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm: {self.clip_norm} is not above 0; null turns it off")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: {self.label_smoothing} is not in [0, 1)")


class NonFiniteError(FloatingPointError):
    """A loss or a gradient that is NaN or infinite; the weights are as they were before it."""


class StepContext(NamedTuple):
    """Where in a run a step is, and how to name a sample when it goes wrong."""

    seed: int
    epoch: int  # from 0
    step: int  # of the epoch, from 0
    step_of_run: int
    describe: Callable[[int], str]


class StepResult(NamedTuple):
    """Sums over the clips of a step, over all processes."""

    loss: float
    auxiliary: float  # their weighted sum, times the number of clips
    correct: float
    num_clips: int
    gradient_norm: float  # before clipping
    auxiliary_losses: Mapping[str, float]  # each by name, unweighted, times the number of clips


class _Passed(NamedTuple):
    """What one forward and backward pass of this process leaves, on its device."""

    losses: Tensor  # (n V,)
    auxiliary: Mapping[str, Tensor]  # each times n V, unweighted
    correct: Tensor
    indices: Tensor  # (n V,)


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    group: Sequence[Batch],
    *,
    to_video: ToVideo,
    optimisation: OptimSettings,
    moment: StepContext,
    distributed: Parallel,
) -> StepResult:
    """Changes the weights once by the mean loss over all clips of `group` on all processes.

    `model` is what `distributed.wrap` gave. Views count as clips. Nothing is changed where no
    process has a clip.

    Raises:
        NonFiniteError: when the loss or the gradient is not finite; names the samples.
        ValueError: for a sample without a label.
    """
    seed_step(moment.seed, moment.epoch, moment.step, distributed.rank)
    for parameters in optimizer.param_groups:
        parameters["lr"] = optimisation.lr_at(moment.step_of_run) * parameters.get("lr_scale", 1.0)
    batches = [batch for batch in group if len(batch.indices)]
    num_own = sum(batch.frames.shape[0] * batch.frames.shape[1] for batch in batches)
    total, num_idle = distributed.sum([num_own, not batches])
    if not total:
        return StepResult(0.0, 0.0, 0.0, 0, 0.0, {})
    optimizer.zero_grad(set_to_none=True)
    # Each pass through the wrapper may talk to the other processes: none, where one has no clip.
    network = _unwrapped(model) if num_idle else model
    passed = [
        _pass(
            network,
            batch,
            to_video=to_video,
            optimisation=optimisation,
            device=distributed.device,
            share=1.0 / total,
            synchronise=number == len(batches) - 1,
            describe=moment.describe,
        )
        for number, batch in enumerate(batches)
    ]
    _collect_gradients(model, distributed, averaged=not num_idle)
    norm = _clip(model, optimisation.clip_norm)
    result = _sum(passed, norm, optimisation, distributed)
    _check_finite(result, passed, moment)
    optimizer.step()
    return result


def _pass(
    model: nn.Module,
    batch: Batch,
    *,
    to_video: ToVideo,
    optimisation: OptimSettings,
    device: torch.device,
    share: float,
    synchronise: bool,
    describe: Callable[[int], str],
) -> _Passed:
    """Forward and backward; each clip's loss weighs `share`."""
    unlabelled = batch.indices[batch.labels < 0].tolist()
    if unlabelled:
        raise ValueError(
            f"sample {unlabelled[0]} ({describe(unlabelled[0])}) has no label; training needs one"
        )
    num_views = batch.frames.shape[1]
    labels = batch.labels.repeat_interleave(num_views).to(device)
    dtype = resolve_precision(optimisation.precision, device)
    with _synchronised(model, synchronise):
        video, target = to_video(batch.frames.flatten(0, 1)), labels
        if optimisation.mix is not None:
            video, target = optimisation.mix(video, labels)
            labels = target.argmax(1)  # a mixed clip counts as the class of its larger part
        with autocast(dtype, device):
            logits = model(video)  # (n V, K)
        losses = nn.functional.cross_entropy(
            logits.float(),
            target,
            label_smoothing=optimisation.label_smoothing,
            reduction="none",
        )
        auxiliary = _auxiliary(model, optimisation)
        total = losses.sum()
        for name, loss in auxiliary.items():
            total = total + optimisation.auxiliary_weights[name] * len(labels) * loss.to(total)
        (total * share).backward()
    correct = in_top_k(logits.detach().float(), labels, 1).sum()
    indices = batch.indices.repeat_interleave(num_views)
    sums = {name: loss.detach() * len(labels) for name, loss in auxiliary.items()}
    return _Passed(losses.detach(), sums, correct, indices)


def _auxiliary(model: nn.Module, optimisation: OptimSettings) -> Mapping[str, Tensor]:
    if optimisation.auxiliary is None:
        return {}
    losses = optimisation.auxiliary(_unwrapped(model))
    unknown = sorted(set(losses) ^ set(optimisation.auxiliary_weights))
    if unknown:
        raise ValueError(
            f"auxiliary losses: the model has {sorted(losses)}, the weights name "
            f"{sorted(optimisation.auxiliary_weights)}; give each a weight, 0 to ignore it"
        )
    return losses


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _synchronised(model: nn.Module, synchronise: bool) -> AbstractContextManager[None]:
    if isinstance(model, DistributedDataParallel) and not synchronise:
        return _no_sync(model)
    return nullcontext()


@contextmanager
def _no_sync(model: DistributedDataParallel) -> Iterator[None]:
    with model.no_sync():
        yield


def _collect_gradients(model: nn.Module, distributed: Parallel, *, averaged: bool) -> None:
    """Gradients become the sum over the processes of what each one's clips gave."""
    if distributed.world_size == 1:
        return
    if not averaged:
        distributed.sum_gradients(model)
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, float(distributed.world_size))


def _clip(model: nn.Module, clip_norm: float | None) -> Tensor:
    """The norm of all gradients, after which none is longer than `clip_norm`."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), clip_norm, norm)
    return norm


def _sum(
    passed: Sequence[_Passed], norm: Tensor, optimisation: OptimSettings, distributed: Parallel
) -> StepResult:
    # A process without a clip has no losses: the weights say which there are, in one order for all.
    weights = optimisation.auxiliary_weights if optimisation.auxiliary is not None else {}
    names = sorted(weights)
    zero = torch.zeros((), dtype=torch.float64, device=norm.device)
    *own, own_norm = torch.stack(
        [
            sum((one.losses.double().sum() for one in passed), zero),
            sum((one.correct.double() for one in passed), zero),
            *(sum((one.auxiliary[name].double() for one in passed), zero) for name in names),
            norm.double(),
        ]
    ).tolist()  # the only wait for the device in a step
    num_clips = sum(len(one.losses) for one in passed)
    clips, loss, correct, *sums = distributed.sum([num_clips, *own])
    auxiliary_losses = dict(zip(names, sums, strict=True))
    auxiliary = sum(weights[name] * value for name, value in auxiliary_losses.items())
    return StepResult(loss, auxiliary, correct, int(clips), own_norm, auxiliary_losses)


def _check_finite(result: StepResult, passed: Sequence[_Passed], moment: StepContext) -> None:
    values = {"loss": result.loss}
    values |= {f"{name} loss": value for name, value in result.auxiliary_losses.items()}
    values["gradient"] = result.gradient_norm
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if not wrong:
        return
    suspects: list[int] = []
    for one in passed:
        # A clip's own loss names the culprit; a gradient's could be any of them.
        guilty = ~one.losses.isfinite().cpu() if wrong[0] == "loss" else one.indices >= 0
        suspects += one.indices[guilty].unique().tolist()
    names = [f"{index} ({moment.describe(index)})" for index in suspects]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    raise NonFiniteError(
        f"epoch {moment.epoch + 1}, step {moment.step + 1}: the {wrong[0]} is not finite; samples "
        f"{', '.join(names[:8]) or 'of another process'}{more}. The weights are those of the step "
        "before. Try a lower learning rate, gradient clipping, or precision float32"
    )


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """The global random state at the beginning of a step: dropout and mixed clips are then the same
    in a resumed run, with no state to store."""
    numbers = (seed, epoch, step, rank)
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
