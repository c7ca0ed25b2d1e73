"""List formats -> Samples: paths, labels, class names.

Paths and labels lie in flat arrays: a Python list of strings would be copied into every worker,
page by page, as reference counts touch it.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8

# fmt: off
VIDEO_SUFFIXES = frozenset(
    [".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts",
     ".webm", ".wmv"]
)
# fmt: on


class Samples:
    """A data set's table: `path(i)`, `label(i)`, and `class_names[label]`."""

    def __init__(
        self,
        root: Path,
        *,
        paths: Sequence[str],
        labels: Sequence[int],
        class_names: Sequence[str],
    ) -> None:
        """`paths` are relative to `root`, or absolute."""
        encoded = [os.fsencode(path) for path in paths]
        self.root = root
        self.class_names = tuple(class_names)
        self.labels: Int64[np.ndarray, " N"] = np.array(labels, dtype=np.int64)
        self._bytes: UInt8[np.ndarray, " B"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends: Int64[np.ndarray, " N"] = np.cumsum([len(p) for p in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        start = self._ends[index - 1] if index else 0
        return self.root / os.fsdecode(self._bytes[start : self._ends[index]].tobytes())

    def label(self, index: int) -> int:
        return int(self.labels[index])


def read_folders(
    root: str | Path, split: str | None = None, *, class_names: Sequence[str] | None = None
) -> Samples:
    """`root/class/*`, or `root/split/class/*`; a class's videos may lie in folders of their own.

    Classes are the folders' names, sorted, unless `class_names` gives their order.

    Raises: ValueError for a missing root or split, a named class without a folder, no video.
    """
    root = _existing(root)
    folder = root if split is None else root / split
    if not folder.is_dir():
        raise ValueError(
            f"{root} has no split {split!r}; it has {_some(_folders(root)) or 'no folders'}"
        )
    names = tuple(class_names) if class_names is not None else tuple(_folders(folder))
    _check_class_folders(folder, names)
    paths, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
                paths.append(str(path.relative_to(root)))
                labels.append(label)
    if not paths:
        raise ValueError(
            f"{folder} holds no video; expected {folder}/CLASS/VIDEO, "
            f"with one of {' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return Samples(root, paths=paths, labels=labels, class_names=names)


def read_ucf101(
    root: str | Path, split: int = 1, subset: Literal["train", "test"] = "train"
) -> Samples:
    """UCF101's own layout: `ucfTrainTestlist/` or `annotations/`, `videos/` or `UCF-101/`.

    The lists' extension is ignored: re-encoded copies are found by their stem.

    Raises: ValueError for anything missing, malformed or out of range, with file and line.
    """
    root = _existing(root)
    lists = _first_folder(root, ("ucfTrainTestlist", "annotations", "."), "classInd.txt")
    videos = next((root / n for n in ("videos", "UCF-101") if (root / n).is_dir()), root)
    names = read_class_index(lists / "classInd.txt")
    _check_class_folders(videos, names)
    list_file = lists / f"{subset}list{split:02d}.txt"
    if not list_file.is_file():
        raise ValueError(f"{list_file} does not exist; split {split} ({subset}) needs it")
    listed, labels = read_ucf101_list(list_file, names)
    found = _find_by_stem(videos, listed)
    _check_found([listed[i] for i, path in enumerate(found) if path is None], videos)
    paths = [str((videos / path).relative_to(root)) for path in found if path is not None]
    return Samples(root, paths=paths, labels=labels, class_names=names)


def read_list(
    list_file: str | Path, root: str | Path, *, class_names: Sequence[str] | None = None
) -> Samples:
    """Lines of `path label`, labels from 0; paths relative to `root`, spaces allowed in them.

    Without `class_names` the classes are "0", "1", ... up to the largest label.

    Raises: ValueError for anything missing, malformed or out of range, with file and line.
    """
    root = _existing(root)
    list_file = Path(list_file)
    if not list_file.is_file():
        raise ValueError(f"{list_file}: the list file does not exist")
    paths, labels = [], []
    for where, line in _lines(list_file):
        path, _, label = line.rpartition(" ")
        if not path.strip() or not _is_integer(label):
            raise ValueError(f"{where}: got {line!r}; expected 'path label', e.g. 'a/b.mp4 3'")
        _check_label(int(label), None if class_names is None else len(class_names), where)
        paths.append(path.strip())
        labels.append(int(label))
    if not paths:
        raise ValueError(f"{list_file}: the list is empty; expected lines of 'path label'")
    names = class_names if class_names is not None else [str(i) for i in range(max(labels) + 1)]
    there = _listing(root, paths)
    _check_found([p for p in paths if os.path.basename(p) not in there[os.path.dirname(p)]], root)
    return Samples(root, paths=paths, labels=labels, class_names=names)


def read_class_index(path: Path) -> tuple[str, ...]:
    """UCF101's classInd.txt: lines of `number name`, numbers 1, 2, 3, ..."""
    names: list[str] = []
    for where, line in _lines(path):
        number, _, name = line.partition(" ")
        if number != str(len(names) + 1) or not name.strip():
            raise ValueError(f"{where}: got {line!r}; expected '{len(names) + 1} ClassName'")
        names.append(name.strip())
    return tuple(names)


def read_ucf101_list(path: Path, class_names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Names and labels (from 0) of a trainlist (`Class/name.avi 1`) or testlist (no number)."""
    by_name = {name: label for label, name in enumerate(class_names)}
    names, labels = [], []
    for where, line in _lines(path):
        name, _, number = line.partition(" ")
        folder = name.partition("/")[0]
        if "/" not in name or (number and not _is_integer(number)):
            raise ValueError(f"{where}: got {line!r}; expected 'Class/video.avi' or with a label")
        if number:
            _check_label(int(number) - 1, len(class_names), where, first=1)
        elif folder not in by_name:
            raise ValueError(f"{where}: class {folder!r} is not in classInd.txt")
        names.append(name)
        labels.append(int(number) - 1 if number else by_name[folder])
    if not names:
        raise ValueError(f"{path}: the list is empty; expected lines of 'Class/video.avi'")
    return names, labels


def _lines(path: Path) -> Iterable[tuple[str, str]]:
    """("file line number", text) of every line that is not blank."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path} line {number}", line.strip()


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _check_label(label: int, num_classes: int | None, where: str, first: int = 0) -> None:
    if label < 0 or (num_classes is not None and label >= num_classes):
        allowed = f"{first} - {num_classes - 1 + first}" if num_classes else "0 or more"
        raise ValueError(f"{where}: label {label + first} is out of range; allowed: {allowed}")


def _check_class_folders(folder: Path, names: Sequence[str]) -> None:
    there = set(_folders(folder))
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(
            f"{folder} has no folder for {len(missing)} of {len(names)} classes: {_some(missing)}"
        )


def _check_found(missing: Sequence[str], root: Path) -> None:
    if missing:
        raise ValueError(
            f"{len(missing)} listed files do not exist under {root}: {_some(missing)}; "
            "take them out of the list, or set the data root"
        )


def _find_by_stem(folder: Path, listed: Sequence[str]) -> list[str | None]:
    """For each listed `dir/name.ext`, the file `dir/name.*` that is there (its own name first)."""
    by_stem: dict[str, str] = {}
    for directory, names in _listing(folder, listed).items():
        for name in sorted(names, reverse=True):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in VIDEO_SUFFIXES:
                by_stem[os.path.join(directory, stem)] = os.path.join(directory, name)
    present = set(by_stem.values())
    return [n if n in present else by_stem.get(os.path.splitext(n)[0]) for n in listed]


def _listing(root: Path, paths: Iterable[str]) -> dict[str, frozenset[str]]:
    """Names in each folder that the paths mention: one call per folder, not one per file."""
    folders = {os.path.dirname(path) for path in paths}
    return {
        f: frozenset(os.listdir(root / f)) if (root / f).is_dir() else frozenset() for f in folders
    }


def _existing(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"data root {root} does not exist; set data.root to the folder of videos")
    return root


def _first_folder(root: Path, names: Sequence[str], file: str) -> Path:
    for name in names:
        if (root / name / file).is_file():
            return root / name
    tried = ", ".join(str(root / name) for name in names)
    raise ValueError(f"{file} was not found in {tried}; put UCF101's list files there")


def _folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
