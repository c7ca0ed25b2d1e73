"""From a recipe to samples, clips, batches."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from videoattn.data.dataset import ClipDataset
from videoattn.data.decode import check_decoder, decode
from videoattn.data.lists import (
    Missing,
    Samples,
    existing_root,
    kinetics_csv,
    parse_list,
    read_class_list,
    read_folders,
    read_frames,
    read_hmdb51,
    read_jester,
    read_kinetics,
    read_kinetics_csv,
    read_list,
    read_something,
    read_ucf101,
)
from videoattn.data.loader import ClipLoader
from videoattn.data.sampling import Sampler, repeated, train_sampler, view_sampler
from videoattn.data.shards import Shards, open_shards
from videoattn.data.shards.streaming import ShardDataset
from videoattn.data.transforms import TestTransform, to_video
from videoattn.data.transforms.augment import (
    AreaCrop,
    ColorAugment,
    CropBox,
    MultiScaleCrop,
    ShortSideCrop,
    TrainTransform,
)
from videoattn.data.transforms.mirror import Mirror, direction_pairs
from videoattn.engine.batches import ToVideo
from videoattn.engine.parallel import Parallel
from videoattn.recipe.config import AugmentConfig, ClipConfig, Config, DataConfig
from videoattn.types import Frames

Subset = Literal["train", "test"]


Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_samples(config: DataConfig, subset: Subset, missing: Missing | None = None) -> Samples:
    """The videos and labels of the training or test part.

    Raises: ValueError for lists that are wrong, and for missing videos unless `on_error` is skip:
    then training goes without them, and evaluation counts them as failed. `missing` says otherwise.
    """
    split = config.train_split if subset == "train" else config.test_split
    if missing is None:
        skipped: Missing = "drop" if subset == "train" else "keep"
        missing = skipped if config.on_error == "skip" else "raise"
    if config.layout == "shards":
        return _shards(config, subset).samples()
    root = existing_root(config.root)
    match config.layout:
        case "ucf101":
            return read_ucf101(root, config.official_split, subset, missing=missing)
        case "hmdb51":
            return read_hmdb51(root, config.official_split, subset, missing=missing)
        case "something":
            return read_something(root, split, missing=missing)
        case "jester":
            return read_jester(root, split, missing=missing)
    names = _class_names(config, subset)
    match config.layout:
        case "kinetics":
            return read_kinetics(root, split, class_names=names, missing=missing)
        case "frames":
            return read_frames(
                root / split, root, class_names=names, frame_template=config.frame_template,
                separator=config.separator, missing=missing,
            )  # fmt: skip
        case "list":
            return read_list(
                root / split, root, class_names=names, columns=config.columns,
                separator=config.separator, missing=missing,
            )  # fmt: skip
    return read_folders(root, split, class_names=names)


def _class_names(config: DataConfig, subset: Subset) -> tuple[str, ...] | None:
    """The class list's names; without one, the training part gives the test part its classes."""
    if config.class_list is not None:
        return read_class_list(config.class_list)
    if subset == "train":
        return None
    root, split = Path(config.root), config.train_split
    match config.layout:
        case "kinetics":
            return read_kinetics_csv(kinetics_csv(root, split)).class_names
        case "list" | "frames":
            columns = config.columns if config.layout == "list" else "path frames label"
            return parse_list(root / split, columns=columns, separator=config.separator).class_names
    return read_folders(root, split).class_names


def _shards(config: DataConfig, subset: Subset) -> Shards:
    """Raises: ValueError for classes that are not those of the list or of the training part."""
    shards = open_shards(config.root, getattr(config, f"{subset}_split"))
    names, of = None, f"data.class_list, {config.class_list}"
    if config.class_list is not None:
        names = read_class_list(config.class_list)
    elif subset == "test":
        names, of = open_shards(config.root, config.train_split).class_names, "the training shards"
    if names is not None and names != shards.class_names:
        raise ValueError(
            f"the {subset} shards have other classes than {of}: {len(shards.class_names)} and "
            f"{len(names)}, from {shards.class_names[0]!r} and {names[0]!r} on"
        )
    return shards


