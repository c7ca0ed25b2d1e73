"""Assembles a run from a recipe, and trains it."""

from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from videoattn.data.classes import class_notes, class_sizes
from videoattn.data.dataset import ClipDataset
from videoattn.data.lists import Samples
from videoattn.data.loader import ClipLoader, num_cores
from videoattn.engine.batches import ToVideo
from videoattn.engine.checkpoint import LAST, Checkpoint, CheckpointMeta
from videoattn.engine.failures import SKIPPED, read_failures
from videoattn.engine.parallel import Parallel, init_parallel
from videoattn.engine.plan import EpochPlan, Validation, num_stages
from videoattn.engine.precision import resolve_precision
from videoattn.engine.signals import StoppedError, StopSignals
from videoattn.engine.state import RunSettings, TrainState
from videoattn.engine.step import OptimSettings
from videoattn.engine.train import TrainResult, fit
from videoattn.files import write_text
from videoattn.recipe import objective, training
from videoattn.recipe.config import Config, section
from videoattn.recipe.console import show
from videoattn.recipe.data import make_loader, make_to_video, read_samples
from videoattn.recipe.folder import Resume, claim, earlier_settings, folder_of
from videoattn.recipe.initial import initialize
from videoattn.recipe.load import load, to_dict
from videoattn.recipe.memory import recall_counts, remember_counts
from videoattn.recipe.model import make_model

NUM_FAILURES_SHOWN = 20

LARGE = 0.2
"""The share of time spent waiting for data above which `show_data_advice` prints advice."""


@dataclass(frozen=True)
class Experiment:
    """The objects of a run, on their device and ready to train.

    Args:
        samples: The videos of "train", and of "test" if the run validates.
        preprocess: Function from frames (N, T, C, H, W) uint8 to the input of the network.
        test_batches: None if the run does not validate.
        notes: Sentences to show to the user before the run starts.
    """

    config: Config
    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: OptimSettings
    plan: EpochPlan
    samples: dict[str, Samples]
    train_batches: ClipLoader
    test_batches: ClipLoader | None
    preprocess: ToVideo
    notes: list[str]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.samples["train"].class_names

    @property
    def video_files(self) -> list[ClipDataset]:
        """The datasets whose samples are single files; frames are counted on a file's first use."""
        if self.config.data.layout in ("shards", "frames"):
            return []
        loaders = (self.train_batches, self.test_batches)
        return [loader.dataset for loader in loaders if loader is not None]

    @property
    def meta(self) -> CheckpointMeta:
        """The metadata of the run's checkpoints, which prediction needs besides the weights."""
        values = to_dict(self.config)
        return {
            "config": values,
            "class_names": list(self.class_names),
            "preprocessing": {**values["clip"], "test": values["test"]},
        }

    def fit(
        self, folder: Path, parallel: Parallel, previous: Checkpoint | None, stop: StopSignals
    ) -> TrainResult:
        """Trains the model, and writes checkpoints and metrics to the folder."""
        train = self.config.train
        validation = None
        if self.test_batches is not None:
            validation = Validation(
                self.test_batches,
                every_epochs=train.validate_every,
                max_views=self.config.test.batch_size,
                patience=train.patience,
                objective=objective.test_objective(train),
            )
        run = RunSettings(
            folder,
            self.meta,
            seed=self.config.seed,
            describe=lambda index: str(self.samples["train"].path(index)),
            max_failures=self.config.data.max_failures,
            save_every_steps=train.save_every_steps,
            keep_epochs=train.keep_epochs,
            trackers=training.make_trackers(self.config, folder) if parallel.is_main else (),
            stop=stop,
        )
        with section("train"):
            return fit(
                self.model,
                self.optimizer,
                self.train_batches,
                to_video=self.preprocess,
                settings=objective.with_frame_losses(self.settings, self.config, self.model),
                plan=self.plan,
                run=run,
                validation=validation,
                parallel=parallel,
                resume=previous,
            )


