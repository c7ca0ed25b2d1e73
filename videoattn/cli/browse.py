"""`videoattn browse`: draws the clips that a recipe feeds to its network."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from videoattn.cli.arguments import Overrides, Recipe
from videoattn.data.dataset import Sample
from videoattn.data.lists import Label, Samples
from videoattn.data.loader import ClipLoader
from videoattn.engine.objective import multi_hot
from videoattn.engine.parallel import Parallel
from videoattn.engine.step import seed_step
from videoattn.errors import one_of
from videoattn.explain import label_frames, write_png
from videoattn.explain.sheet import Clip, draw_clips
from videoattn.files import require_suffix
from videoattn.recipe.config import AugmentConfig, Config, TestConfig
from videoattn.recipe.console import show
from videoattn.recipe.data import Subset, make_loader, make_samples, make_to_video
from videoattn.recipe.load import load
from videoattn.recipe.objective import make_mix

MIXED_STEPS = 4
"""Mixed clips are drawn from this many steps, because not every batch is mixed."""
MAX_VIEWS = 10
"""If a video has more views, only those of its middle clip are drawn."""

Fed = Iterator[tuple[Sample, Tensor, Tensor]]
"""Samples, each with its views as the network receives them (V, 3, T, H, W) and their targets."""


def command(
    recipe: Recipe,
    overrides: Overrides = None,
    split: Annotated[
        str, typer.Option(help="train: augmented training clips. test: every view of test videos.")
    ] = "train",
    num: Annotated[int, typer.Option(min=1, help="Number of videos.")] = 8,
    output: Annotated[
        Path | None, typer.Option("--out", help="A PNG file; NAME_SPLIT.png if not given.")
    ] = None,
) -> None:
    """Draw the clips that a recipe feeds to its network.

    Writes one picture with the label, frame numbers and times of each clip.
    """
    # Training clips are the clips of the first steps, with their crops and augmentation. Mixed
    # clips have the same pairs as in training, unless other videos of the batch fail. Test videos
    # are evenly spaced in the list, and each view is a row.
    one_of("--split", split, ["train", "test"])
    subset: Subset = "train" if split == "train" else "test"
    require_suffix(output, ".png")
    config = load(recipe, overrides or ())
    samples = make_samples(config.data, subset)
    loader = make_loader(config, subset, Parallel(), samples)
    views = _training if subset == "train" else _testing
    fed = list(islice(views(config, loader, num), num))
    if not fed:
        raise ValueError(
            "no video could be decoded; find broken files with videoattn prepare verify"
        )
    section = "augment" if subset == "train" else "test"
    legend = ["above each frame: its number in the video, and its time"]
    if subset == "train" and config.augment.mixup + config.augment.cutmix:
        legend.append("mixed clips: both labels; frame numbers and file of the first")
    if subset == "test" and config.test.num_clips * max(config.test.num_crops, 1) > MAX_VIEWS:
        legend.append("the views of the middle clip")
    if config.clip.still_frame:
        legend.append("every clip is its middle frame, repeated")
    sheet = draw_clips(
        [clip for sample in fed for clip in _rows(config, samples, *sample)],
        title=f"{config.name}: the network's input in {split}ing",
        details=_input(config, subset, f"{len(fed)} of {len(samples):,} videos"),
        description=f"{section}: {_changes(getattr(config, section))}",
        legend=legend,
    )
    output = output or Path(f"{config.name}_{split}.png")
    write_png(output, sheet)
    show(output)


def _training(config: Config, loader: ClipLoader, num_videos: int) -> Fed:
    num_classes, num_clips = len(loader.dataset.samples.class_names), config.train.num_clips
    to_video = make_to_video(config.clip, torch.device("cpu"))
    mix = make_mix(config.augment, num_classes, num_clips)
    # In later batches of a step, the choice of mixed clips depends on the network's random draws.
    batches = loader.batches(0)[:: config.train.accumulate_steps]
    each = num_videos if mix is None else ceil(num_videos / min(MIXED_STEPS, len(batches)))
    for step, indices in enumerate(batches):
        # A clip is mixed with the one before it in its batch, the first with the last.
        last = indices[each:][-1:] if mix is not None else []
        batch = list(_decode(loader, indices[:each] + last))
        if not batch:
            continue
        video = to_video(torch.cat([sample.frames for sample in batch]))
        labels = loader.dataset.samples.target([sample.label for sample in batch])
        labels = labels.repeat_interleave(num_clips, dim=0)
        target = multi_hot(labels, num_classes)
        if mix is not None:
            seed_step(config.seed, 0, step, 0)
            video, target = mix(video, labels)
        fed = zip(batch, video.split(num_clips), target.split(num_clips), strict=True)
        yield from islice(fed, each)


def _testing(config: Config, loader: ClipLoader, num_videos: int) -> Fed:
    to_video = make_to_video(config.clip, torch.device("cpu"))
    samples = loader.dataset.samples
    count = min(num_videos, len(samples))
    indices = np.linspace(0, len(samples) - 1, count).round().astype(int).tolist()
    for sample in _decode(loader, indices):
        yield sample, to_video(sample.frames), torch.zeros(len(sample.frames), 1)


def _decode(loader: ClipLoader, indices: Sequence[int]) -> Iterator[Sample]:
    for index in indices:
        item = loader.dataset[0, index]
        if isinstance(item, Sample):
            yield item
        else:
            show(f"failed: {item.path}: {item.reason}")


def _rows(
    config: Config, samples: Samples, sample: Sample, videos: Tensor, targets: Tensor
) -> Iterator[Clip]:
    mean, std = (torch.tensor(c).view(3, 1, 1, 1) for c in (config.clip.mean, config.clip.std))
    num_clips, num_views = len(sample.numbers), len(videos)
    num_crops = num_views // num_clips
    clips = range(num_clips) if num_views <= MAX_VIEWS else [num_clips // 2]
    for view in (clip * num_crops + crop for clip in clips for crop in range(num_crops)):
        clip, crop = divmod(view, num_crops)
        mirrored = sample.mirrored or (num_crops == 10 and crop >= 5)
        details = [
            f"clip {clip + 1} of {num_clips}" if num_clips > 1 else "",
            f"crop {crop + 1} of {num_crops}" if num_crops > 1 else "",
            "mirrored" if mirrored else "",
            samples.paths[sample.index],
        ]
        # Undo the normalization.
        shown = ((videos[view] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        yield Clip(
            shown.transpose(0, 1),
            _label(targets[view], sample.label, samples.class_names),
            "  ·  ".join(filter(None, details)),
            label_frames(sample.numbers[clip].tolist(), sample.fps),
        )


def _label(target: Tensor, own: Label, class_names: Sequence[str]) -> str:
    """Returns the classes of the video, then those of the clip that is mixed into it."""
    if own in ((), -1):
        return "no label"
    first = own if isinstance(own, tuple) else (own,)
    others = [label for label in target.nonzero().flatten().tolist() if label not in first]
    if not others:
        return "  +  ".join(class_names[label] for label in first)
    return "  +  ".join(
        f"{class_names[label]} {100 * float(target[label]):.0f} %" for label in (*first, *others)
    )


def _input(config: Config, split: Subset, videos: str) -> str:
    clip, test = config.clip, config.test
    height, width = config.test_size if split == "test" else (clip.height, clip.width)
    apart = f", {clip.frame_stride} apart" if clip.sampling == "dense" else f" ({clip.sampling})"
    size = f"{height} \u00d7 {width} pixels"
    if split == "test" and not test.num_crops:
        size = f"whole frames, short side {test.short_side} pixels"
    return f"{videos}  ·  {clip.num_frames} frames{apart}  ·  {size}"


def _changes(settings: AugmentConfig | TestConfig) -> str:
    """Returns the settings that differ from the defaults, as key=value."""
    defaults = asdict(type(settings)())
    changes = (f"{key}={x}" for key, x in asdict(settings).items() if x != defaults[key])
    return ", ".join(changes) or "defaults"
