"""Builds the datasets, transforms and loaders of a recipe."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from videoattn.data import lists
from videoattn.data.dataset import ClipDataset
from videoattn.data.decode import check_decoder, decode
from videoattn.data.lists import Missing, Samples
from videoattn.data.lists.plain import Columns
from videoattn.data.loader import ClipLoader
from videoattn.data.sampling import Sampler, repeated, train_sampler, view_sampler
from videoattn.data.shards import ShardDataset, Shards, open_shards
from videoattn.data.transforms import (
    AreaCrop,
    CropBox,
    TestTransform,
    TrainTransform,
    augment,
    to_video,
)
from videoattn.data.transforms.mirror import Mirror, direction_pairs
from videoattn.engine.batches import ToVideo
from videoattn.engine.parallel import Parallel
from videoattn.recipe.config import ClipConfig, Config, DataConfig, section
from videoattn.recipe.objective import make_label_noise, sampling_exponent
from videoattn.recipe.packaged import find_file
from videoattn.types import Frames

Subset = Literal["train", "test"]


def make_samples(config: DataConfig, subset: Subset, missing: Missing | None = None) -> Samples:
    """Returns the videos and labels of the training or test split.

    Args:
        missing: How to treat videos that do not exist. By default, `on_error="skip"` drops them
            from training and counts them as failed in evaluation.
    """
    if missing is None:
        skipped: Missing = "drop" if subset == "train" else "keep"
        missing = skipped if config.on_error == "skip" else "raise"
    with section("data"):
        return _read_samples(config, subset, missing)


def read_samples(config: Config) -> dict[str, Samples]:
    """Returns the "train" videos of a recipe, and its "test" videos if the run validates."""
    subsets: list[Subset] = ["train", "test"] if config.train.validate_every else ["train"]
    return {subset: make_samples(config.data, subset) for subset in subsets}


def _read_samples(config: DataConfig, subset: Subset, missing: Missing) -> Samples:
    split = config.train_split if subset == "train" else config.test_split
    if config.layout == "shards":
        return _shards(config, subset).samples()
    root = lists.existing_root(config.root)
    match config.layout:
        case "ucf101":
            return lists.read_ucf101(root, config.official_split, subset, missing=missing)
        case "hmdb51":
            return lists.read_hmdb51(root, config.official_split, subset, missing=missing)
        case "something":
            return lists.read_something(root, split, missing=missing)
        case "jester":
            return lists.read_jester(root, split, missing=missing)
        case "charades":
            return lists.read_charades(root, split, missing=missing)
    names = _class_names(config, subset)
    if config.layout == "kinetics":
        return lists.read_kinetics(root, split, class_names=names, missing=missing)
    if config.layout == "folders":
        return lists.read_folders(root, split, class_names=names)
    options = {"columns": _columns(config), "separator": config.separator, "missing": missing}
    read: Callable[..., Samples] = lists.read_list
    if config.layout == "frames":
        template, start = config.frame_template, config.frame_start
        read = partial(lists.read_frames, frame_template=template, frame_start=start)
    return read(root / split, root, class_names=names, **options)


def _class_names(config: DataConfig, subset: Subset) -> tuple[str, ...] | None:
    """Returns the listed classes; without a list, for test those of training, for training None."""
    if config.class_list is not None:
        return lists.read_class_list(find_file("class list", config.class_list))
    if subset == "train":
        return None
    root, split = Path(config.root), config.train_split
    match config.layout:
        case "shards":
            return open_shards(config.root, split).class_names
        case "kinetics":
            return lists.read_kinetics_csv(lists.kinetics_csv(root, split)).class_names
        case "list" | "frames":
            columns, separator = _columns(config), config.separator
            return lists.parse_list(root / split, columns=columns, separator=separator).class_names
    return lists.class_folders(root, split)


def _columns(config: DataConfig) -> Columns:
    """Returns the columns of a list; lists of frames always have the number of images."""
    if config.layout == "list":
        return config.columns
    return "path frames labels" if config.columns == "path labels" else "path frames label"


def _shards(config: DataConfig, subset: Subset) -> Shards:
    """Opens shards and checks that their classes are those of the class list, or of training."""
    split = config.train_split if subset == "train" else config.test_split
    shards = open_shards(config.root, split)
    names = _class_names(config, subset)
    if names is not None and names != shards.class_names:
        listed = config.class_list is not None
        source = f"data.class_list, {config.class_list}" if listed else "the training shards"
        raise ValueError(
            f"the {subset} shards have {len(shards.class_names)} classes, the first "
            f"{shards.class_names[0]!r}; need the {len(names)} of {source}, the first {names[0]!r}"
        )
    return shards


def make_loader(
    config: Config,
    subset: Subset,
    parallel: Parallel,
    samples: Samples | None = None,
    *,
    test_views: bool = False,
) -> ClipLoader:
    """Returns the loader of a split: training (shuffled, augmented) or test (all views, in order).
    With `test_views`, the training split is shuffled and has the views of the test split."""
    samples = samples or make_samples(config.data, subset)
    training = subset == "train" and not test_views
    mirror = None
    if training:
        with section("augment"):
            share, labels = 0.5 if config.augment.flip else 0.0, config.augment.flip_labels
            mirror = Mirror(share, samples.class_names, labels)
    else:
        _check_mirrored_crops(config, samples.class_names)
    make: Callable[..., ClipDataset] = partial(ClipDataset, samples)
    if config.data.layout == "shards":
        make = partial(ShardDataset, _shards(config.data, subset))
    dataset = make(
        sample_frames=_train_frames(config) if training else test_frames(config),
        transform=_train_transform(config) if training else test_transform(config),
        mirror=mirror,
        seed=config.seed,
        # Evaluation reports failures, and never stops.
        on_error=config.data.on_error if subset == "train" else "skip",
        still_frame=config.clip.still_frame,
        decode=_decode(config),
        target_fps=clock_of(config),
        label_noise=make_label_noise(config, samples) if training else None,
    )
    return ClipLoader(
        dataset,
        batch_size=_videos_per_batch(config, training=training),
        shuffle=subset == "train",
        seed=config.seed,
        rank=parallel.rank,
        world_size=parallel.world_size,
        num_workers=config.data.num_workers,
        timeout_seconds=config.data.decode_timeout_seconds,
        balance=sampling_exponent(config, subset, samples),
    )


def _decode(config: Config) -> Callable[..., Frames]:
    side, square_pixels = config.data.decode_short_side, config.clip.square_pixels
    with section("data"):
        check_decoder(config.data.decoder, side)
    decoder = config.data.decoder
    return partial(decode, decoder=decoder, short_side=side, square_pixels=square_pixels)


def _videos_per_batch(config: Config, *, training: bool) -> int:
    if training:
        num_clips, batch_size = config.train.num_clips, config.train.batch_size
        if num_clips < 1 or batch_size % num_clips:
            raise ValueError(
                f"train.batch_size: got {batch_size}; need a multiple of train.num_clips="
                f"{num_clips} (1 or more), the clips of each video"
            )
        return batch_size // num_clips
    if not config.test.num_crops:
        return 1  # whole frames differ in size
    return max(config.test.batch_size // (config.test.num_clips * config.test.num_crops), 1)


def _check_mirrored_crops(config: Config, class_names: Sequence[str]) -> None:
    pairs = [*config.augment.flip_labels.items(), *direction_pairs(class_names)]
    if config.test.num_crops == 10 and pairs:
        a, b = pairs[0]
        raise ValueError(
            f"test.num_crops: five of ten crops are mirrored, and the mirror image of {a!r} is "
            f"{b!r}; use 3, 1 or 0"
        )


def _train_frames(config: Config) -> Sampler:
    draw = _sampler(train_sampler, config.clip, keep_tail_frames=config.clip.keep_tail_frames)
    return repeated(draw, config.train.num_clips)


def test_frames(config: Config) -> Sampler:
    """Returns the sampler of the test views."""
    test = config.test
    return _sampler(
        view_sampler,
        config.clip,
        num_clips=test.num_clips,
        twice_sample=test.twice_sample,
        use_offset=test.use_offset,
    )


def _sampler(make: Callable[..., Sampler], clip: ClipConfig, **options: object) -> Sampler:
    return make(
        clip.sampling,
        num_frames=clip.num_frames,
        frame_stride=clip.frame_stride,
        short_video=clip.short_video,
        arithmetic=clip.arithmetic,
        target_fps=None if clip.arithmetic == "plain" else clip.target_fps,
        **options,
    )


def clock_of(config: Config) -> float | None:
    """Returns the frames per second at which to sample by time, or None to sample by number."""
    rate = config.clip.target_fps
    if rate is None or config.clip.arithmetic != "plain":
        return None
    if rate <= 0:
        raise ValueError(f"clip.target_fps: got {rate}; need frames per second, above 0")
    if config.data.layout == "frames":
        raise ValueError("clip.target_fps: folders of images have no times; remove it")
    return rate


def _train_transform(config: Config) -> TrainTransform:
    chosen, size = config.augment, (config.clip.height, config.clip.width)
    boxes: dict[str, Callable[[], CropBox]] = {
        "area": lambda: AreaCrop(size, chosen.area, chosen.aspect_ratio),
        "short_side": lambda: augment.ShortSideCrop(size, chosen.short_side),
        "multi_scale": lambda: augment.MultiScaleCrop(size, chosen.scales),
    }
    names = ("color_jitter", "grayscale", "rand_augment", "rand_augment_magnitude", "erase")
    with section("augment"):
        colors = augment.ColorAugment(**{name: getattr(chosen, name) for name in names})
        return TrainTransform(boxes[chosen.crop](), colors)


def test_transform(config: Config) -> TestTransform:
    """Returns the transform that crops the test views."""
    test = config.test
    return TestTransform(test.short_side, crop=config.test_size, num_crops=test.num_crops)


def make_to_video(clip: ClipConfig, device: torch.device) -> ToVideo:
    """Returns the function from frames (N, T, C, H, W) uint8 to the network's input."""
    return partial(to_video, mean=clip.mean, std=clip.std, device=device)