def train(
    recipe: str | Path | dict[str, Any],
    *overrides: str,
    resume: Resume = False,
    overwrite: bool = False,
    device: str = "auto",
    folder: Path | None = None,
) -> TrainResult:
    """Trains the network of a recipe, as the command `videoattn train` does.

    Args:
        recipe: A YAML file, or its content as nested dictionaries.
        overrides: Changes to the recipe, such as "train.lr=0.02".
        resume: Continue the run in the folder from its last checkpoint; "auto": if there is one.
        overwrite: Erase an earlier run in the folder.
        device: auto, cpu, cuda or cuda:N.
        folder: Output folder; by default runs/<name>, or the folder of the config.yaml to resume.

    Raises:
        ValueError: If the recipe or the dataset is wrong, or the folder already holds a run.
        DecodeError: If a training video cannot be decoded and the recipe does not skip it.
        StoppedError: After SIGTERM or SIGUSR1, once the checkpoint is written.
    """
    notes: list[str] = []
    config = load(recipe, overrides, notes=notes)
    folder = folder or folder_of(recipe, config, resume)
    if resume and (folder / LAST).exists() and (words := earlier_settings(folder)):
        config = load(recipe, [*words, *overrides])
    with init_parallel(device) as parallel, ExitStack() as stack:
        samples = read_samples(config)
        previous = stack.enter_context(
            claim(folder, config, parallel, resume=resume, overwrite=overwrite)
        )
        experiment = assemble(config, parallel, previous, samples=samples)
        datasets = experiment.video_files
        recall_counts(datasets)
        if parallel.is_main:
            _show_start(experiment, parallel, folder, notes)
            stack.callback(remember_counts, datasets)
        try:
            result = experiment.fit(folder, parallel, previous, stack.enter_context(StopSignals()))
        except StoppedError as error:
            raise StoppedError(
                f"{error}; {folder / LAST} is complete: continue with --resume"
            ) from error
        if parallel.is_main:
            show_data_advice(config, result.wait_share, experiment.train_batches)
            if result.state.num_skipped:
                _show_skipped(folder, result.state, config, len(samples["train"]))
        return result


def assemble(
    config: Config,
    parallel: Parallel,
    previous: Checkpoint | None = None,
    *,
    samples: dict[str, Samples] | None = None,
) -> Experiment:
    """Builds all objects of a run from its config.

    Args:
        previous: The checkpoint that the run resumes from; its weights are loaded by `fit`.
        samples: The result of `read_samples`, if it has been called already.

    Raises:
        ValueError: If a setting or the dataset is wrong. The message names the key.
    """
    samples = samples or read_samples(config)
    num_classes = len(samples["train"].class_names)
    torch.manual_seed(config.seed)
    model = make_model(config.model, num_classes).to(parallel.device)
    new, notes = initialize(model, config, previous)
    training.synchronize_norms(config, model, parallel)
    fine_tuning = training.make_fine_tuning(config, model, new)
    precision, note = training.make_precision(config, model, parallel.device)
    notes += [note] if note else []
    batches = make_loader(config, "train", parallel, samples["train"])
    steps_per_epoch = ceil(len(batches) / config.train.accumulate_steps)
    mix = objective.make_mix(config.augment, num_classes, config.train.num_clips)
    weights = objective.make_class_weights(config, samples["train"], parallel.device)
    precise_bn = training.make_precise_bn(config, model, parallel, samples["train"])
    epochs, stages = config.train.num_epochs, config.train.stage_epochs
    with section("train"):
        plan = EpochPlan(epochs, stages, fine_tuning, precise_bn, config.train.ema)
    validates = config.train.validate_every
    test_batches = make_loader(config, "test", parallel, samples["test"]) if validates else None
    return Experiment(
        config,
        model,
        training.make_optimizer(model, config, fine_tuning.backbone),
        training.make_settings(config, steps_per_epoch, precision, mix, num_stages(model), weights),
        plan,
        samples,
        batches,
        test_batches,
        make_to_video(config.clip, parallel.device),
        notes,
    )


