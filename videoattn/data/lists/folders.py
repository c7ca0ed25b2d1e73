"""Reads class folders, UCF101, HMDB51, videos stored as folders of images, and class lists."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from videoattn.data.lists import files
from videoattn.data.lists.plain import Columns, Lines, parse_list, split_last, to_integer
from videoattn.data.lists.samples import Listed, Missing, Samples, find_videos
from videoattn.data.prepare.index import INDEX_NAME
from videoattn.errors import first_few

Subset = Literal["train", "test"]

_REPEATED = "class {name!r} is {line}, too; name each once"


def read_folders(
    root: str | Path, split: str | None = None, *, class_names: Sequence[str] | None = None
) -> Samples:
    """Reads the videos in `root/CLASS/` or `root/split/CLASS/`, and in folders below these.

    Args:
        root: Folder of the dataset.
        split: Folder of the split inside the root, such as "train".
        class_names: Class names in the order of their labels. Default: the folders' names, sorted.

    Raises:
        ValueError: If the split or a class folder is missing, no video is found, or a folder is not
            one of `class_names`.
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
    labels = [label_of.get(path[len(prefix) :].partition("/")[0], -1) for path in found.paths]
    rows = sorted((row for row, label in enumerate(labels) if label >= 0), key=labels.__getitem__)
    if not rows:
        raise files.ListError(
            f"{folder} holds no video; expected {folder}/CLASS/VIDEO, "
            f"with one of {' '.join(sorted(files.VIDEO_SUFFIXES))}"
        )
    others = [PurePosixPath(path[len(prefix) :]) for path in found.others]
    ignored = [path.suffix for path in others if len(path.parts) > 1]
    return Samples(
        root,
        paths=[found.paths[row] for row in rows],
        labels=[labels[row] for row in rows],
        class_names=names,
        num_frames=found.num_frames[rows],
        fps=found.fps[rows],
        ignored=ignored,
    )


def class_folders(root: str | Path, split: str | None = None) -> tuple[str, ...]:
    """Returns the names of the class folders, sorted.

    Raises:
        ValueError: If the root or the split does not exist.
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
    """Reads videos stored as folders of images, from a list with lines `folder frames label`.

    Args:
        frame_template: The file name of an image, as a format string with the image's number.
        frame_start: The number of the first image.
        columns: "path frames label", or "path frames labels" for several labels.

    Raises:
        ValueError: If an argument or a line of the list is invalid, or a video is missing.
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
    """Raises a ValueError unless a template is a file name with exactly one frame number.

    The number's width has at most two digits, because a huge width would exhaust the memory.
    """
    is_name = re.fullmatch(r"[^{}]*{0?(:(0>|0)?[0-9]{0,2}d?)?}[^{}]*", template)
    if not is_name or ".." in template.split("/") or template.startswith("/"):
        raise ValueError(
            f"frame_template: got {template!r}; need a file name with one frame number, "
            "as in img_{:05d}.jpg"
        )


def read_class_list(path: str | Path) -> tuple[str, ...]:
    """Returns the class names in a file with one name per line.

    Raises:
        ListError: If the file is missing or empty, or a name is repeated.
    """
    path = Path(path)
    if not path.is_file():
        raise files.ListError(f"{path}: no such class list; give a file with one name per line")
    lines = Lines.read(path, "one class name each")
    lines.check_no_repeats(lines.text, _REPEATED)
    return tuple(lines.text)


def read_numbered_classes(path: Path, line_of: Callable[[int], str]) -> tuple[str, ...]:
    """Returns the class names in a file of numbered names; `line_of(i)` is an example of row i."""
    lines = Lines.read(path, f"{line_of(0)!r}")
    for i, line in enumerate(lines.text):
        number, _, name = line.partition(" ")
        if number != line_of(i).partition(" ")[0] or not name.strip():
            lines.fail([i], f"got {line!r}; expected {line_of(i)!r}")
    names = [line.partition(" ")[2].strip() for line in lines.text]
    lines.check_no_repeats(names, _REPEATED)
    return tuple(names)


def read_ucf101(
    root: str | Path, split: int = 1, subset: Subset = "train", *, missing: Missing = "raise"
) -> Samples:
    """Reads UCF101, with its lists in `ucfTrainTestlist/`, `annotations/` or the root.

    The class folders are in `videos/`, `UCF-101/` or the root. Videos may have any extension.

    Raises:
        ValueError: If anything is missing, malformed, repeated or out of range.
    """
    root = files.existing_root(root)
    folders = ("ucfTrainTestlist/", "annotations/", "")
    classes = files.first_file(root, folders, ("classInd.txt",), "the class list of UCF101")
    class_names = read_numbered_classes(classes, lambda row: f"{row + 1} ClassName")
    lists = (f"{subset}list{split:02d}.txt",)
    file = files.first_file(root, folders, lists, f"the UCF101 list of split {split} ({subset})")
    folder = files.first_folder(root, ("videos", "UCF-101"))
    return _in_class_folders(root, folder, read_ucf101_list(file, class_names), missing)


