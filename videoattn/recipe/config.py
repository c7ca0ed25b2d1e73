"""What a recipe may say: frozen dataclasses, and the only reader and writer of YAML.

A recipe lists what differs from the defaults below. Loading is strict: an unknown key or a value
of the wrong type is an error that names the key, what it got and what is allowed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from videoattn.errors import did_you_mean


@dataclass(frozen=True)
class DataConfig:
    """Where the videos are. Paths are relative to the folder that the command is typed in."""

    root: str = MISSING
    """The data set's folder; there is no default: data.root=..."""
    layout: Literal[
        "folders", "list", "frames", "kinetics", "ucf101", "hmdb51", "something", "jester", "shards"
    ] = "folders"
    """folders: root/<split>/<class>/*. list: lines of a path and a label. frames: lines of a folder
    of pictures, their number and a label. shards: tar files, from `videoattn prepare shards`. The
    others: the data set's own files (data/README.md)."""
    train_split: str = "train"
    test_split: str = "test"
    """folders: the split folders. list, frames: the list files, relative to root. kinetics,
    something, jester: the names of the release's lists, such as train and val or validation.
    shards: folders in root, which may be a URL, or tar files: https://host/{000000..000011}.tar,
    pipe:COMMAND a/{000000..000011}.tar."""
    official_split: int = 1
    """ucf101, hmdb51: which of the three official splits."""
    class_list: str | None = None
    """folders, list, frames, kinetics: a file with one class name a line. Without it the classes
    are those of the training part, in alphabetical order; in lists they are numbers."""
    columns: Literal["path label", "path frames label", "path label ..."] = "path label"
    """list: what a line says. Labels after the first are left out where columns end in dots."""
    separator: str = " "
    """list, frames: what is between the columns; a blank stands for any blanks and tabs."""
    frame_template: str = "img_{:05d}.jpg"
    """frames: the pictures' names, numbered from 1."""
    decoder: Literal["auto", "pyav", "decord", "torchcodec"] = "auto"
    """auto is pyav, which is exact in every file that decodes and passes over frames that nobody
    needs. decord and torchcodec give the same frames, or refuse the file (docs/decoders.md)."""
    decode_short_side: int | None = None
    """pyav: videos of twice this size or more are shrunk to it while they are decoded, before any
    crop: other pixels, a little sooner. `prepare reencode` brings more, once."""
    num_workers: int = 2
    """Loader processes, of one thread each; 0 decodes in the training process, in two threads. The
    samples are the same bits."""
    on_error: Literal["raise", "skip"] = "raise"
    """Training on a video that cannot be decoded: evaluation counts it as failed either way. And
    listed videos that are missing: raise stops before training; skip leaves them out of it."""
    max_failures: int = 100
    """Training stops when more videos than this were skipped."""
    decode_timeout_seconds: float = 60.0
    """A video that keeps a loader process for longer than this has failed; 0 waits for ever."""


@dataclass(frozen=True)
class ClipConfig:
    """What the network sees of a video."""

    sampling: Literal["dense", "segments", "uniform"] = "dense"
    """dense: num_frames frames, frame_stride apart. segments: one frame from each of num_frames
    equal parts of the video (TSN). uniform: the same with parts that share their ends
    (Something-Something)."""
    arithmetic: Literal["plain", "mmaction2", "pyslowfast"] = "plain"
    """Whose rounding, short videos and places of views: another toolbox's published accuracies are
    those of its own frames."""
    num_frames: int = 8
    frame_stride: int = 8
    target_fps: float | None = None
    """Frames are taken as if the video had this rate: by their times, so that a rate may vary
    (plain), or by the mean rate (mmaction2; pyslowfast, 30 unless given). None: frame by frame."""
    keep_tail_frames: bool = False
    """mmaction2, training: clips reach the last frames of every video."""
    short_video: Literal["loop", "repeat_last", "error"] = "loop"
    height: int = 224
    width: int = 224
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    still_frame: bool = False
    """Every clip is its middle frame, repeated: what can be told without motion."""


@dataclass(frozen=True)
class AugmentConfig:
    """Training only; the same draw for every frame of a clip."""

    crop: Literal["area", "short_side", "multi_scale"] = "area"
    """area: a random part of the frame. short_side: resize to a random short side, random crop.
    multi_scale: height and width are two of `scales` of the frame, at one of 13 places (TSN)."""
    area: tuple[float, float] = (0.35, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 1.3333)
    short_side: tuple[int, int] = (256, 320)
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    flip: bool = True
    """Half of the samples are mirrored. Refused where left and right are classes, unless:"""
    flip_labels: dict[str, str] = field(default_factory=dict)
    """Pairs of classes that a mirror turns into each other, such as {moves_left: moves_right}."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation change by up to this share, hue by a quarter of it."""
    grayscale: float = 0.0
    erase: float = 0.0
    """Probabilities of losing all colour, and of a grey rectangle."""
    rand_augment: int = 0
    """RandAugment: so many operations, drawn for each clip."""
    rand_augment_magnitude: int = 9
    """Their strength, 0 to 30."""
    mixup: float = 0.0
    cutmix: float = 0.0
    """Shares of the batches whose clips are blended in pairs, or get a part of another clip."""


