"""Reads datasets of class folders, which need no list."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from videoattn.data.lists.files import VIDEO_SUFFIXES, all_videos, existing_root, folders_in
from videoattn.data.lists.lines import ListError
from videoattn.data.lists.samples import Samples
from videoattn.errors import first_few


def read_folders(
    root: str | Path, split: str | None = None, *, class_names: Sequence[str] | None = None
) -> Samples:
    """Reads `root/CLASS/*` or `root/split/CLASS/*`, with any folders inside a class.

    Args:
        root: Folder of the dataset.
        split: Folder of the split inside the root, such as "train".
        class_names: Class names in the order of their labels. Default: the folders' names, sorted.

    Raises:
        ValueError: If the split, a class folder or every video is missing, or a folder has the name
            of no class.
    """
    root = existing_root(root)
    names = class_folders(root, split)
    prefix = "" if split is None else f"{split.rstrip('/')}/"
    folder = root / prefix
    if class_names is not None:
        names = tuple(class_names)
        check_class_folders(folder, names)
    label_of = {name: label for label, name in enumerate(names)}
    if extra := [name for name in folders_in(folder) if name not in label_of]:
        raise ListError(
            f"{folder} has folders outside the {len(names)} classes: {first_few(extra)}; remove "
            "them, or add them to the class list"
        )
    found = all_videos(root, prefix)
    labels = [_label(path[len(prefix) :], label_of) for path in found.paths]
    rows = sorted((row for row, label in enumerate(labels) if label >= 0), key=labels.__getitem__)
    if not rows:
        raise ListError(
            f"{folder} holds no video; expected {folder}/CLASS/VIDEO, "
            f"with one of {' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    others = [PurePosixPath(path[len(prefix) :]) for path in found.others]
    ignored = [path.suffix for path in others if len(path.parts) > 1]
    found = found.take(rows)
    return Samples(
        root,
        paths=found.paths,
        labels=[labels[row] for row in rows],
        class_names=names,
        num_frames=found.num_frames,
        fps=found.fps,
        ignored=ignored,
    )


def class_folders(root: str | Path, split: str | None = None) -> tuple[str, ...]:
    """Returns the names of the class folders, sorted.

    Raises:
        ValueError: If the split does not exist.
    """
    folder = existing_root(root) / (split or "")
    if not folder.is_dir():
        raise ListError(
            f"{root} has no split {split!r}; it has {first_few(folders_in(Path(root)))}"
        )
    return tuple(folders_in(folder))


def check_class_folders(folder: Path, names: Sequence[str]) -> None:
    present = set(folders_in(folder))
    if missing := [name for name in names if name not in present]:
        raise ListError(
            f"{folder} has no folder for {len(missing)} of {len(names)} classes: "
            f"{first_few(missing)}; add them, or correct the class list"
        )


def _label(path: str, label_of: dict[str, int]) -> int:
    """Returns the label of a path inside the split, or -1 if the video is not in a class folder."""
    name, slash, _ = path.partition("/")
    return label_of.get(name, -1) if slash else -1
