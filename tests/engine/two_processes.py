"""One of the processes of test_distributed.py, started with the environment of torchrun.

Writes its results as `rank-R.pt` into the folder of its first argument. With "uneven" as a second
argument, it trains only once.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tests.engine.fakes import (
    FakeBatches,
    PoisonedNet,
    about,
    norms,
    optim_settings,
    run_in,
    sgd,
    tiny_net,
    to_video,
)
from videoattn.attention.blocks.hard_crop import HardCrop
from videoattn.engine.checkpoint import load
from videoattn.engine.compiled import Compile
from videoattn.engine.evaluate import Evaluation, evaluate, score_in_order
from videoattn.engine.failures import TooManyFailuresError
from videoattn.engine.objective import CrossEntropy
from videoattn.engine.parallel import Parallel, init_parallel
from videoattn.engine.plan import EpochPlan, FineTuning, Validation
from videoattn.engine.precise import PreciseBatchNorm
from videoattn.engine.step import NonFiniteError
from videoattn.engine.train import fit

State = dict[str, torch.Tensor]


def batches_of(group: Parallel, *, num_samples: int, batch_size: int) -> FakeBatches:
    """Returns batches with `batch_size` clips per step, summed over the ranks."""
    return FakeBatches(
        num_samples=num_samples,
        batch_size=batch_size // group.world_size,
        rank=group.rank,
        world_size=group.world_size,
    )


def trained(
    group: Parallel,
    folder: Path,
    batches: FakeBatches,
    *,
    accumulate_steps: int = 1,
    resume: bool = False,
    num_epochs: int = 2,
    auxiliary: bool = False,
    compile: Compile = "off",
    ema_decay: float | None = None,
) -> State:
    model = tiny_net(seed=group.rank)  # the wrapper copies the weights of rank 0
    thirteen = replace(batches_of(group, num_samples=13, batch_size=4), num_views=2, shuffle=False)
    settings = replace(optim_settings(accumulate_steps=accumulate_steps), compile=compile)
    if auxiliary:
        weights = {"wide": 0.5, "deep": 0.25}
        settings = replace(settings, auxiliary=norms, auxiliary_weights=weights)
    fit(
        model,
        sgd(model),
        batches,
        to_video=to_video,
        settings=settings,
        plan=EpochPlan(num_epochs, ema_decay=ema_decay),
        run=replace(run_in(folder), max_failures=1),
        validation=Validation(thirteen),
        parallel=group,
        resume=load(folder / "checkpoint-last.pt") if resume else None,
    )
    return {name: value.clone() for name, value in model.state_dict().items()}


def thirteen_clips(group: Parallel) -> Evaluation:
    batches = replace(
        batches_of(group, num_samples=13, batch_size=4), num_views=2, failing=(6,), shuffle=False
    )
    return evaluate(tiny_net(), batches, to_video=to_video, precision="float32", parallel=group)


def in_order(group: Parallel) -> list[list[tuple[int, list[float]]]]:
    """Returns the steps of `score_in_order`: each video's index and scores (none if it failed)."""
    batches = replace(
        batches_of(group, num_samples=13, batch_size=4), num_views=2, failing=(6,), shuffle=False
    )
    steps = score_in_order(
        tiny_net(),
        batches,
        to_video=to_video,
        objective=CrossEntropy(),
        precision="float32",
        parallel=group,
    )
    return [
        [
            (video.index, [] if video.probabilities is None else video.probabilities.tolist())
            for video in step
        ]
        for step in steps
    ]


def main_refuses(group: Parallel) -> str:
    def refuse() -> None:
        raise ValueError(f"rank {group.rank} refuses")

    try:
        group.from_main(refuse)
    except ValueError as error:
        return str(error)
    return ""


def refusal(group: Parallel, folder: Path, model: nn.Module, batches: FakeBatches) -> str:
    """Returns the message of the error that ends a run."""
    try:
        fit(
            model,
            sgd(model),
            batches,
            to_video=to_video,
            settings=optim_settings(),
            plan=EpochPlan(1),
            run=replace(run_in(folder), max_failures=1),
            parallel=group,
        )
    except (NonFiniteError, TooManyFailuresError) as error:
        return str(error)
    return ""


def staged(group: Parallel, folder: Path, *, stop: bool = False, resume: bool = False) -> State:
    """Trains two branches and their fusion for an epoch each; `stop` ends it in the second."""
    torch.manual_seed(group.rank)
    model = HardCrop(tiny_net(seed=group.rank), after="conv", pool="backbone")
    batches = batches_of(group, num_samples=9, batch_size=8)  # the last step has 1 and 0
    try:
        fit(
            model,
            sgd(model),
            replace(batches, stop_at=(1, 1) if stop else None),
            to_video=to_video,
            settings=optim_settings(),
            plan=EpochPlan(3),
            run=replace(run_in(folder), keep_epochs=1, save_every_steps=1),
            parallel=group,
            resume=load(folder / "checkpoint-last.pt") if resume else None,
        )
    except KeyboardInterrupt:
        group.barrier()
    return {name: value.clone() for name, value in model.state_dict().items()}


