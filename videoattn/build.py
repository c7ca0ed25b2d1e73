"""Where a recipe's names meet constructors, and nowhere else.

Constructors take plain arguments; this file reads the config and hands them over.
"""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torchvision
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from videoattn.attention.hard_crop import HardCrop
from videoattn.attention.losses import auxiliary_losses
from videoattn.attention.systems import SYSTEMS
from videoattn.config import AugmentConfig, ClipConfig, Config, DataConfig, ModelConfig, TrainConfig
from videoattn.conv import unsafe_convolutions
from videoattn.data.annotations import Samples, read_folders, read_list, read_ucf101
from videoattn.data.dataset import ClipDataset
from videoattn.data.loader import ClipLoader
from videoattn.data.sampling import Sampler, train_sampler, view_sampler
from videoattn.data.transforms import TestTransform, TrainTransform, to_video
from videoattn.engine.batches import ToVideo
from videoattn.engine.checkpoint import load as load_checkpoint
from videoattn.engine.checkpoint import load_weights
from videoattn.engine.distributed import Distributed
from videoattn.engine.precision import Precision, resolve_precision
from videoattn.engine.schedule import cosine, multistep, one_cycle
from videoattn.engine.stages import restarting, split_epochs
from videoattn.engine.step import Optimisation
from videoattn.engine.train import LAST
from videoattn.models.inflate import load_inflated
from videoattn.models.resnet3d import BLOCKS, KERNELS, ResNet3d, Stem
from videoattn.models.tsn import TSN
from videoattn.weights import PUBLIC, load_public

T = TypeVar("T")
Subset = Literal["train", "test"]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _tsn(
    depth: int, *, num_classes: int, consensus: str = "mean", dropout: float = 0.5,
    shift_div: int | None = None, shift_place: str = "residual",
) -> TSN:  # fmt: skip
    backbone = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    return TSN(
        backbone, num_classes=num_classes, consensus=consensus, dropout=dropout,
        shift_div=shift_div, shift_place=shift_place,
    )  # fmt: skip


def _r3d_18(*, num_classes: int) -> nn.Module:
    model: nn.Module = torchvision.models.video.r3d_18(weights=None, num_classes=num_classes)
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {
    **{
        f"{kind}_r{depth}": partial(ResNet3d, kind, depth=depth)
        for kind in KERNELS
        for depth in BLOCKS
    },
    **{f"tsn_r{depth}": partial(_tsn, depth) for depth in BLOCKS},
    "r3d_18": _r3d_18,
}


