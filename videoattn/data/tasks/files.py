"""Writes the clips of a diagnostic task and their truth, and reads the truth."""

import re
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from videoattn.data.synthetic import DemoClip, Split, encode_clip
from videoattn.data.tasks.clips import COLORS, FRAME_RATE, TaskClip, task_classes, task_clip
from videoattn.errors import first_few
from videoattn.files import read_arrays, write_arrays

MOST_BYTES = 2**32
_NAME = re.compile(r"\w+/\d+\.mp4")  # below the folder of the split, not outside
_ARRAYS = ("paths", "queries", "masks")
_WRONG = "wrong_queries"


class Truth(NamedTuple):
    """The ground truth of one split.

    Args:
        paths: The N clips, such as "top_left/00003.mp4", sorted.
        queries: (N, 3), frame, y and x in pixels of the clip.
        packed: (2, N, T, S, S / 8), the masks of evidence and distractors, 8 pixels to a byte.
        wrong_queries: (N, K, 3), the wrong queries of `TaskClip`; None in files of old versions.
    """

    paths: list[str]
    queries: np.ndarray
    packed: np.ndarray
    wrong_queries: np.ndarray | None

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
    on_clip: Callable[[Path], object] = lambda path: None,
    **options: int,
) -> list[Path]:
    """Writes `root/{train,test}/<class>/<number>.mp4`, and the truth to `root/{train,test}.npz`.

    Args:
        num_train, num_test: Clips per split. Classes have equally many, or differ by one.
        seed: The same arguments write the same frames and the same truth.
        on_clip: Called with each finished path, in order, for example to show progress.
        options: `identities`, `dots` and `gap` of `task_clip`.

    Raises:
        ValueError: If an argument is outside its range, or a split has fewer clips than classes.
    """
    classes = task_classes(task, options.get("identities", COLORS))
    splits: dict[Split, int] = {"train": num_train, "test": num_test}
    for split, count in splits.items():
        if (least := len(classes)) > count:
            raise ValueError(f"num_{split}: got {count}; need at least {least}, one per class")
    written = []

    def draw(split: Split, name: str) -> TaskClip:
        path = root / split / name
        label, number = classes.index(path.parent.name), int(path.stem)
        clip = task_clip(task, label, number=number, split=split, seed=seed, **options)
        encode_clip(path, DemoClip(clip.frames, FRAME_RATE))
        return clip

    for split, count in splits.items():
        names = sorted(f"{classes[n % len(classes)]}/{n:05d}.mp4" for n in range(count))
        truth = []
        with ThreadPoolExecutor(num_threads) as pool:
            clips = pool.map(draw, [split] * count, names)
            for name, clip in zip(names, clips, strict=True):
                masks = np.packbits(torch.stack(clip[1:3]), axis=-1)
                truth.append((clip.query, clip.wrong_queries, masks))
                written.append(root / split / name)
                on_clip(written[-1])
        write_arrays(root / f"{split}.npz", _arrays(names, truth), compressed=True)
    return written


def _arrays(names: list[str], truth: list[tuple]) -> dict[str, np.ndarray]:
    queries, wrong, masks = zip(*truth, strict=True)
    arrays = np.array(names), np.array(queries), np.stack(masks, axis=1)
    wrong_queries = np.array(wrong, int).reshape(len(names), -1, 3)
    return dict(zip((*_ARRAYS, _WRONG), (*arrays, wrong_queries), strict=True))


def read_truth(path: Path) -> Truth:
    """Reads the truth of a split, `root/train.npz` or `root/test.npz`.

    Raises:
        ValueError: If the file is damaged, too large, or not the truth of a task.
    """
    try:
        arrays = read_arrays(path, most=MOST_BYTES, names=(*_ARRAYS, _WRONG))
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); write the task again") from error
    paths, queries, masks = (arrays.get(name, np.zeros(0)) for name in _ARRAYS)
    count, wrong = len(paths), arrays.get(_WRONG)
    shapes = queries.shape == (count, 3) and masks.shape[:2] == (2, count) and masks.ndim == 5
    if wrong is not None:
        shapes &= wrong.ndim == 3 and wrong.shape[::2] == (count, 3) and wrong.dtype.kind == "i"
    named = paths.dtype.kind == "U" and all(map(_NAME.fullmatch, paths.tolist()))
    if not shapes or not named or masks.dtype != np.uint8:
        raise ValueError(f"{path} is not the truth of a task; write the task again")
    return Truth(paths.tolist(), queries, masks, wrong)
