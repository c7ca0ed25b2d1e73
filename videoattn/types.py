"""The alphabet of axes, and the tensor aliases that every signature uses.

N clips, V views, S segments, C channels, T frames, H height, W width, K classes.
Decoded frames are (T, C, H, W) uint8; everything that a network sees is (N, C, T, H, W) float,
`channels_last_3d` in memory. A TSN's segments are its T.
"""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

Frames = UInt8[Tensor, "T C H W"]
"""What a decoder returns: RGB, 0 - 255, a view of channels-last memory."""

Views = UInt8[Tensor, "N V T C H W"]
"""What a loader returns: V views (clips x crops) of each of N videos."""

Video = Float[Tensor, "N C T H W"]
Logits = Float[Tensor, "N K"]
Labels = Int64[Tensor, " N"]
Target = Int64[Tensor, " N"] | Float[Tensor, "N K"]
"""What a loss compares with logits: class indices, or a share for each class."""


@dataclass(frozen=True)
class Failure:
    """A video that could not be used: its place in the data set, its path, and why."""

    index: int
    path: str
    reason: str


class Batch(NamedTuple):
    """What a loader yields. Samples that failed are in `failures` and in nothing else."""

    frames: Views
    labels: Labels  # -1 where the list names no class
    indices: Labels  # each sample's place in the data set
    failures: tuple[Failure, ...] = ()
