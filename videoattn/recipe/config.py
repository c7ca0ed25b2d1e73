"""The settings of a recipe.

A recipe lists the settings that differ from the defaults below. Loading is strict: an unknown key
or a value of the wrong type is an error that names the key, the value and the allowed values.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from omegaconf import MISSING


def number(default: Any, **limits: int) -> Any:
    """Returns a dataclass field for a number with limits. `at_least` is checked in every config,
    `at_most` only in stored ones, which may be from strangers: it limits the memory of a video."""
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class DataConfig:
    """The dataset. Paths are relative to the current folder."""

    root: str = MISSING
    """The folder of the dataset. Required: data.root=..."""
    layout: Literal[
        "folders",
        "list",
        "frames",
        "kinetics",
        "ucf101",
        "hmdb51",
        "something",
        "jester",
        "charades",
        "shards",
    ] = "folders"
    """folders: root/<split>/<class>/*. list: lines with a path and a label. frames: lines with a
    folder of images, their number and a label. shards: tar files written by `videoattn prepare
    shards`. Others: the released files of the dataset (data/README.md)."""
    train_split: str = "train"
    test_split: str = "test"
    """folders: names of the split folders. list, frames: list files, relative to root. kinetics,
    something, jester, charades: names of the released lists, such as train and validation. shards:
    folders in root, which may be a URL, or tar files: https://host/{000000..000011}.tar or, on the
    command line only, pipe:COMMAND a/{000000..000011}.tar."""
    official_split: int = 1
    """ucf101, hmdb51: number of the official split, 1 to 3."""
    class_list: str | None = None
    """folders, list, frames, kinetics: a file with one class name per line. By default, the classes
    of the training split in alphabetical order; for lists, numbers."""
    columns: Literal["path label", "path frames label", "path label ...", "path labels"] = (
        "path label"
    )
    """list: the columns of a line. "path label ..." ignores labels after the first. "path labels"
    (also for frames, after the number of images) takes all, as in a.mp4 3;7."""
    separator: str = " "
    """list, frames: the text between columns; a space matches any spaces and tabs."""
    frame_template: str = "img_{:05d}.jpg"
    """frames: the names of the images."""
    frame_start: int = 1
    """frames: the number of the first image of a folder."""
    decoder: Literal["auto", "pyav", "decord", "torchcodec"] = "auto"
    """auto is pyav, which is exact for every file that decodes. decord and torchcodec return the
    same frames or refuse the file (docs/decoders.md)."""
    decode_short_side: int | None = None
    """pyav: downscales videos of at least twice this short side (pixels) before cropping: slightly
    faster, slightly different pixels. Re-encoding once with `prepare reencode` gains more."""
    num_workers: int = number(2, at_least=0)
    """Number of loader processes, with one thread each; 0 decodes in the training process. It does
    not affect the samples."""
    label_noise: float = 0.0
    """The share of training videos, 0 to 1, whose label is replaced by another class: the same
    videos and classes in all epochs, drawn from `seed`. Test labels stay as they are."""
    on_error: Literal["raise", "skip"] = "raise"
    """raise: a training video that is missing or cannot be decoded stops the run. skip: it is left
    out and listed. Evaluation always counts such videos as failed."""
    max_failures: int = number(100, at_least=0)
    """Training stops if more videos than this were skipped."""
    decode_timeout_seconds: float = number(60.0, at_least=0)
    """A video fails if it takes longer to decode; 0 sets no limit."""


@dataclass(frozen=True)
class ClipConfig:
    """The clips that are the input of the network."""

    sampling: Literal["dense", "segments", "uniform"] = "dense"
    """dense: num_frames frames, frame_stride apart. segments: one frame from each of num_frames
    equal segments of the video (TSN). uniform: the same with segments that share their ends
    (Something-Something)."""
    arithmetic: Literal["plain", "mmaction2", "pyslowfast"] = "plain"
    """The toolbox whose rounding, short-video rule and view positions are used. Published
    accuracies need the frames of the toolbox that measured them."""
    num_frames: int = number(8, at_least=1, at_most=1024)
    frame_stride: int = number(8, at_least=1)
    target_fps: float | None = None
    """Samples frames as if the video had this frame rate: by the times of frames (plain), or by the
    mean rate (mmaction2; pyslowfast, 30 by default). null: by frame numbers."""
    keep_tail_frames: bool = False
    """mmaction2, training: clips may include the last frames of a video."""
    short_video: Literal["loop", "repeat_last", "error"] = "loop"
    """For frames past the end of a video: continue at its start, repeat the last one, or fail."""
    height: int = number(224, at_least=1, at_most=2048)
    width: int = number(224, at_least=1, at_most=2048)
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    """Mean and standard deviation of R, G and B in [0, 1]: the input is (rgb - mean) / std."""
    square_pixels: bool = True
    """Rescales the width of videos whose pixels are not square, as a player does. Runs of earlier
    versions keep the stored size."""
    still_frame: bool = False
    """Replaces each clip by its middle frame, repeated: a baseline without motion."""


@dataclass(frozen=True)
class AugmentConfig:
    """The augmentation of training clips, which is the same in all frames of a clip."""

    crop: Literal["area", "short_side", "multi_scale"] = "area"
    """area: a random area and aspect ratio. short_side: a random short side, then a random crop.
    multi_scale: height and width from `scales`, at one of 13 positions (TSN)."""
    area: tuple[float, float] = (0.35, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 1.3333)
    short_side: tuple[int, int] = (256, 320)
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    flip: bool = True
    """Mirrors half of the samples. Classes that differ in left and right are an error, unless
    flip_labels pairs them."""
    flip_labels: dict[str, str] = field(default_factory=dict)
    """Pairs of classes that mirroring exchanges, such as {moves_left: moves_right}."""
    color_jitter: float = 0.0
    """Changes brightness, contrast and saturation by up to this fraction x, hue by x/8 turns."""
    grayscale: float = 0.0
    erase: float = 0.0
    """Probabilities of removing color (grayscale), and of a gray rectangle (erase)."""
    rand_augment: int = 0
    """Number of RandAugment operations per clip."""
    rand_augment_magnitude: int = 9
    """Strength of the operations, 0 to 30."""
    mixup: float = 0.0
    cutmix: float = 0.0
    """Fractions of batches whose clips are blended (mixup) or pasted into one another (cutmix)."""


@dataclass(frozen=True)
class TestConfig:
    """Views of each video in `test` and `predict`, and in the validations of training."""

    num_clips: int = number(1, at_least=1, at_most=1000)
    num_crops: int = number(1, at_most=10)
    """1: center. 3: left, center, right (or top, center, bottom). 10: corners, center, and their
    mirror images. 0: the whole frame (fully convolutional testing), one video per batch."""
    twice_sample: bool = False
    """mmaction2: twice as many views. For segments, the second view has their first frames."""
    use_offset: bool = False
    """pyslowfast: spaces views by a whole number of frames, from the start to the end."""
    short_side: int = number(256, at_least=1, at_most=4096)
    height: int | None = number(None, at_least=1, at_most=2048)
    width: int | None = number(None, at_least=1, at_most=2048)
    """Test crop in pixels; the training crop by default."""
    batch_size: int = number(16, at_least=1, at_most=4096)
    """Views per forward pass."""


@dataclass(frozen=True)
class SystemConfig:
    """An attention system and its positions in the network."""

    name: str | None = None
    after: tuple[str, ...] = ()
    """Positions such as [layer2.1, layer2.3]. Empty: the paper's positions, or ours where
    docs/attention.md states so. Systems that join layers, surround stages or replace the classifier
    take stages ([layer2, layer3])."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the block."""


@dataclass(frozen=True)
class AttentionConfig(SystemConfig):
    """One attention system, or a list of systems, which are attached in order.

    attention: [{name: non_local, after: [layer2.1]}, cbam] runs CBAM on every branch, and a
    non-local block in res3. After the same position, blocks run in the order of the list. A head
    comes last. recipe/attention.py describes the words of the command line.
    """

    then: dict[str, SystemConfig] = field(default_factory=dict)
    """The systems after the first, by number: "1", "2", ... In a recipe, `attention` is a list."""

    @property
    def systems(self) -> list[SystemConfig]:
        """Returns all systems, in order; none if there is no attention."""
        if self == AttentionConfig():
            return []
        return [self, *(self.then[number] for number in sorted(self.then, key=int))]


@dataclass(frozen=True)
class ModelConfig:
    name: str = "i3d_r50"
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network, such as width or dropout."""
    weights: str | None = None
    """A run, a shared folder, a checkpoint, or a public model: its name alone
    (pyslowfast/I3D_8x8_R50), to download its file, or NAME:FILE. 2-D weights are inflated.
    Classifiers and attention blocks that the weights lack start from random weights."""
    inflate: Literal["mean", "centre"] = "mean"
    """How 2-D weights fill the time axis. mean: repeated and divided by the number of frames.
    centre: in the center frame, and 0 in the others."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    edition: int = 2
    """The edition of the defaults of attention systems (docs/attention.md). 1: the defaults before
    this key existed, some of which differ from the papers. Runs stored without the key keep 1."""


@dataclass(frozen=True)
class TrainConfig:
    num_epochs: int = 10
    batch_size: int = number(8, at_least=1)
    """Clips per process and step."""
    num_clips: int = 1
    """Clips per video, which is decoded once for all of them (repeated augmentation, Hoffer et al.,
    CVPR 2020). A step has batch_size / num_clips videos; an epoch has num_clips times the steps."""
    accumulate_steps: int = number(1, at_least=1)
    """Batches whose gradients are summed before an update."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = number(0.01, at_least=0)
    """Peak learning rate. It is not scaled with the batch size."""
    schedule: Literal["cosine", "one_cycle", "multistep"] = "cosine"
    warmup_epochs: float = number(0.0, at_least=0)
    milestones: tuple[int, ...] = ()
    """multistep: epochs of a stage at which the learning rate is divided by 10."""
    stage_epochs: tuple[int, ...] = ()
    """Networks that are trained in stages (hard_crop): the epochs of each stage, whose sum is
    num_epochs; equal by default. The schedule restarts in each stage."""
    weight_decay: float = number(1e-4, at_least=0)
    """Not applied to norms and biases."""
    freeze_backbone_epochs: int = number(0, at_least=0)
    """Fine-tuning: freezes the backbone for this many epochs. The backbone is every parameter in
    model.weights; a new classifier and new attention blocks are trained."""
    freeze_batch_norm: bool = False
    """Fine-tuning: freezes the statistics, scale and shift of the backbone's batch norms."""
    backbone_lr_scale: float = number(1.0, at_least=0)
    """Fine-tuning: learning rate of the backbone as a fraction of lr."""
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """bce: binary cross entropy, for several labels per video; the metric is mAP."""
    class_balance: float | int | Literal["inverse", "effective"] = 0
    """For unequal classes. A number draws videos by class: 0 each video once per epoch, 0.5 classes
    by the square root of their size, 1 all classes equally often. inverse, effective: loss weights
    by the number of videos, or by their effective number (Cui et al., CVPR 2019)."""
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["off", "on", "max-autotune"] = "off"
    """Compiles the training step with torch.compile, which takes a minute or more and needs a C++
    compiler. max-autotune also measures kernels and uses CUDA graphs (docs/training.md)."""
    ema: float | None = None
    """Decay of a moving average of the weights, such as 0.999, which is validated and saved, and
    which `test` and `predict` load."""
    sync_norm: bool = False
    """Batch norms compute their statistics over all processes (GPUs only)."""
    auxiliary_weights: dict[str, float] = field(default_factory=dict)
    """Weights of an attention system's losses by name, which replace its defaults, as in
    {interaction: 0.1, diversity: 0}; 0 only logs a loss."""
    per_frame_loss: bool = False
    """Averages one loss per frame instead of computing one loss per clip, for networks that
    classify each frame or segment before they average (tsn)."""
    precise_norm_clips: int = 0
    """Recomputes batch-norm statistics on this many training clips, with test views, before each
    validation and at the end of each stage; 0 keeps the moving averages."""
    validate_every: int = number(1, at_least=0)
    """Epochs between validations; 0 trains without validation and without a test split."""
    patience: int | None = number(None, at_least=1)
    """Training ends after this many consecutive validations without improvement."""
    save_every_steps: int | None = number(None, at_least=1)
    """Also writes a checkpoint every this many steps."""
    keep_epochs: int | None = number(None, at_least=1)
    """Also keeps the checkpoint of every this many epochs."""
    trackers: tuple[str, ...] = ()
    """[mlflow], [wandb] or both: also sends metrics to MLflow and Weights & Biases
    (docs/training.md)."""


@dataclass(frozen=True)
class Config:
    name: str = MISSING
    """Name of the run, which is written to runs/<name>/."""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    test: TestConfig = field(default_factory=TestConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def test_size(self) -> tuple[int, int]:
        """The height and width of a test crop, in pixels."""
        return self.test.height or self.clip.height, self.test.width or self.clip.width


def limits(kind: Literal["at_least", "at_most"]) -> dict[str, int]:
    """Returns the lower or upper limits of numbers by key, such as "clip.num_frames"."""
    return {
        f"{section.name}.{key.name}": key.metadata[kind]
        for section in fields(Config)
        if is_dataclass(section.type)
        for key in fields(section.type)
        if kind in key.metadata
    }


@contextmanager
def section(name: str) -> Iterator[None]:
    """Adds the section's name to a ValueError whose message starts with a key of the section.

    A constructor names its argument ("num_clips: got 3; ..."), and the user reads it as
    "train.num_clips: got 3; ...". Other messages, such as those that name a file, stay as they are.
    """
    sections: dict[str, Any] = {field.name: field.type for field in fields(Config)}
    keys = [field.name for field in fields(sections[name])]
    try:
        yield
    except ValueError as error:
        argument = re.match(r"([a-z]\w*)(\.\w+)*[:=]", str(error))
        if type(error) is not ValueError or argument is None or argument[1] not in keys:
            raise
        raise ValueError(f"{name}.{error}") from error