def _show_start(experiment: Experiment, parallel: Parallel, folder: Path, notes: list[str]) -> None:
    config, samples = experiment.config, experiment.samples
    attention = "".join(f" + {system.name}" for system in config.model.attention.systems)
    size = sum(parameter.numel() for parameter in experiment.model.parameters())
    dtype = str(resolve_precision(experiment.settings.precision, parallel.device))
    if parallel.device.type == "cuda" and dtype == "torch.float32":
        dtype += " (TF32 in convolutions)"
    test = f" and {len(samples['test']):,} test" if "test" in samples else ""
    show(
        f"{folder}: {config.model.name}{attention}, {size:,} parameters, {dtype} on "
        f"{parallel.device}; {len(samples['train']):,} training{test} videos of "
        f"{len(experiment.class_names)} classes"
    )
    for line in class_sizes(samples["train"]):
        show(line)
    for note in [*notes, *_data_notes(config, samples, folder), *experiment.notes]:
        show(f"note: {note}")


def show_data_advice(config: Config, wait_share: float, loader: ClipLoader) -> None:
    """Prints the share of time spent waiting, its cause and a setting to try, if above `LARGE`."""
    decode, transform = loader.dataset.seconds_per_video()
    if wait_share <= LARGE or not decode + transform:
        return
    workers, cores = config.data.num_workers, num_cores() // loader.world_size
    needed = min(ceil(max(workers, 1) / (1 - min(wait_share, 0.99))), cores)
    if needed > workers:
        advice = f"data.num_workers={needed} ({cores} cores for each process)"
    elif decode < transform and (config.augment.rand_augment or config.augment.color_jitter):
        advice = "fewer color augmentations (augment.rand_augment, augment.color_jitter)"
    else:
        advice = "train.num_clips=2, or smaller copies of the videos (`prepare reencode`)"
    show(
        f"{100 * wait_share:.0f} % of the time was spent waiting for data: with data.num_workers="
        f"{workers}, a video took {1e3 * decode:.0f} ms to decode and {1e3 * transform:.0f} ms to "
        f"transform; try {advice}"
    )


def _data_notes(config: Config, samples: dict[str, Samples], folder: Path) -> list[str]:
    """Returns notes about classes, wrong labels and missing videos; writes these to files."""
    train = samples["train"]
    notes = class_notes(train, numbered=config.data.layout in ("list", "frames"))
    if (noise := objective.make_label_noise(config, train)) is not None:
        wrong = f"{noise.count(len(train)):,} of {len(train):,} training labels"
        notes.append(f"data.label_noise: {wrong} are replaced by wrong ones")
    effects = {"train": ("training", "left out"), "test": ("test", "counted as failed")}
    for subset, (split, effect) in effects.items():
        if subset in samples and (missing := samples[subset].missing):
            file = folder / f"missing_{split}.txt"
            write_text(file, "".join(f"{path}\n" for path in missing))
            notes.append(
                f"{len(missing):,} listed {split} videos are missing, and {effect}; {file} names "
                "them"
            )
    return notes


def _show_skipped(folder: Path, state: TrainState, config: Config, num_videos: int) -> None:
    """Prints the number of videos that were skipped, and the first `NUM_FAILURES_SHOWN`."""
    num_failed = len(state.failed)
    show(
        f"seen {state.num_seen:,} + skipped {state.num_skipped:,} of "
        f"{num_videos:,} videos x {config.train.num_epochs} epochs; "
        f"{folder / SKIPPED} lists {num_failed:,} videos:"
    )
    for failure in read_failures(folder / SKIPPED)[:NUM_FAILURES_SHOWN]:
        show(f"  {failure.path}: {failure.reason}")
    if num_failed > NUM_FAILURES_SHOWN:
        show(f"  and {num_failed - NUM_FAILURES_SHOWN:,} more")
