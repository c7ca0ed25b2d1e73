"""Notes for the user about the data of a run: what is missing, what failed, and what is slow."""

from math import ceil
from pathlib import Path

from videoattn.data.classes import class_notes
from videoattn.data.lists import Samples
from videoattn.data.loader import ClipLoader, num_cores
from videoattn.engine.failures import SKIPPED, read_failures
from videoattn.engine.state import TrainState
from videoattn.files import write_text
from videoattn.recipe.config import Config
from videoattn.recipe.console import show
from videoattn.recipe.objective import make_label_noise

NUM_FAILURES_SHOWN = 20

LARGE = 0.2
"""The share of the time spent waiting for data above which there is advice."""


def show_data_advice(config: Config, wait_share: float, loader: ClipLoader) -> None:
    """Shows the share of waiting, its cause, and a setting to try, if the share is large."""
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
        f"{100 * wait_share:.0f} % of the time was spent waiting for data: in {workers} loader "
        f"processes, a video took {1e3 * decode:.0f} ms to decode and {1e3 * transform:.0f} ms to "
        f"transform; try {advice}"
    )


def data_notes(config: Config, samples: dict[str, Samples], folder: Path) -> list[str]:
    """Returns notes about classes, wrong labels and missing videos, and lists these in files."""
    train = samples["train"]
    notes = class_notes(train, numbered=config.data.layout in ("list", "frames"))
    if (noise := make_label_noise(config, train)) is not None:
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


def show_skipped(folder: Path, state: TrainState, config: Config, num_videos: int) -> None:
    """Shows the number of videos that were skipped, and the first ones."""
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
