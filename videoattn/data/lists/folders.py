"""Class folders: no list at all."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from videoattn.data.lists.files import (
    VIDEO_SUFFIXES,
    all_videos,
    existing_root,
    folders_in,
)
from videoattn.data.lists.samples import Samples
from videoattn.errors import first_few


def read_folders(
    root: str | Path, split: str | None = None, *, class_names: Sequence[str] | None = None
) -> Samples:
    """`root/class/*`, or `root/split/class/*`; a class's videos may lie in folders of their own.

    Classes are the folders' names, sorted, unless `class_names` gives their order.

    Raises: ValueError for a missing root or split, a class without a folder, a folder without a
    class, no video.
    """
    root = existing_root(root)
    folder = root if split is None else root / split
    if not folder.is_dir():
        raise ValueError(f"{root} has no split {split!r}; it has {first_few(folders_in(root))}")
    names = tuple(class_names) if class_names is not None else tuple(folders_in(folder))
    check_class_folders(folder, names)
    if extra := [name for name in folders_in(folder) if name not in set(names)]:
        raise ValueError(
            f"{folder} has folders that are none of the {len(names)} classes: {first_few(extra)}"
        )
    there = all_videos(root, "" if split is None else f"{split.rstrip('/')}/")
    before = 0 if split is None else split.rstrip("/").count("/") + 1
    parents, which = there.paths.rsplit("/")[0].unique()
    label_of = {name: label for label, name in enumerate(names)}
    classes = [[*parent.split("/"), ""][before] if parent else "" for parent in parents]
    labels = np.array([label_of.get(name, -1) for name in classes], np.int64)[which]
    rows = np.argsort(labels, kind="stable")
    rows = rows[labels[rows] >= 0]
    if not len(rows):
        raise ValueError(
            f"{folder} holds no video; expected {folder}/CLASS/VIDEO, "
            f"with one of {' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    there = there.take(rows)
    return Samples(
        root,
        paths=there.paths,
        labels=labels[rows],
        class_names=names,
        num_frames=there.num_frames,
        fps=there.fps,
    )


def check_class_folders(folder: Path, names: Sequence[str]) -> None:
    there = set(folders_in(folder))
    if missing := [name for name in names if name not in there]:
        raise ValueError(
            f"{folder} has no folder for {len(missing)} of {len(names)} classes: "
            f"{first_few(missing)}"
        )
