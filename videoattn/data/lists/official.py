"""Reads the official lists of UCF101 and HMDB51."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from videoattn.data.lists.files import ListError, existing_root, first_folder
from videoattn.data.lists.folders import check_class_folders, read_numbered_classes
from videoattn.data.lists.plain import Lines, split_last, to_integer
from videoattn.data.lists.samples import Listed, Missing, Samples, find_videos
from videoattn.data.prepare.index import INDEX_NAME

Subset = Literal["train", "test"]


def read_ucf101(
    root: str | Path, split: int = 1, subset: Subset = "train", *, missing: Missing = "raise"
) -> Samples:
    """Reads UCF101: lists in `ucfTrainTestlist/` or `annotations/`, `videos/` or `UCF-101/`.

    Videos may have any extension, so that re-encoded copies are found.

    Raises:
        ValueError: If anything is missing, malformed, repeated or out of range.
    """
    root = existing_root(root)
    lists = _lists_folder(root, ("ucfTrainTestlist", "annotations", "."), "classInd.txt", "UCF101")
    class_names = read_class_index(lists / "classInd.txt")
    list_file = lists / f"{subset}list{split:02d}.txt"
    if not list_file.is_file():
        raise ListError(f"{list_file} does not exist; split {split} ({subset}) needs it")
    folder = first_folder(root, ("videos", "UCF-101"))
    return _find(root, folder, read_ucf101_list(list_file, class_names), missing)


def read_class_index(path: Path) -> tuple[str, ...]:
    """Reads UCF101's classInd.txt: lines of `number name`, numbered 1, 2, 3, ..."""
    return read_numbered_classes(path, lambda row: f"{row + 1} ClassName")


def read_ucf101_list(path: Path, class_names: Sequence[str]) -> Listed:
    """Reads a trainlist (`Class/name.avi 1`) or a testlist (`Class/name.avi`)."""
    lines = Lines.read(path)
    lines.check_not_empty("'Class/video.avi'")
    videos = lines.require(
        [_parse_ucf101(line) for line in lines.text], "'Class/video.avi' or with a label"
    )
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


def read_hmdb51(
    root: str | Path, split: int = 1, subset: Subset = "train", *, missing: Missing = "raise"
) -> Samples:
    """Reads HMDB51: lists `CLASS_test_split1.txt`, and videos in `videos/` or `hmdb51_org/`.

    The lists are in `testTrainMulti_7030_splits/`, `annotations/`, `splits/` or the root. Videos
    may have any extension, so that re-encoded copies are found.

    Raises:
        ValueError: If anything is missing, malformed or repeated.
    """
    root = existing_root(root)
    folders = ("testTrainMulti_7030_splits", "annotations", "splits", ".")
    lists = _lists_folder(root, folders, f"*_test_split{split}.txt", "HMDB51")
    listed = read_hmdb51_lists(lists, split, subset)
    return _find(root, first_folder(root, ("videos", "hmdb51_org")), listed, missing)


def read_hmdb51_lists(folder: Path, split: int, subset: Subset) -> Listed:
    """Reads one list per class, with lines `name.avi 1` (train), 2 (test) or 0 (not used).

    The names of the lists, sorted, are the class names.
    """
    ending = f"_test_split{split}.txt"
    files = sorted(folder.glob(f"*{ending}"))
    class_names = tuple(path.name.removesuffix(ending) for path in files)
    wanted = 1 if subset == "train" else 2
    paths: list[str] = []
    labels: list[int] = []
    for label, (class_name, file) in enumerate(zip(class_names, files, strict=True)):
        lines = Lines.read(file)
        videos = lines.require(
            [_parse_hmdb51(line) for line in lines.text],
            "'video.avi 1' (train), 2 (test) or 0 (not in this split)",
        )
        lines.check_no_repeats([name for name, _ in videos])
        used = [f"{class_name}/{name}" for name, use in videos if use == wanted]
        paths += used
        labels += [label] * len(used)
    if not paths:
        raise ListError(f"{folder}/*{ending}: no {subset} video in split {split}")
    return Listed(paths, labels, class_names)


def _parse_ucf101(line: str) -> tuple[str, str, int | None] | None:
    """Returns the name, its folder and the label, if any, or None for a malformed line."""
    columns = split_last(line, " ")
    name = columns[0] if columns else line
    number = to_integer(columns[1]) if columns else None
    folder, slash, _ = name.rpartition("/")
    malformed = not slash or (columns and number is None)
    return None if malformed else (name, folder, number)


def _parse_hmdb51(line: str) -> tuple[str, int] | None:
    columns = split_last(line, " ")
    use = to_integer(columns[1]) if columns else None
    return (columns[0], use) if columns and use in (0, 1, 2) else None


def _find(root: Path, folder: str, listed: Listed, missing: Missing) -> Samples:
    if not (root / INDEX_NAME).is_file():
        check_class_folders(root / folder, listed.class_names)
    return find_videos(root, folder, listed, match="stem", missing=missing)


def _lists_folder(root: Path, names: Sequence[str], pattern: str, dataset: str) -> Path:
    for name in names:
        if any((root / name).glob(pattern)):
            return root / name
    tried = ", ".join(str(root / name) for name in names)
    raise ListError(f"{pattern} was not found in {tried}; put {dataset}'s list files there")
