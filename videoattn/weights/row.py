"""The types that make up a row in the table of public models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from videoattn.weights.keys import Layout

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """The input that a model was trained on and tested with.

    Attributes:
        mean: Mean of RGB, in 0 - 1.
        std: Standard deviation of RGB, in 0 - 1.
        sampling: "dense" clips, or one frame of each of `num_frames` segments ("segments").
        num_frames, frame_stride: Frames of a clip (1 for an image), and the step between them.
        short_side: Pixels of a test frame's short side.
        test_size: Pixels of a test crop.
        num_clips: Test clips per video.
        num_crops: Test crops per clip. Ten crops are five crops and their mirror images.
        test_frames: Frames of a test clip, if different from `num_frames`.
    """

    mean: Color
    std: Color
    sampling: Literal["dense", "segments"]
    num_frames: int
    frame_stride: int
    short_side: int = 256
    test_size: int = 256
    num_clips: int = 10
    num_crops: int = 3
    test_frames: int | None = None

    size = 224  # pixels of a training crop, in every public model

    @property
    def views(self) -> str:
        """The views of the published accuracy, as in "10 clips x 3 crops"."""
        crops = f"{self.num_crops} crops" if self.num_crops > 1 else "1 crop"
        if self.sampling == "dense":
            clips = f"{self.num_clips} clips" if self.num_clips > 1 else "1 clip"
            frames_each = f" of {self.test_frames} frames" if self.test_frames else ""
            return f"{clips}{frames_each} x {crops}"
        frames = self.test_frames or self.num_frames
        return f"{frames} segments x {crops}" if frames > 1 else crops


class Accuracy(NamedTuple):
    """A published accuracy: top-1 in percent on the validation set, and the page that states it.

    `doubt` states why this file may have another accuracy, or is "".
    """

    top1: float
    source: str
    doubt: str = ""


class Published(NamedTuple):
    """The published file of a model.

    Attributes:
        url: Its address, or None if there is none.
        sha256: The start of its SHA-256, or "" if it is not known.
        absent: If `url` is None: the reason, and an alternative.
    """

    url: str | None = None
    sha256: str = ""
    absent: str = ""


NOWHERE = Published(absent="it has no address")


@dataclass(frozen=True)
class PublicModel:
    """A public model: a row of `PUBLIC`.

    Attributes:
        network: Name of the network, as in a recipe.
        layouts: The naming schemes of this model's files. `to_public` writes the first.
        options: Options of the network.
        non_local: Options of the non-local blocks after each of `after`, or None without blocks.
        dataset: Dataset that the model was trained and tested on.
        accuracy: None if no page states one.
        file: The published file.
    """

    network: str
    layouts: tuple[Layout, ...]
    preprocessing: Preprocessing
    license: str
    options: Mapping[str, Any] = field(default_factory=dict)
    non_local: Mapping[str, Any] | None = None
    after: tuple[str, ...] = ()
    dataset: str = "Kinetics-400"
    accuracy: Accuracy | None = None
    file: Published = NOWHERE

    @property
    def url(self) -> str | None:
        """The address of the published file, or None if there is none."""
        return self.file.url

    @property
    def is_noncommercial(self) -> bool:
        """Whether the license forbids commercial use."""
        return "-NC-" in self.license
