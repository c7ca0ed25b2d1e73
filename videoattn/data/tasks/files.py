"""Writes the clips of a diagnostic task and their truth, and reads the truth."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from videoattn.data.synthetic import DemoClip, Split, encode_clip
from videoattn.data.tasks.clips import FRAME_RATE, SIDE, TASKS, task_clip
from videoattn.errors import one_of
from videoattn.files import read_arrays, write_whole


class Truth(NamedTuple):
    """The ground truth of one split.

    Args:
        paths: The clips, such as "top_left/00003.mp4", sorted.
        queries: (N, 3), frame, y and x in pixels of the clip.
        packed: (2, N, T, S, S / 8), the masks of evidence and distractors, 8 pixels to a byte.
    """

    paths: list[str]
    queries: np.ndarray
    packed: np.ndarray

    def masks(self, path: str) -> Tensor:
        """Returns the evidence and the distractors of a clip, (2, T, S, S), boolean.

        Raises:
            ValueError: If the split does not have the clip.
        """
        if path not in self.paths:
            raise ValueError(f"the truth has no clip {path!r}; it has {first_few(self.paths)}")
        found = np.unpackbits(self.packed[:, self.paths.index(path)], axis=-1)
        return torch.from_numpy(found.astype(bool))


def write_task(
    task: str,
    root: Path,
    *,
    num_train: int = 2000,
    num_test: int = 500,
    seed: int = 0,
    num_threads: int = 2,
    on_clip: Callable[[Path], None] | None = None,
    **options: int,
) -> list[Path]:
    """Writes `root/{train,test}/<class>/<number>.mp4`, and the truth of each split.

    `root/train.npz` and `root/test.npz` hold the truth; see `read_truth`.

    The same arguments write the same frames and the same truth.

    Args:
        num_train, num_test: Clips per split; the classes have equally many, or one more.
        on_clip: Called with each finished path, in order, for example to show progress.
        options: `identities` and `dots` of `task_clip`.

    Raises:
        ValueError: If an argument is outside its range, or a split has fewer clips than classes.
    """
    classes = TASKS[one_of("task", task, TASKS)]
    splits: dict[Split, int] = {"train": num_train, "test": num_test}
    for split, count in splits.items():
        if count < len(classes):
            raise ValueError(f"num_{split}: got {count}; need at least 1 per class, {len(classes)}")
    written = []
    for split, count in splits.items():
        names = sorted(f"{classes[n % len(classes)]}/{n:05d}.mp4" for n in range(count))

        def write(name: str, split: Split = split) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            label, number = classes.index(path.parent.name), int(path.stem)
            clip = task_clip(task, label, number=number, split=split, seed=seed, **options)
            encode_clip(path, DemoClip(clip.frames, FRAME_RATE))
            return clip.evidence, clip.distractors, clip.query

        truth = []
        with ThreadPoolExecutor(num_threads) as pool:
            for name, (evidence, distractors, query) in zip(names, pool.map(write, names), strict=True):
                truth.append((np.packbits(evidence, -1), np.packbits(distractors, -1), query))
                written.append(root / split / name)
                if on_clip is not None:
                    on_clip(written[-1])
        _write_truth(root / f"{split}.npz", names, truth)
    return written


def read_truth(path: Path) -> Truth:
    """Reads the truth of a split, `root/train.npz` or `root/test.npz`.

    Raises:
        ValueError: If the file is damaged, too large, or not the truth of a task.
    """
    arrays = read_arrays(path)
    return Truth([str(name) for name in arrays["paths"]], arrays["queries"], arrays["masks"])