def fine_tuned(group: Parallel, folder: Path) -> State:
    """Trains with a frozen norm, and a convolution that is frozen in the first epoch."""
    torch.manual_seed(group.rank)
    model = nn.Sequential(nn.BatchNorm3d(3), tiny_net(seed=group.rank))
    names = frozenset(name for name, _ in model.named_parameters() if "fc" not in name)
    plan = EpochPlan(2, fine_tuning=FineTuning(names, 1, True))
    fit(
        model,
        sgd(model),
        batches_of(group, num_samples=9, batch_size=8),  # the last step has 1 and 0
        to_video=to_video,
        settings=optim_settings(),
        plan=plan,
        run=replace(run_in(folder), keep_epochs=1),
        validation=Validation(batches_of(group, num_samples=4, batch_size=4)),
        parallel=group,
    )
    return {name: value.clone() for name, value in model.state_dict().items()}


def averaged_statistics(
    group: Parallel, folder: Path, *, save_every_steps: int | None = None
) -> State:
    """Trains batch norms, whose statistics differ between ranks until they are averaged."""
    model = nn.Sequential(nn.BatchNorm3d(3), tiny_net())
    fit(
        model,
        sgd(model),
        batches_of(group, num_samples=24, batch_size=8),
        to_video=to_video,
        settings=optim_settings(),
        plan=EpochPlan(2),
        run=run_in(folder, save_every_steps=save_every_steps),
        parallel=group,
    )
    return dict(model.state_dict())


def precise_statistics(group: Parallel) -> State:
    model = nn.Sequential(nn.BatchNorm3d(3), tiny_net()).train()
    batches = batches_of(group, num_samples=16, batch_size=4)
    PreciseBatchNorm(batches, num_clips=8).recompute(
        model, to_video=to_video, precision="float32", parallel=group
    )
    return {name: value for name, value in model.state_dict().items() if "running" in name}


def everything(group: Parallel, folder: Path) -> dict[str, object]:
    uneven = batches_of(group, num_samples=13, batch_size=8)  # the last step has 3 and 2
    idle = batches_of(group, num_samples=9, batch_size=8)  # the last step has 1 and 0
    poisoned = replace(batches_of(group, num_samples=8, batch_size=8), shuffle=False)
    torch.manual_seed(0)
    before = trained(group, folder / "resumed", uneven, num_epochs=1)
    group.barrier()
    evaluation = thirteen_clips(group)
    return {
        "rank": group.rank,
        "folder": str(folder),
        "gathered": group.gather(group.rank),
        "of the main rank": group.from_main(lambda: [group.rank, None]),
        "refused": main_refuses(group),
        "in order": in_order(group),
        "uneven": trained(group, folder / "uneven", uneven),
        "resumed": trained(group, folder / "resumed", uneven, resume=True),
        "before": before,
        "idle": trained(group, folder / "idle", idle),
        "failing": trained(group, folder / "failing", replace(uneven, failing=(5,))),
        "auxiliary": trained(group, folder / "auxiliary", idle, auxiliary=True),
        "compiled": trained(group, folder / "compiled", uneven, compile="on"),
        "averaged": trained(group, folder / "averaged", idle, ema_decay=0.7),
        "accumulated": trained(group, folder / "accumulated", idle, accumulate_steps=2),
        "staged": staged(group, folder / "staged"),
        "stopped": staged(group, folder / "stopped", stop=True),
        "staged, resumed": staged(group, folder / "stopped", resume=True),
        "probabilities": evaluation.probabilities,
        "indices": evaluation.indices,
        "accuracies": [evaluation.clip_accuracy, evaluation.video_accuracy, evaluation.loss],
        "failed": [failure.index for failure in evaluation.failures],
        "fine-tuned": fine_tuned(group, folder / "fine-tuned"),
        "statistics": averaged_statistics(group, folder / "statistics"),
        "saved": averaged_statistics(group, folder / "saved", save_every_steps=1),
        "precise": precise_statistics(group),
        "not finite": refusal(
            group, folder / "poisoned", PoisonedNet(), replace(poisoned, blank=(3,))
        ),
        "lost": refusal(group, folder / "lost", tiny_net(), replace(poisoned, failing=(2, 5))),
        "class_names": about()["class_names"],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with init_parallel("cpu", timeout_seconds=60) as this:
        if sys.argv[2:] == ["uneven"]:
            uneven = batches_of(this, num_samples=13, batch_size=8)
            results: dict[str, object] = {"uneven": trained(this, folder / "uneven", uneven)}
        else:
            results = everything(this, folder)
        torch.save(results, folder / f"rank-{this.rank}.pt")
