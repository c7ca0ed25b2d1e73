"""The official lists of UCF101 and HMDB51."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from videoattn.data.lists.files import (
    Listed,
    Missing,
    existing_root,
    find_videos,
    first_folder,
)
from videoattn.data.lists.folders import check_class_folders
from videoattn.data.lists.lines import Lines
from videoattn.data.lists.samples import Samples
from videoattn.data.lists.spans import Spans
from videoattn.data.prepare.index import INDEX_NAME

Subset = Literal["train", "test"]


def read_ucf101(
    root: str | Path, split: int = 1, subset: Subset = "train", *, missing: Missing = "raise"
) -> Samples:
    """UCF101's own layout: `ucfTrainTestlist/` or `annotations/`, `videos/` or `UCF-101/`.

    The lists' extension is ignored: re-encoded copies are found by their stem.

    Raises: ValueError for what is missing, malformed, repeated or out of range, with file and line.
    """
    root = existing_root(root)
    lists = _lists_folder(root, ("ucfTrainTestlist", "annotations", "."), "classInd.txt", "UCF101")
    names = read_class_index(lists / "classInd.txt")
    list_file = lists / f"{subset}list{split:02d}.txt"
    if not list_file.is_file():
        raise ValueError(f"{list_file} does not exist; split {split} ({subset}) needs it")
    videos = first_folder(root, ("videos", "UCF-101"))
    listed = read_ucf101_list(list_file, names)
    return _find(root, videos, listed, missing)


def read_class_index(path: Path) -> tuple[str, ...]:
    """UCF101's classInd.txt: lines of `number name`, numbers 1, 2, 3, ..."""
    lines = Lines.read(path)
    lines.check_not_empty("'number ClassName'")
    for i, line in enumerate(lines.text):
        number, _, name = line.partition(" ")
        if number != str(i + 1) or not name.strip():
            lines.fail([i], f"got {line!r}; expected '{i + 1} ClassName'")
    names = [line.partition(" ")[2].strip() for line in lines.text]
    lines.check_no_repeats(Spans.of(names))
    return tuple(names)


def read_ucf101_list(path: Path, class_names: Sequence[str]) -> Listed:
    """A trainlist (`Class/name.avi 1`) or testlist (no number): `Class/name.avi` and labels."""
    lines = Lines.read(path)
    lines.check_not_empty("'Class/video.avi'")
    left, right, numbered = lines.text.rsplit(" ")
    names = Spans(
        left.data, left.starts, np.where(numbered, left.ends, right.ends).astype(np.int64)
    ).strip()
    folders, _, in_folder = names.rsplit("/")
    numbers, valid = right.integers()
    lines.check(in_folder & (valid | ~numbered), "'Class/video.avi' or with a label")
    lines.check_labels(np.where(numbered, numbers - 1, 0), len(class_names), first=1)
    labels, classes = lines.class_labels(folders, class_names)
    if len(wrong := np.flatnonzero(numbered & (numbers - 1 != labels))):
        got = int(numbers[wrong[0]])
        lines.fail(
            wrong,
            f"label {got} is {classes[got - 1]!r} in the class list, "
            f"but the video is in {folders[wrong[0]]!r}",
        )
    lines.check_no_repeats(names)
    return Listed(names, labels, classes)


def read_hmdb51(
    root: str | Path, split: int = 1, subset: Subset = "train", *, missing: Missing = "raise"
) -> Samples:
    """HMDB51's own layout: `CLASS_test_split1.txt` files, and `videos/` or `hmdb51_org/`.

    The lists may lie in `testTrainMulti_7030_splits/`, `annotations/`, `splits/` or the root. Their
    extension is ignored: re-encoded copies are found by their stem.

    Raises: ValueError for anything missing, malformed or repeated, with file and line.
    """
    root = existing_root(root)
    places = ("testTrainMulti_7030_splits", "annotations", "splits", ".")
    lists = _lists_folder(root, places, f"*_test_split{split}.txt", "HMDB51")
    listed = read_hmdb51_lists(lists, split, subset)
    return _find(root, first_folder(root, ("videos", "hmdb51_org")), listed, missing)


def read_hmdb51_lists(folder: Path, split: int, subset: Subset) -> Listed:
    """`class/name.avi` and labels, from a list per class: `name.avi 1` trains, 2 tests, 0 neither.

    The classes are the lists' names, sorted.
    """
    ending = f"_test_split{split}.txt"
    files = sorted(folder.glob(f"*{ending}"))
    class_names = tuple(path.name.removesuffix(ending) for path in files)
    paths: list[str] = []
    labels: list[Int64[np.ndarray, " N"]] = []
    for label, (name, file) in enumerate(zip(class_names, files, strict=True)):
        lines = Lines.read(file)
        videos, last, found = lines.text.rsplit(" ")
        videos = videos.strip()
        use, valid = last.integers()
        lines.check(
            found & valid & (use >= 0) & (use <= 2),
            "'video.avi 1' (train), 2 (test) or 0 (not in this split)",
        )
        lines.check_no_repeats(videos)
        here = videos.take(use == (1 if subset == "train" else 2))
        paths += [f"{name}/{video}" for video in here]
        labels.append(np.full(len(here), label, np.int64))
    if not paths:
        raise ValueError(f"{folder}/*{ending}: no video of the {subset} part of split {split}")
    return Listed(Spans.of(paths), np.concatenate(labels), class_names)


def _find(root: Path, videos: str, listed: Listed, missing: Missing) -> Samples:
    if not (root / INDEX_NAME).is_file():
        check_class_folders(root / videos, listed.class_names)
    return find_videos(root, videos, listed, match="stem", missing=missing)


def _lists_folder(root: Path, names: Sequence[str], pattern: str, data_set: str) -> Path:
    for name in names:
        if any((root / name).glob(pattern)):
            return root / name
    tried = ", ".join(str(root / name) for name in names)
    raise ValueError(f"{pattern} was not found in {tried}; put {data_set}'s list files there")