@dataclass(frozen=True)
class TestConfig:
    """Views of each video in `test` and `predict`; training validates on the same."""

    num_clips: int = 1
    num_crops: int = 1
    """1: centre. 3: left, centre, right (or top, centre, bottom). 10: corners, centre, and their
    mirror images. 0: the whole frame, uncut (fully convolutional testing), one video at a time."""
    twice_sample: bool = False
    """mmaction2: as many views again (of segments: their beginnings)."""
    use_offset: bool = False
    """pyslowfast: views a whole number of frames apart, up to the end."""
    short_side: int = 256
    height: int | None = None
    width: int | None = None
    """Test crop; the training crop unless given."""
    batch_size: int = 16
    """Views scored in one forward pass."""


_ATTENTION_NAME = "model.attention.name="


@dataclass(frozen=True)
class AttentionConfig:
    """An attention system, by name, at the named places of the backbone.

    `model.attention.name=cbam` on the command line drops the places and options that the recipe
    gives to another system.
    """

    name: str | None = None
    after: tuple[str, ...] = ()
    """Such as [layer2.1, layer2.3]; empty: the published places for this backbone. Systems that
    join layers, sit around stages or replace the classifier name those ([layer2, layer3])."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the block's constructor."""


@dataclass(frozen=True)
class ModelConfig:
    name: str = "i3d_r50"
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network's constructor, such as width or dropout."""
    weights: str | None = None
    """A run, a shared folder or a checkpoint of ours, a public name with a file
    (pyslowfast/I3D_8x8_R50:FILE), or torchvision/resnet50, whose 2-D weights are inflated.
    Classifiers and attention blocks that the weights lack start fresh."""
    inflate: Literal["mean", "centre"] = "mean"
    """2-D weights over time: repeated and divided by the frames, or in the centre frame alone."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)


@dataclass(frozen=True)
class TrainConfig:
    num_epochs: int = 10
    batch_size: int = 8
    """Clips per process and step."""
    num_clips: int = 1
    """Clips drawn from each video, which is decoded once for all of them (repeated augmentation,
    Hoffer et al., CVPR 2020). A step has the clips of batch_size / num_clips videos, so that the
    rate and the memory stay as they are; an epoch has num_clips times the steps."""
    accumulate_steps: int = 1
    """Steps whose gradients are summed before an update."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    """The peak rate, for the batch that the recipe states: it is not scaled."""
    schedule: Literal["cosine", "one_cycle", "multistep"] = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[int, ...] = ()
    """multistep: epochs (of a stage) at which the rate is divided by 10."""
    stage_epochs: tuple[int, ...] = ()
    """Networks that are trained in stages (attention hard_crop): the epochs of each, num_epochs
    together; equal parts unless given. The schedule starts anew in each."""
    weight_decay: float = 1e-4
    """Not applied to norms and biases."""
    freeze_backbone_epochs: int = 0
    """Fine-tuning: of the parameters that model.weights reaches, the backbone, none changes for so
    many epochs. New ones (a classifier of other classes, attention that the weights lack) do."""
    freeze_batch_norm: bool = False
    """Fine-tuning: the backbone's batch norms keep statistics, scale and shift all along."""
    backbone_lr_scale: float = 1.0
    """Fine-tuning: the backbone's learning rate, as a share of lr."""
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    auxiliary_weights: dict[str, float] = field(default_factory=dict)
    """Weights of the losses that an attention system adds, by name, where they should differ from
    its own (interaction: {interaction: 0.01, diversity: 0.01}); 0 only logs a loss."""
    precise_norm_clips: int = 0
    """Batch norm's statistics are taken anew over so many training clips, seen as in testing,
    before each validation and at the end (of each stage); 0: training's moving averages stay."""
    validate_every: int = 1
    """Epochs between validations; 0 never."""
    save_every_steps: int | None = None
    """A checkpoint inside epochs too, every so many steps: no more than those are ever lost."""
    keep_epochs: int | None = None
    """The checkpoint of every so many epochs is kept, beside the last one."""


