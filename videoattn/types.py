"""Axis letters, tensor aliases, and the records that packages share.

N clips, V views, S segments, C channels, T frames, H height, W width, K classes.
Decoded frames are (T, C, H, W) uint8. Networks take (N, C, T, H, W) float, `channels_last_3d` in
memory. For a TSN, T is the number of segments.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

Frames = UInt8[Tensor, "T C H W"]
"""Decoded RGB frames, 0 - 255, a view of channels-last memory."""

Views = UInt8[Tensor, "N V T C H W"]
"""V views (clips x crops) of each of N videos, from a loader."""

Video = Float[Tensor, "N C T H W"]
Logits = Float[Tensor, "N K"]
Labels = Int64[Tensor, " N"]
Target = Int64[Tensor, " N"] | Float[Tensor, "N K"]
"""Class indices, -1 if unknown; or one value per class: 1, 0, or its share in a mixed clip."""
Grid = tuple[int, int, int]
"""(T, H, W): frames, height and width of a clip or of features."""


@dataclass(frozen=True)
class Failure:
    """A video that could not be used: its index in the dataset, its path, and the reason."""

    index: int
    path: str
    reason: str


class Batch(NamedTuple):
    """A batch from a loader. Samples that failed are listed in `failures` only."""

    frames: Views
    labels: Target  # one value per class if a video may have several classes
    indices: Labels  # index of each sample in the dataset
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class ModelInfo:
    """The structure of a network, for other packages. All names are dotted names.

    Args:
        classifier: The layer that returns the logits.
        stages: For each stage, its blocks in order: {"layer2": ("layer2.0", "layer2.1"), ...}.
        features: The module whose output the head reads ("layer4").
        axes: Layout of the input; "NCHW" is a network of single images.
        branch_ends: For each block with a residual branch, the branch's last norm
            ("layer2.1.bn2").
        token_grid: For a network of tokens, the function from a clip's (T, H, W) to the (T, H, W)
            of its tokens; None for other networks.
        special_tokens: Tokens without a position, in order, before the grid's ("class").
        map_name: Name of the attention maps of the network as a whole, if it has such maps.
    """

    classifier: str
    stages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    features: str = ""
    axes: Literal["NCTHW", "NTCHW", "NCHW"] = "NCTHW"
    branch_ends: Mapping[str, str] = field(default_factory=dict)
    token_grid: Callable[[Grid], Grid] | None = None
    special_tokens: tuple[str, ...] = ()
    map_name: str = ""

    @property
    def blocks(self) -> list[str]:
        """The names of the blocks of all stages, in order."""
        return [block for blocks in self.stages.values() for block in blocks]


def own_info(model: object) -> ModelInfo | None:
    """Returns the `info` attribute of a network, or None. All our networks have one."""
    info = getattr(model, "info", None)
    return info if isinstance(info, ModelInfo) else None
