"""A data set's table in flat arrays, which workers share instead of copying."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from videoattn.data.lists.spans import Spans


class Samples:
    """`path(i)`, `label(i)`, and `class_names[label]`.

    `num_frames` and `fps` (frames a second) are None where nothing is known before decoding; a 0
    in them is one video of which nothing is known. With `frame_template` paths are folders of
    pictures, frame 0 being the file `frame_template.format(1)`. `missing` names the listed videos
    that are not there; whoever made the table left them out or kept them.
    """

    def __init__(
        self,
        root: Path,
        *,
        paths: Sequence[str] | Spans,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        num_frames: Int64[np.ndarray, " N"] | None = None,
        fps: Float64[np.ndarray, " N"] | None = None,
        frame_template: str | None = None,
        missing: Sequence[str] = (),
    ) -> None:
        """`paths` are relative to `root`, or absolute."""
        self.root = root
        self.paths = (paths if isinstance(paths, Spans) else Spans.of(paths)).compact()
        self.labels: Int64[np.ndarray, " N"] = np.array(labels, dtype=np.int64)
        self.class_names = tuple(class_names)
        self.num_frames = num_frames
        self.fps = fps
        self.frame_template = frame_template
        self.missing = tuple(missing)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        return self.root / self.paths[index]

    def label(self, index: int) -> int:
        return int(self.labels[index])