def make_loader(
    config: Config, subset: Subset, distributed: Parallel, samples: Samples | None = None,
    *, as_tested: bool = False,
) -> ClipLoader:  # fmt: skip
    """Batches of the training part (shuffled, augmented) or the test part (all views, in order).

    as_tested: the training part's videos, shuffled, each in all views of the test part's.

    Raises:
        ValueError: mirrored clips where direction is the class; a batch that is no whole number of
            videos; what make_samples and the transforms refuse.
    """
    samples = samples or make_samples(config.data, subset)
    training = subset == "train" and not as_tested
    if not training:
        _check_mirrored_crops(config, samples.class_names)
    clips = ClipDataset(
        samples,
        sample_frames=_train_frames(config) if training else test_frames(config),
        transform=_train_transform(config) if training else test_transform(config),
        mirror=_mirror(config.augment, samples.class_names) if training else None,
        seed=config.seed,
        # Evaluation reports, and never stops.
        on_error=config.data.on_error if subset == "train" else "skip",
        still_frame=config.clip.still_frame,
        decode=_decode(config.data),
        target_fps=clock_of(config),
    )
    sharded = config.data.layout == "shards"
    return ClipLoader(
        ShardDataset(_shards(config.data, subset), clips) if sharded else clips,
        batch_size=_train_videos(config) if training else _test_videos(config),
        shuffle=subset == "train",
        seed=config.seed,
        rank=distributed.rank,
        world_size=distributed.world_size,
        num_workers=config.data.num_workers,
        timeout_seconds=config.data.decode_timeout_seconds,
    )


def _decode(config: DataConfig) -> Callable[..., Frames]:
    check_decoder(config.decoder, config.decode_short_side)
    return partial(decode, decoder=config.decoder, short_side=config.decode_short_side)


def _train_videos(config: Config) -> int:
    """In a batch: each gives num_clips of its clips."""
    num_clips, batch_size = config.train.num_clips, config.train.batch_size
    if num_clips < 1 or batch_size % num_clips:
        raise ValueError(
            f"train: batch_size={batch_size} counts clips, and is not a multiple of the num_clips="
            f"{num_clips} (1 or more) of each video"
        )
    return batch_size // num_clips


