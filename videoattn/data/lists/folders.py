"""Reads datasets of class folders, which need no list, folders of images, and lists of classes."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from videoattn.data.lists import files
from videoattn.data.lists.plain import Columns, Lines, parse_list
from videoattn.data.lists.samples import Missing, Samples, find_videos
from videoattn.errors import first_few

_REPEATED = "class {name!r} is {line}, too; name each once"


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
    root = files.existing_root(root)
    names = class_folders(root, split)
    prefix = "" if split is None else f"{split.rstrip('/')}/"
    folder = root / prefix
    if class_names is not None:
        names = tuple(class_names)
        check_class_folders(folder, names)
    label_of = {name: label for label, name in enumerate(names)}
    if extra := [name for name in files.folders_in(folder) if name not in label_of]:
        raise files.ListError(
            f"{folder} has folders outside the {len(names)} classes: {first_few(extra)}; remove "
            "them, or add them to the class list"
        )
    found = files.all_videos(root, prefix)
    labels = []
    for path in found.paths:
        name, slash, _ = path[len(prefix) :].partition("/")
        labels.append(label_of.get(name, -1) if slash else -1)
    rows = sorted((row for row, label in enumerate(labels) if label >= 0), key=labels.__getitem__)
    if not rows:
        raise files.ListError(
            f"{folder} holds no video; expected {folder}/CLASS/VIDEO, "
            f"with one of {' '.join(sorted(files.VIDEO_SUFFIXES))}"
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
    folder = files.existing_root(root) / (split or "")
    if not folder.is_dir():
        raise files.ListError(
            f"{root} has no split {split!r}; it has {first_few(files.folders_in(Path(root)))}"
        )
    return tuple(files.folders_in(folder))


def check_class_folders(folder: Path, names: Sequence[str]) -> None:
    present = set(files.folders_in(folder))
    if missing := [name for name in names if name not in present]:
        raise files.ListError(
            f"{folder} has no folder for {len(missing)} of {len(names)} classes: "
            f"{first_few(missing)}; add them, or correct the class list"
        )


def read_frames(
    list_file: str | Path,
    root: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    frame_template: str = "img_{:05d}.jpg",
    frame_start: int = 1,
    columns: Columns = "path frames label",
    separator: str = " ",
    missing: Missing = "raise",
) -> Samples:
    """Reads lines `folder frames label`: images numbered from `frame_start`, named by
    `frame_template`.

    Args:
        columns: "path frames label", or "path frames labels" for several labels.

    Raises:
        ValueError: If an argument is not allowed, or anything in the list is missing,
            malformed, repeated or out of range.
    """
    root = files.existing_root(root)
    check_template(frame_template)
    if frame_start < 0:
        raise ValueError(f"frame_start: got {frame_start}; need 0 or more")
    listed = parse_list(list_file, class_names, columns=columns, separator=separator, root=root)
    samples = find_videos(
        root, "", listed, match="path", missing=missing, frame_template=frame_template
    )
    samples.frame_start = frame_start
    return samples


def check_template(template: str) -> None:
    """Raises a ValueError if a template gives two frames one name, or a name outside the folder."""
    numbers = (1, 2, 10, 11, 100_000)  # "{0!s:.1}" gives 1 and 10 one name
    huge = re.search(r"{[^}]*\d{3}", template)  # such a width could take all memory
    try:
        good = not huge and len({template.format(number) for number in numbers}) == len(numbers)
    except (ValueError, IndexError, KeyError, AttributeError):
        good = False
    if not good or ".." in template.split("/") or template.startswith("/"):
        raise ValueError(
            f"frame_template: got {template!r}; need a file name with one frame number, "
            "as in img_{:05d}.jpg"
        )


def read_class_list(path: str | Path) -> tuple[str, ...]:
    """Reads a file of one class name per line.

    Raises:
        ListError: If the file is missing or empty, or a name is repeated.
    """
    path = Path(path)
    if not path.is_file():
        raise files.ListError(f"{path}: no such class list; give a file with one name per line")
    lines = Lines.read(path)
    lines.check_not_empty("one class name each")
    lines.check_no_repeats(lines.text, _REPEATED)
    return tuple(lines.text)


def read_numbered_classes(path: Path, line_of: Callable[[int], str]) -> tuple[str, ...]:
    """Reads a list of numbers and class names; `line_of` returns an example of row i."""
    lines = Lines.read(path)
    lines.check_not_empty(f"{line_of(0)!r}")
    for i, line in enumerate(lines.text):
        number, _, name = line.partition(" ")
        if number != line_of(i).partition(" ")[0] or not name.strip():
            lines.fail([i], f"got {line!r}; expected {line_of(i)!r}")
    names = [line.partition(" ")[2].strip() for line in lines.text]
    lines.check_no_repeats(names, _REPEATED)
    return tuple(names)