@dataclass(frozen=True)
class Config:
    name: str = MISSING
    """The run's name: it is written to runs/<name>/."""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    test: TestConfig = field(default_factory=TestConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


_AT_LEAST: dict[str, dict[str, int]] = {
    "data": {"num_workers": 0, "max_failures": 0, "decode_timeout_seconds": 0},
    "clip": {"num_frames": 1, "frame_stride": 1, "height": 1, "width": 1},
    "test": {"num_clips": 1, "short_side": 1, "height": 1, "width": 1, "batch_size": 1},
    "train": {
        "batch_size": 1,
        "accumulate_steps": 1,
        "lr": 0,
        "warmup_epochs": 0,
        "weight_decay": 0,
        "freeze_backbone_epochs": 0,
        "backbone_lr_scale": 0,
        "validate_every": 0,
        "save_every_steps": 1,
        "keep_epochs": 1,
    },
}
"""Where a number may be too small, and nothing else limits it: section -> key -> the least."""

_RENAMED = {"data": {"ucf101_split": "official_split"}}
"""Keys that had other names when runs were saved: section -> old -> new."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The recipe in a file, changed by `key=value` words such as `train.lr=0.02`.

    Raises:
        ValueError: no such file, not YAML, an unknown key, a wrong type, a missing value, a number
            that is too small.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no recipe at {path}; see configs/ for those that come with videoattn")
    return _merge(_read(path), overrides, str(path))


def from_dict(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The config that a checkpoint holds, changed by `key=value` words."""
    return _merge(dict(values), overrides, "the checkpoint's config")


def to_dict(config: Config) -> dict[str, Any]:
    """Plain dictionaries, lists, numbers and strings; `from_dict` is the inverse."""
    return _plain(asdict(config))


def dump(config: Config, path: Path) -> None:
    """Writes the whole config as a recipe: `load` gives an equal one back."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(to_dict(config))))


def _read(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except OSError as error:  # what OmegaConf says of a file that holds one word or number
        raise ValueError(f"{path} is not a recipe: {error}") from error


def _merge(values: Any, overrides: Sequence[str], source: str) -> Config:
    if not isinstance(values, Mapping):
        raise ValueError(f"{source} is not a recipe: it must hold key: value lines")
    merged = OmegaConf.structured(Config)
    for words, change in _changes(_renamed(values), overrides, source):
        try:
            merged = OmegaConf.merge(merged, change)
        except (ConfigAttributeError, ConfigKeyError) as error:
            raise ValueError(_unknown_key(error, words)) from error
        except OmegaConfBaseException as error:
            raise ValueError(f"{words}: {_reason(error)}") from error
    try:
        config = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ValueError(
            f"{source}: {error.full_key} has no value; give one, as in {error.full_key}=..."
        ) from error
    assert isinstance(config, Config)
    _check_numbers(config)
    return config


def _check_numbers(config: Config) -> None:
    for section, keys in _AT_LEAST.items():
        for key, least in keys.items():
            value = getattr(getattr(config, section), key)
            if value is not None and not value >= least:  # nor is nan
                raise ValueError(f"{section}.{key}: got {value}; need at least {least}")


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of earlier versions saved, in today's names."""
    renamed = dict(values)
    for section, names in _RENAMED.items():
        if isinstance(part := values.get(section), Mapping):
            renamed[section] = {names.get(key, key): value for key, value in part.items()}
    return renamed


def _changes(
    values: Mapping[str, Any], overrides: Sequence[str], source: str
) -> Iterator[tuple[str, Any]]:
    """What is merged, one by one, each with the words that an error should name."""
    yield source, _without_foreign_options(values, overrides)
    for word in overrides:
        if "=" not in word:
            raise ValueError(f"override {word!r} is not key=value, as in train.lr=0.02")
        yield word, OmegaConf.from_dotlist([word])


def _without_foreign_options(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The recipe, less its attention's places and options where another system is asked for: they
    are that system's arguments, and mean nothing to the new one."""
    names = [word.partition("=")[2] for word in overrides if word.startswith(_ATTENTION_NAME)]
    model = values.get("model")
    attention = model.get("attention") if isinstance(model, Mapping) else None
    if not (names and isinstance(attention, Mapping)) or attention.get("name") == names[-1]:
        return dict(values)
    return {**values, "model": {**model, "attention": {}}}  # type: ignore[dict-item]


def _unknown_key(error: OmegaConfBaseException, source: str) -> str:
    full_key = str(error.full_key)
    parent: Any = Config
    for part in full_key.split(".")[:-1]:
        parent = {f.name: f.type for f in fields(parent)}.get(part, parent)
    names = [f.name for f in fields(parent)]
    key = full_key.rpartition(".")[2]
    hint = did_you_mean(key, names)
    return f"{source}: unknown key {full_key!r}{hint}; it may be one of {', '.join(names)}"


def _reason(error: OmegaConfBaseException) -> str:
    reason = str(error).split("\n")[0]
    return f"{error.full_key}: {reason}" if error.full_key else reason


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
