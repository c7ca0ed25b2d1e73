"""`videoattn browse`: a sheet of what the network will see."""

from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from videoattn.data.dataset import Sample
from videoattn.data.lists import Samples
from videoattn.data.loader import ClipLoader
from videoattn.engine.parallel import Parallel
from videoattn.engine.step import seed_step
from videoattn.explain.contact import Clip, draw_clips
from videoattn.explain.marks import PNG_LEVEL
from videoattn.explain.page import label_frames
from videoattn.recipe.config import Config
from videoattn.recipe.console import console as out
from videoattn.recipe.data import Subset, make_loader, make_mix, make_samples, make_to_video
from videoattn.recipe.load import load
from videoattn.types import Frames

MIXED_STEPS = 4
"""Where clips are mixed, so many steps are drawn from: not all batches are mixed."""
MOST_VIEWS = 10
"""Of a video: with more, those of its middle clip are drawn."""


def browse(
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    split: str = "train",
    num_videos: int = 8,
    output: Path | None = None,
) -> Path:
    """Draws the clips of some videos, as the network of a recipe is given them, on one sheet (PNG).

    Of training those that its first steps see: the same frames, crops and changes, and where clips
    are mixed the same pairs (unless others of the batch fail), with the shares of both labels. Of
    the test part videos from all over the list, each view a row.

    split: train or test. output: a file; <name>_<split>.png unless given.

    Raises:
        ValueError: a wrong recipe or data set; none of the videos can be decoded.
        DecodeError: a video that cannot be decoded, in training where data.on_error is raise.
    """
    subset = _subset(split)
    config = load(recipe, overrides)
    samples = make_samples(config.data, subset)
    loader = make_loader(config, subset, Parallel(), samples)
    views = _training if subset == "train" else _testing
    clips: list[Clip] = []
    drawn = 0
    for sample, videos, targets in islice(views(config, loader, num_videos), num_videos):
        clips += _rows(config, samples, sample, videos, targets)
        drawn += 1
    if not clips:
        raise ValueError("none of the videos could be decoded; videoattn prepare verify names all")
    sheet = draw_clips(
        clips,
        title=f"{config.name}: what {'training' if subset == 'train' else 'testing'} sees",
        details=_input(config, subset, f"{drawn} of {len(samples):,} videos"),
        description=_augmentation(config) if subset == "train" else _views(config),
        legend=_legend(config, subset),
    )
    output = output or Path(f"{config.name}_{split}.png")
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output, compress_level=PNG_LEVEL)
    out.print(str(output), markup=False)
    return output


def _subset(split: str) -> Subset:
    subsets: dict[str, Subset] = {"train": "train", "test": "test"}
    if split not in subsets:
        raise ValueError(f"--split: got {split!r}; choose train or test")
    return subsets[split]


Seen = Iterator[tuple[Sample, Tensor, Tensor]]
"""A sample; its views as the network sees them, (V, 3, T, H, W); each view's class shares."""


def _training(config: Config, loader: ClipLoader, num_videos: int) -> Seen:
    num_classes, num_clips = len(loader.dataset.samples.class_names), config.train.num_clips
    to_video = make_to_video(config.clip, torch.device("cpu"))
    mix = make_mix(config.augment, num_classes, num_clips)
    # Of batches after a step's first, what is mixed depends on what the network has drawn.
    batches = loader.batches(0)[:: config.train.accumulate_steps]
    each = num_videos if mix is None else ceil(num_videos / min(MIXED_STEPS, len(batches)))
    for step, indices in enumerate(batches):
        # A clip is mixed with the one before it in its batch, the first with the last.
        last = indices[each:][-1:] if mix is not None else []
        batch = list(_decode(loader, indices[:each] + last))
        if not batch:
            continue
        video = to_video(torch.cat([sample.frames for sample in batch]))
        labels = torch.tensor([sample.label for sample in batch]).repeat_interleave(num_clips)
        target = nn.functional.one_hot(labels, num_classes).float()
        if mix is not None:
            seed_step(config.seed, 0, step, 0)
            video, target = mix(video, labels)
        seen = zip(batch, video.split(num_clips), target.split(num_clips), strict=True)
        yield from islice(seen, each)


def _testing(config: Config, loader: ClipLoader, num_videos: int) -> Seen:
    to_video = make_to_video(config.clip, torch.device("cpu"))
    samples = loader.dataset.samples
    places = np.linspace(0, len(samples) - 1, min(num_videos, len(samples))).round().astype(int)
    for sample in _decode(loader, places.tolist()):
        yield sample, to_video(sample.frames), torch.zeros(len(sample.frames), 1)


