"""What a recipe may say: frozen dataclasses, and the only reader and writer of YAML.

A recipe lists what differs from the defaults below. Loading is strict: an unknown key or a value
of the wrong type is an error that names the key, what it got and what is allowed.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING


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
