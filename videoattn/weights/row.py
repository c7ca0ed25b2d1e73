"""What the table of public models says of each: plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from videoattn.weights.keys import Layout

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How the model was fed. mean, std: of RGB in 0 - 1. sampling: as a recipe's clip.sampling;
    an image network has one frame. size: pixels of the training crop. Then the published test:
    short_side and test_size in pixels, and num_clips x num_crops views of a video, each of
    num_frames frames or of test_frames, where that is given. Ten crops are five and their mirror
    images."""

    mean: Colour
    std: Colour
    sampling: Literal["dense", "segments"]
    num_frames: int
    frame_stride: int
    size: int = 224
    short_side: int = 256
    test_size: int = 256
    num_clips: int = 10
    num_crops: int = 3
    test_frames: int | None = None

    @property
    def views(self) -> str:
        """As the published accuracy has them: "10 clips x 3 crops"."""
        crops = f"{self.num_crops} crops" if self.num_crops > 1 else "1 crop"
        if self.sampling == "dense":
            clips = f"{self.num_clips} clips" if self.num_clips > 1 else "1 clip"
            frames_each = f" of {self.test_frames} frames" if self.test_frames else ""
            return f"{clips}{frames_each} x {crops}"
        frames = self.test_frames or self.num_frames
        return f"{frames} segments x {crops}" if frames > 1 else crops


@dataclass(frozen=True)
class PublicModel:
    """One row.

    network, options: as a recipe's model.name and model.options. non_local: options of the blocks
        behind each of `after`; None for a network without.
    layouts: how files of this model name its parameters; the first is the one that is written.
    top1: percent, on the validation set of `dataset`, with the views of `preprocessing`; `source`
        is the page that says so. None where no such page is known.
    url: where the file is published, for the user to fetch; None where it is not.
    """

    network: str
    layouts: tuple[Layout, ...]
    preprocessing: Preprocessing
    licence: str
    options: Mapping[str, Any] = field(default_factory=dict)
    non_local: Mapping[str, Any] | None = None
    after: tuple[str, ...] = ()
    dataset: str = "Kinetics-400"
    top1: float | None = None
    source: str | None = None
    url: str | None = None