def _decode(loader: ClipLoader, indices: Sequence[int]) -> Iterator[Sample]:
    for index in indices:
        item = loader.dataset[0, index]
        if isinstance(item, Sample):
            yield item
        else:
            out.print(f"failed: {item.path}: {item.reason}", markup=False)


def _rows(
    config: Config, samples: Samples, sample: Sample, videos: Tensor, targets: Tensor
) -> Iterator[Clip]:
    num_clips, num_views = len(sample.numbers), len(videos)
    num_crops = num_views // num_clips
    clips = range(num_clips) if num_views <= MOST_VIEWS else [num_clips // 2]
    for view in (clip * num_crops + crop for clip in clips for crop in range(num_crops)):
        clip, crop = divmod(view, num_crops)
        mirrored = sample.mirrored or (num_crops == 10 and crop >= 5)
        details = [
            f"clip {clip + 1} of {num_clips}" if num_clips > 1 else "",
            f"crop {crop + 1} of {num_crops}" if num_crops > 1 else "",
            "mirrored" if mirrored else "",
            samples.paths[sample.index],
        ]
        yield Clip(
            _shown(videos[view], config),
            _label(targets[view], sample.label, samples.class_names),
            "  ·  ".join(filter(None, details)),
            label_frames(videos.shape[2], sample.numbers[clip].tolist(), sample.fps),
        )


def _shown(video: Tensor, config: Config) -> Frames:
    """The colours that were normalized: (3, T, H, W) -> (T, 3, H, W)."""
    mean, std = (torch.tensor(c).view(3, 1, 1, 1) for c in (config.clip.mean, config.clip.std))
    return ((video * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).transpose(0, 1)


def _label(target: Tensor, own: int, class_names: Sequence[str]) -> str:
    """The video's own first, then that of what is mixed in."""
    others = [label for label in target.nonzero().flatten().tolist() if label != own]
    if own < 0:
        return "no label"
    if not others:
        return class_names[own]
    return "  +  ".join(
        f"{class_names[label]} {100 * float(target[label]):.0f} %" for label in (own, *others)
    )


def _input(config: Config, split: Subset, videos: str) -> str:
    clip, test = config.clip, config.test
    height, width = clip.height, clip.width
    if split == "test":
        height, width = test.height or height, test.width or width
    frames = f"{clip.num_frames} frames"
    if clip.sampling == "dense":
        frames += f", {clip.frame_stride} apart"
    else:
        frames += f" ({clip.sampling})"
    size = f"{height} \u00d7 {width} pixels"
    if split == "test" and not test.num_crops:
        size = f"whole frames, short side {test.short_side} pixels"
    return f"{videos}  ·  {frames}  ·  {size}"


def _augmentation(config: Config) -> str:
    augment = config.augment
    crops = {
        "area": f"crop {augment.area[0]:g} to {augment.area[1]:g} of the frame's area",
        "short_side": f"short side {augment.short_side[0]} to {augment.short_side[1]}, random crop",
        "multi_scale": f"crop at 13 places, scales {', '.join(f'{s:g}' for s in augment.scales)}",
    }
    strength = augment.rand_augment_magnitude
    parts = [
        crops[augment.crop],
        "half are mirrored" if augment.flip else "none is mirrored",
        f"colours \u00b1 {augment.color_jitter:g}" if augment.color_jitter else "",
        f"{augment.rand_augment} of RandAugment at {strength}" if augment.rand_augment else "",
        *(
            f"{100 * share:g} % {what}"
            for what, share in (
                ("grey", augment.grayscale),
                ("partly erased", augment.erase),
                ("mixup", augment.mixup),
                ("cutmix", augment.cutmix),
            )
            if share
        ),
    ]
    return "Drawn for each clip: " + ", ".join(filter(None, parts))


def _views(config: Config) -> str:
    test = config.test
    crops = {0: "uncut", 1: "centre crop", 3: "three crops", 10: "five crops and their mirrors"}
    clips = f"{test.num_clips} clips" if test.num_clips > 1 else "1 clip"
    views = test.num_clips * max(test.num_crops, 1)
    more = f"; the middle clip is shown of {views} views" if views > MOST_VIEWS else ""
    return f"Of each video {clips}, {crops[test.num_crops]}{more}"


def _legend(config: Config, split: Subset) -> list[str]:
    parts = ["above each frame: its number in the video, and its time"]
    if split == "train" and config.augment.mixup + config.augment.cutmix:
        parts.append("mixed clips: both labels; numbers and file are those of the first")
    if config.clip.still_frame:
        parts.append("every clip is its middle frame, repeated")
    return parts