def _test_videos(config: Config) -> int:
    """In a batch. Whole frames differ in size: each video is a batch of its own, nothing padded."""
    if not config.test.num_crops:
        return 1
    return max(config.test.batch_size // (config.test.num_clips * config.test.num_crops), 1)


def _mirror(augment: AugmentConfig, class_names: Sequence[str]) -> Mirror:
    try:
        return Mirror(0.5 if augment.flip else 0.0, class_names, augment.flip_labels)
    except ValueError as error:
        raise ValueError(f"augment.{error}") from error


def _check_mirrored_crops(config: Config, class_names: Sequence[str]) -> None:
    pairs = [*config.augment.flip_labels.items(), *direction_pairs(class_names)]
    if config.test.num_crops == 10 and pairs:
        a, b = pairs[0]
        raise ValueError(
            f"test.num_crops: five of ten crops are mirrored, and in a mirror {a!r} is {b!r}; "
            "use 3, 1 or 0"
        )


def _train_frames(config: Config) -> Sampler:
    clip = config.clip
    keep = {"keep_tail_frames": True} if clip.keep_tail_frames else {}
    draw = _sampler(train_sampler, clip, keep)
    return repeated(draw, config.train.num_clips)


def test_frames(config: Config) -> Sampler:
    test = config.test
    options = {"twice_sample": test.twice_sample, "use_offset": test.use_offset}
    asked: dict[str, Any] = {name: value for name, value in options.items() if value}
    return _sampler(view_sampler, config.clip, {"num_clips": test.num_clips, **asked})


def _sampler(make: Callable[..., Sampler], clip: ClipConfig, options: dict[str, Any]) -> Sampler:
    if clip.target_fps is not None and clip.arithmetic != "plain":
        options["target_fps"] = clip.target_fps
    return make(
        clip.sampling, num_frames=clip.num_frames, frame_stride=clip.frame_stride,
        short_video=clip.short_video, arithmetic=clip.arithmetic, **options,
    )  # fmt: skip


def clock_of(config: Config) -> float | None:
    """The rate at which a video's frames are looked at, where that is by their times.

    Raises: ValueError for folders of pictures, which have none; a rate of 0 or less.
    """
    rate = config.clip.target_fps
    if rate is None or config.clip.arithmetic != "plain":
        return None
    if rate <= 0:
        raise ValueError(f"clip.target_fps: got {rate}; need frames a second, above 0")
    if config.data.layout == "frames":
        raise ValueError("clip.target_fps: folders of pictures have no times; leave it out")
    return rate


def _train_transform(config: Config) -> TrainTransform:
    augment, crop = config.augment, (config.clip.height, config.clip.width)
    boxes: dict[str, Callable[[], CropBox]] = {
        "area": lambda: AreaCrop(crop, augment.area, augment.aspect_ratio),
        "short_side": lambda: ShortSideCrop(crop, augment.short_side),
        "multi_scale": lambda: MultiScaleCrop(crop, augment.scales),
    }
    looks = ColorAugment(
        color_jitter=augment.color_jitter,
        grayscale=augment.grayscale,
        rand_augment=augment.rand_augment,
        rand_augment_magnitude=augment.rand_augment_magnitude,
        erase=augment.erase,
    )
    return TrainTransform(boxes[augment.crop](), looks)


def test_transform(config: Config) -> TestTransform:
    test, clip = config.test, config.clip
    crop = (test.height or clip.height, test.width or clip.width)
    return TestTransform(test.short_side, crop=crop, num_crops=test.num_crops)


def make_to_video(clip: ClipConfig, device: torch.device) -> ToVideo:
    return partial(to_video, mean=clip.mean, std=clip.std, device=device)


def make_mix(augment: AugmentConfig, num_classes: int, num_clips: int = 1) -> Mix | None:
    """Mixup (Zhang et al., ICLR 2018; Beta(0.8, 0.8)) and cutmix (Yun et al., ICCV 2019) of a
    batch's clips, each in its share of the batches.

    num_clips: of each video, side by side: a clip is not mixed with others of its own video.

    Raises:
        ValueError: shares below 0, or more than 1 together.
    """
    shares = [augment.mixup, augment.cutmix]
    if min(shares) < 0 or sum(shares) > 1:
        raise ValueError(
            f"augment: mixup={augment.mixup} and cutmix={augment.cutmix} are shares of the "
            "batches; need 0 or more each, 1 at most together"
        )
    if not sum(shares):
        return None
    mixes = [v2.MixUp(alpha=0.8, num_classes=num_classes), v2.CutMix(num_classes=num_classes)]

    def mix(video: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        drawn = float(torch.rand(()))
        if drawn >= sum(shares):
            return video, nn.functional.one_hot(labels, num_classes).float()
        # To torchvision five axes are a video's; it cuts the last two whatever the others are. It
        # pairs neighbours: the clips are lined up so that those of one video are none.
        order = torch.arange(len(video)).view(-1, num_clips).T.flatten()
        if num_clips > 1:
            video, labels = video[order], labels[order]
        mixed, target = mixes[drawn >= shares[0]](tv_tensors.Video(video), labels)
        mixed = mixed.as_subclass(Tensor)
        return (
            (mixed[order.argsort()], target[order.argsort()]) if num_clips > 1 else (mixed, target)
        )

    return mix