def make_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network of a recipe with its attention blocks, freshly initialised.

    Raises:
        ValueError: an unknown network, block, option or place; the message lists what exists.
    """
    make = _lookup("model.name", config.name, MODELS)
    options = dict(config.options)
    _check_options("model.options", make, options)
    if isinstance(options.get("stem"), Mapping):
        _check_options("model.options.stem", Stem, options["stem"])
        options["stem"] = Stem(**options["stem"])
    model = make(num_classes=num_classes, **options)
    attention = config.attention
    if attention.name is not None:
        system = _lookup("model.attention.name", attention.name, SYSTEMS)
        _check_options("model.attention.options", system.make, attention.options)
        block = partial(system.make, **attention.options)
        model = system.attach(model, block, attention.after, attention.name)
    elif attention.after or attention.options:
        raise ValueError(
            "model.attention has settings but no name; choose model.attention.name from "
            + ", ".join(SYSTEMS)
        )
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.to(memory_format=layouts[parameter.ndim])
    return model


def make_samples(config: DataConfig, subset: Subset) -> Samples:
    """The videos and labels of the training or test part."""
    split = config.train_split if subset == "train" else config.test_split
    if config.layout == "ucf101":
        return read_ucf101(config.root, config.ucf101_split, subset)
    if config.layout == "list":
        names = None
        if config.class_list is not None:
            with open(config.class_list) as file:
                names = [line.strip() for line in file if line.strip()]
        return read_list(f"{config.root}/{split}", config.root, class_names=names)
    if subset == "train":
        return read_folders(config.root, split)
    # The training folders give the classes their numbers; a test split may lack some.
    return read_folders(
        config.root, split, class_names=read_folders(config.root, config.train_split).class_names
    )


def make_loader(
    config: Config, subset: Subset, distributed: Distributed, samples: Samples | None = None
) -> ClipLoader:
    """Batches of the training part (shuffled, augmented) or the test part (all views, in order)."""
    samples = samples or make_samples(config.data, subset)
    training = subset == "train"
    dataset = ClipDataset(
        samples,
        sample_frames=_train_frames(config.clip) if training else test_frames(config),
        transform=_train_transform(config) if training else test_transform(config),
        seed=config.seed,
        on_error=config.data.on_error if training else "skip",  # evaluation reports, never stops
        still_frame=config.clip.still_frame,
    )
    views = config.test.num_clips * config.test.num_crops
    return ClipLoader(
        dataset,
        batch_size=config.train.batch_size if training else max(config.test.batch_size // views, 1),
        shuffle=training,
        seed=config.seed,
        rank=distributed.rank,
        world_size=distributed.world_size,
        num_workers=config.data.num_workers,
    )


def _train_frames(clip: ClipConfig) -> Sampler:
    return train_sampler(
        clip.sampling,
        num_frames=clip.num_frames,
        frame_stride=clip.frame_stride,
        short_video=clip.short_video,
    )


def test_frames(config: Config) -> Sampler:
    clip = config.clip
    return view_sampler(
        clip.sampling,
        num_frames=clip.num_frames,
        frame_stride=clip.frame_stride,
        num_clips=config.test.num_clips,
        short_video=clip.short_video,
    )


def _train_transform(config: Config) -> TrainTransform:
    augment = config.augment
    return TrainTransform(
        (config.clip.height, config.clip.width),
        scale=augment.area,
        ratio=augment.aspect_ratio,
        short_side=augment.short_side if augment.crop == "short_side" else None,
        flip=0.5 if augment.flip else 0.0,
        color_jitter=augment.color_jitter,
        grayscale=augment.grayscale,
        erase=augment.erase,
    )


def make_mix(augment: AugmentConfig, num_classes: int) -> Mix | None:
    """Mixup (Zhang et al., ICLR 2018; Beta(0.8, 0.8)) and cutmix (Yun et al., ICCV 2019) of a
    batch's clips, each in its share of the batches.

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
        # To torchvision five axes are a video's; it cuts the last two whatever the others are.
        mixed, target = mixes[drawn >= shares[0]](tv_tensors.Video(video), labels)
        return mixed.as_subclass(Tensor), target

    return mix


def test_transform(config: Config) -> TestTransform:
    test, clip = config.test, config.clip
    crop = (test.height or clip.height, test.width or clip.width)
    return TestTransform(test.short_side, crop=crop, num_crops=test.num_crops)