def read_ucf101_list(path: Path, class_names: Sequence[str]) -> Listed:
    """Reads a trainlist (`Class/name.avi 1`) or a testlist (`Class/name.avi`)."""
    lines = Lines.read(path, "'Class/video.avi'")
    expected = "'Class/video.avi' or with a label"
    videos = lines.require([_parse_ucf101(line) for line in lines.text], expected)
    # A testlist has no labels; 1 is always in range.
    numbers = [1 if number is None else number for _, _, number in videos]
    lines.check_labels(numbers, len(class_names), first=1)
    listed = lines.listed([(name, folder) for name, folder, _ in videos], class_names)
    if wrong := [
        row for row, (*_, n) in enumerate(videos) if n is not None and n - 1 != listed.labels[row]
    ]:
        number, folder = numbers[wrong[0]], videos[wrong[0]][1]
        lines.fail(
            wrong,
            f"label {number} is {class_names[number - 1]!r} in the class list, "
            f"but the video is in {folder!r}",
        )
    return listed


def _parse_ucf101(line: str) -> tuple[str, str, int | None] | None:
    """Returns the path, its folder and the label (None if absent), or None for a malformed line."""
    columns = split_last(line, " ")
    name = columns[0] if columns else line
    number = to_integer(columns[1]) if columns else None
    folder, slash, _ = name.rpartition("/")
    malformed = not slash or (columns and number is None)
    return None if malformed else (name, folder, number)


def read_hmdb51(
    root: str | Path, split: int = 1, subset: Subset = "train", *, missing: Missing = "raise"
) -> Samples:
    """Reads HMDB51: lists such as `CLASS_test_split1.txt`, and the videos that they name.

    The lists are in `testTrainMulti_7030_splits/`, `annotations/`, `splits/` or the root, the class
    folders in `videos/`, `hmdb51_org/` or the root. Videos may have any extension.

    Raises:
        ValueError: If anything is missing, malformed or repeated.
    """
    root = files.existing_root(root)
    names = ("testTrainMulti_7030_splits", "annotations", "splits", ".")
    pattern = f"*_test_split{split}.txt"
    folders = [root / name for name in names]
    lists = next((folder for folder in folders if any(folder.glob(pattern))), None)
    if lists is None:
        tried = ", ".join(map(str, folders))
        raise files.ListError(f"{pattern} was not found in {tried}; put HMDB51's list files there")
    listed = read_hmdb51_lists(lists, split, subset)
    return _in_class_folders(
        root, files.first_folder(root, ("videos", "hmdb51_org")), listed, missing
    )


def read_hmdb51_lists(folder: Path, split: int, subset: Subset) -> Listed:
    """Reads one list per class, with lines `name.avi 1` (train), 2 (test) or 0 (not used).

    The class names are the lists' file names up to `_test_split`, sorted.
    """
    ending = f"_test_split{split}.txt"
    lists = sorted(folder.glob(f"*{ending}"))
    class_names = tuple(path.name.removesuffix(ending) for path in lists)
    wanted = "1" if subset == "train" else "2"
    paths: list[str] = []
    labels: list[int] = []
    for label, (class_name, file) in enumerate(zip(class_names, lists, strict=True)):
        lines = Lines.read(file)
        cells = [split_last(line, " ") for line in lines.text]
        videos = lines.require(
            [pair if pair and pair[1] in ("0", "1", "2") else None for pair in cells],
            "'video.avi 1' (train), 2 (test) or 0 (not in this split)",
        )
        lines.check_no_repeats([name for name, _ in videos])
        used = [f"{class_name}/{name}" for name, use in videos if use == wanted]
        paths += used
        labels += [label] * len(used)
    if not paths:
        raise files.ListError(f"{folder}/*{ending}: no {subset} video in split {split}")
    return Listed(paths, labels, class_names)


def _in_class_folders(root: Path, folder: str, listed: Listed, missing: Missing) -> Samples:
    if not (root / INDEX_NAME).is_file():
        check_class_folders(root / folder, listed.class_names)
    return find_videos(root, folder, listed, match="stem", missing=missing)
