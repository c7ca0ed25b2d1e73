"""`videoattn train`: a recipe in, a run's folder out."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from videoattn.data.lists import Samples
from videoattn.engine.checkpoint import Checkpoint, CheckpointMeta
from videoattn.engine.failures import SKIPPED, read_failures
from videoattn.engine.finetune import FineTuning
from videoattn.engine.parallel import init_parallel
from videoattn.engine.plan import EpochPlan
from videoattn.engine.precision import resolve_precision
from videoattn.engine.stages import num_stages
from videoattn.engine.state import RunSettings
from videoattn.engine.train import TrainResult, Validation, fit
from videoattn.recipe import (
    load_initial_weights,
    make_fine_tuning,
    make_loader,
    make_mix,
    make_model,
    make_optimisation,
    make_optimizer,
    make_precise_norms,
    make_precision,
    make_samples,
    make_to_video,
    new_parameters,
)
from videoattn.recipe.config import Config
from videoattn.recipe.folder import RUNS, claim
from videoattn.recipe.load import load, to_dict
from videoattn.recipe.run import out


def train(
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    folder: Path | None = None,
) -> TrainResult:
    """Trains what the recipe says and writes the run to `folder` (runs/<name> unless given).

    Raises:
        ValueError: a wrong recipe or data set; a folder that holds a run already.
    """
    config = load(recipe, overrides)
    folder = folder or RUNS / config.name
    with init_parallel(device) as place, ExitStack() as stack:
        samples = make_samples(config.data, "train")
        tested = make_samples(config.data, "test")
        previous = stack.enter_context(
            claim(folder, config, place, resume=resume, overwrite=overwrite)
        )
        torch.manual_seed(config.seed)
        model = make_model(config.model, len(samples.class_names)).to(place.device)
        fine_tuning, notes = _begin(model, config, previous)
        precision, note = make_precision(config, model, place.device)
        notes += [note] if note else []
        batches = make_loader(config, "train", place, samples)
        steps_per_epoch = math.ceil(len(batches) / config.train.accumulate_steps)
        mix = make_mix(config.augment, len(samples.class_names), config.train.num_clips)
        stages = num_stages(model)
        settings = make_optimisation(config, steps_per_epoch, precision, mix, stages)
        if place.is_main:
            dtype = resolve_precision(precision, place.device)
            _introduce(config, folder, model, (samples, tested), f"{dtype} on {place.device}")
            for line in notes:
                out.print(f"note: {line}", markup=False)
        validation = None
        if config.train.validate_every:
            validation = Validation(
                make_loader(config, "test", place, tested),
                every_epochs=config.train.validate_every,
                max_views=config.test.batch_size,
            )
        plan = EpochPlan(
            config.train.num_epochs,
            config.train.stage_epochs,
            fine_tuning,
            make_precise_norms(config, model, place, samples),
        )
        fitted = fit(
            model,
            make_optimizer(model, config, fine_tuning),
            batches,
            to_video=make_to_video(config.clip, place.device),
            settings=settings,
            plan=plan,
            run=_run(config, folder, samples),
            validation=validation,
            parallel=place,
            resume=previous,
        )
        if place.is_main and fitted.num_skipped:
            _report_skipped(folder, fitted, len(samples), config.train.num_epochs)
        return fitted


def _report_skipped(folder: Path, fitted: TrainResult, num_listed: int, num_epochs: int) -> None:
    out.print(
        f"seen {fitted.num_seen:,} + skipped {fitted.num_skipped:,} of {num_listed:,} videos x "
        f"{num_epochs} epochs; {folder / SKIPPED} lists {len(fitted.failed):,} videos:",
        markup=False,
    )
    for failure in read_failures(folder / SKIPPED)[:20]:
        out.print(f"  {failure.path}: {failure.reason}", markup=False)
    if len(fitted.failed) > 20:
        out.print(f"  and {len(fitted.failed) - 20:,} more", markup=False)


def _begin(
    model: nn.Module, config: Config, previous: Checkpoint | None
) -> tuple[FineTuning | None, list[str]]:
    """Loads initial weights, where there are some; what is fine-tuned, and what to tell of it."""
    if config.model.weights is None:
        return make_fine_tuning(config, model, None), []
    if previous is not None:  # whose weights follow
        return make_fine_tuning(config, model, new_parameters(previous)), []
    new, notes = load_initial_weights(model, config)
    return make_fine_tuning(config, model, new), notes


def _run(config: Config, folder: Path, samples: Samples) -> RunSettings:
    values = to_dict(config)
    about: CheckpointMeta = {
        "config": values,
        "class_names": list(samples.class_names),
        "preprocessing": {**values["clip"], "test": values["test"]},
    }
    return RunSettings(
        folder,
        about,
        seed=config.seed,
        describe=lambda index: str(samples.path(index)),
        max_failures=config.data.max_failures,
        save_every_steps=config.train.save_every_steps,
        keep_epochs=config.train.keep_epochs,
    )


def _introduce(
    config: Config, folder: Path, model: nn.Module, samples: tuple[Samples, Samples], where: str
) -> None:
    attention = f" + {config.model.attention.name}" if config.model.attention.name else ""
    size = sum(p.numel() for p in model.parameters())
    out.print(
        f"{folder}: {config.model.name}{attention}, {size:,} parameters, {where}; "
        f"{len(samples[0]):,} training and {len(samples[1]):,} test videos of "
        f"{len(samples[0].class_names)} classes",
        markup=False,
    )
    told = {"training": "left out", "test": "counted as failed"}
    for (subset, what), listed in zip(told.items(), samples, strict=True):
        if listed.missing:
            names = folder / f"missing_{subset}.txt"
            names.write_text("".join(f"{name}\n" for name in listed.missing))
            out.print(
                f"note: {len(listed.missing):,} listed {subset} videos are missing, and {what}; "
                f"{names} names them",
                markup=False,
            )