def make_to_video(clip: ClipConfig, device: torch.device) -> ToVideo:
    return partial(to_video, mean=clip.mean, std=clip.std, device=device)


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.9, or AdamW. Vectors (norms, biases) are not decayed."""
    train = config.train
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": train.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr)
    return torch.optim.SGD(groups, lr=train.lr, momentum=0.9, nesterov=True)


def make_optimisation(
    config: Config, steps_per_epoch: int, precision: Precision, mix: Mix | None = None,
    num_stages: int = 1,
) -> Optimisation:  # fmt: skip
    """steps_per_epoch: updates, after accumulation. num_stages: the model's.

    Raises:
        ValueError: a weight for an auxiliary loss that the model does not have; epochs that cannot
            be shared out among the stages.
    """
    train = config.train
    auxiliary_weights = _auxiliary_weights(config)
    stage_epochs = split_epochs(train.num_epochs, num_stages, train.stage_epochs)
    return Optimisation(
        lr_at=restarting(
            partial(_schedule, train, steps_per_epoch),
            [epochs * steps_per_epoch for epochs in stage_epochs],
        ),
        num_epochs=train.num_epochs,
        accumulate_steps=train.accumulate_steps,
        clip_norm=train.clip_norm,
        label_smoothing=train.label_smoothing,
        precision=precision,
        auxiliary=auxiliary_losses if auxiliary_weights else None,
        auxiliary_weights=auxiliary_weights,
        mix=mix,
        stage_epochs=stage_epochs,
    )


def _schedule(train: TrainConfig, steps_per_epoch: int, num_steps: int) -> Callable[[int], float]:
    """The learning rate by the step of a stage (most runs are one)."""
    warmup_steps = round(train.warmup_epochs * steps_per_epoch)
    schedules: dict[str, Callable[[int], float]] = {
        "cosine": partial(cosine, num_steps=num_steps, base=train.lr, warmup_steps=warmup_steps),
        "one_cycle": partial(one_cycle, num_steps=num_steps, peak=train.lr),
        "multistep": partial(
            multistep,
            milestones=[epoch * steps_per_epoch for epoch in train.milestones],
            base=train.lr,
            warmup_steps=warmup_steps,
        ),
    }
    return schedules[train.schedule]


def _auxiliary_weights(config: Config) -> dict[str, float]:
    """The attention system's own, changed by the recipe's."""
    name = config.model.attention.name
    own = SYSTEMS[name].losses if name in SYSTEMS else {}
    asked = config.train.auxiliary_weights
    for loss in asked:
        if loss not in own:
            has = f"has {', '.join(own)}" if own else "has none"
            some = ", ".join(key for key, system in SYSTEMS.items() if system.losses)
            raise ValueError(
                f"train.auxiliary_weights: the model has no auxiliary loss {loss!r}; attention "
                f"{name or 'null'} {has} (systems with some: {some})"
            )
    return {**own, **asked}


def make_precision(
    config: Config, model: nn.Module, device: torch.device
) -> tuple[Precision, str | None]:
    """The precision to train in, and what to tell the user where it is not the one expected.

    A foreign network whose convolutions have wrong bfloat16 gradients on a CPU (see conv.py)
    is trained in float32 there.

    Raises:
        ValueError: bfloat16 was asked for by name and cannot be trained in.
    """
    name = config.train.precision
    if resolve_precision(name, device) != torch.bfloat16 or device.type != "cpu":
        return name, None
    clip = config.clip
    unsafe = unsafe_convolutions(model, torch.zeros(1, 3, clip.num_frames, clip.height, clip.width))
    if not unsafe:
        return name, None
    reason = (
        f"on this CPU bfloat16 gives wrong weight gradients in {len(unsafe)} convolutions of "
        f"{config.model.name} (kernel longer than its clip: {', '.join(unsafe[:3])})"
    )
    if name == "bfloat16":
        raise ValueError(f"train.precision: {reason}; use float32 or auto, or longer clips")
    return "float32", f"{reason}; training in float32"


def _lookup(key: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        near = get_close_matches(name, table, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{key}: {name!r} does not exist{hint}; choose from {', '.join(table)}")
    return table[name]


def _check_options(key: str, make: Callable[..., object], options: Mapping[str, Any]) -> None:
    """Raises: ValueError for options that the constructor does not have."""
    bound = make.keywords if isinstance(make, partial) else {}
    parameters = inspect.signature(make).parameters.values()
    known = [p.name for p in parameters if p.default is not p.empty and p.name not in bound]
    unknown = [name for name in options if name not in known]
    if unknown:
        near = get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"{key}: unknown {unknown[0]!r}{hint}; it may be one of {', '.join(known) or 'none'}"
        )


def load_initial_weights(model: nn.Module, source: str) -> list[str]:
    """Starts the model from `source`; returns what to tell the user of what was not reached.

    source: a run or checkpoint of ours; `torchvision/resnet50` (downloaded by torchvision, or
        `torchvision/resnet50:FILE`), inflated where the network has time; or another public name
        with its file, such as `pyslowfast/I3D_8x8_R50:FILE`.

    A classifier of another number of classes is left out, and attention blocks that the weights
    lack stay as they are (the identity).

    Raises:
        ValueError: an unknown name, or weights of another network.
    """
    name, _, file = source.partition(":")
    if Path(source).exists():
        path = Path(source) / LAST if Path(source).is_dir() else Path(source)
        ours = path.suffix == ".safetensors"
        state = load_weights(path)[0] if ours else load_checkpoint(path)["model"]
    elif name.startswith("torchvision/") and not file:
        weights = torchvision.models.get_model_weights(name.removeprefix("torchvision/"))
        state = weights.DEFAULT.get_state_dict(progress=False)
    elif file:
        state = load_public(name, file).state_dict()
    else:
        raise ValueError(
            f"model.weights: {source!r} is no run, no checkpoint, and no NAME:FILE of a public "
            f"model; names are torchvision/resnet50 and {', '.join(PUBLIC)}"
        )
    networks = [model]
    if isinstance(model, HardCrop) and "fusion.weight" not in state:
        networks = [model.global_branch, model.local_branch]  # both begin with the same weights
    missed = [name for network in networks for name in load_inflated(network, state)]
    return [f"{source}: starts without {', '.join(missed)}"] if missed else []
