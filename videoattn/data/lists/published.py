"""Reads Kinetics, Charades, Something-Something and Jester as they are published."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from videoattn.data.lists.files import ListError, existing_root, first_file, first_folder, read_text
from videoattn.data.lists.folders import read_class_list, read_numbered_classes
from videoattn.data.lists.plain import Lines, Parsed, split_last, to_integer
from videoattn.data.lists.samples import LabelSets, Listed, Missing, Samples, find_videos

_KINETICS = ("label", "youtube_id", "time_start", "time_end", "split")


def read_kinetics(
    root: str | Path,
    split: str = "train",
    *,
    class_names: Sequence[str] | None = None,
    missing: Missing = "raise",
) -> Samples:
    """Reads Kinetics: `split.csv`, and clips `{youtube_id}_{time_start:06d}_{time_end:06d}.*`.

    The csv is in the root or in `annotations/`. The clips have any extension, and are in `split/`,
    in `videos_split/`, or anywhere in the root, with or without class folders. Labels come from the
    csv; the names of class folders do not matter.

    Args:
        class_names: Class names in the order of their labels. Default: the labels of the csv,
            sorted.

    Raises:
        ValueError: If anything is missing, malformed, repeated or unknown.
    """
    root = existing_root(root)
    file = kinetics_csv(root, split)
    listed = read_kinetics_csv(file, class_names)
    folder = first_folder(root, (file.stem, f"videos_{file.stem}"))
    return find_videos(root, folder, listed, match="name", missing=missing)


def kinetics_csv(root: Path, split: str) -> Path:
    """Returns the path of the csv file of a Kinetics split."""
    names = (split if split.endswith(".csv") else f"{split}.csv",)
    return first_file(root, ("", "annotations/"), names, f"the Kinetics list of {split!r}")


def read_kinetics_csv(path: Path, class_names: Sequence[str] | None = None) -> Listed:
    """Returns the clips' names, without extension, and their labels."""
    expected = f"{','.join(_KINETICS)}, e.g. 'abseiling,0347ZoDXyP0,95,105,train'"
    lines, rows = _read_csv(path, _KINETICS, _kinetics_clip, expected)
    return lines.listed(rows, class_names)


def _kinetics_clip(label: str, video: str, first: str, last: str, _: str) -> tuple[str, str] | None:
    """Returns the clip's name and class, or None for a malformed row."""
    start, end = to_integer(first), to_integer(last)
    if start is None or end is None or not 0 <= start < end < 10**6 or not (label and video):
        return None
    return f"{video}_{start:06d}_{end:06d}", label


def read_charades(root: str | Path, split: str = "train", *, missing: Missing = "raise") -> Samples:
    """Reads Charades: `Charades_v1_split.csv`, and videos such as `46GP8.mp4`.

    A video has the labels of all its actions; the times of the actions are not used. The lists and
    `Charades_v1_classes.txt` are in the root, `Charades/` or `annotations/`. The videos are in
    `videos/`, `Charades_v1_480/`, `Charades_v1/` or anywhere in the root.

    Raises:
        ValueError: If anything is missing, malformed, repeated or out of range.
    """
    root = existing_root(root)
    folders = ("", "Charades/", "annotations/")
    lists = (split if split.endswith(".csv") else f"Charades_v1_{split}.csv",)
    file = first_file(root, folders, lists, f"the Charades list of {split!r}")
    classes = first_file(root, folders, ("Charades_v1_classes.txt",), "the Charades class list")
    class_names = read_numbered_classes(classes, "c{:03d} Name of the class".format)
    expected = "an id and actions, as in 'c092 11.90 21.20;c147 0.00 12.60'"
    lines, rows = _read_csv(file, ("id", "actions"), _charades_labels, expected)
    labels = [sorted(set(found)) for _, found in rows]
    lines.check_labels([max(found, default=0) for found in labels], len(class_names))
    names = [name for name, _ in rows]
    lines.check_no_repeats(names)
    listed = Listed(names, LabelSets.of(labels), class_names)
    folder = first_folder(root, ("videos", "Charades_v1_480", "Charades_v1"))
    return find_videos(root, folder, listed, match="name", missing=missing)


def _charades_labels(name: str, actions: str) -> tuple[str, list[int]] | None:
    """Returns the id and the labels of a row, or None if it is malformed."""
    labels = []
    for action in filter(None, actions.split(";")):
        number = to_integer(action.split(" ")[0].removeprefix("c"))
        if not action.startswith("c") or number is None or number < 0:
            return None
        labels.append(number)
    return (name, labels) if name else None


def read_something(
    root: str | Path, split: str = "train", *, missing: Missing = "raise"
) -> Samples:
    """Reads Something-Something v2: `split.json`, `labels.json`, and videos such as `78687.webm`.

    The lists may be called `something-something-v2-split.json`, and are in the root, `labels/` or
    `annotations/`. The videos are in `20bn-something-something-v2/`, `videos/` or anywhere in the
    root.

    Raises:
        ValueError: If anything is missing, malformed, repeated or unknown.
    """
    root = existing_root(root)
    class_names = _something_classes(_20bn_file(root, "something-something-v2", "labels.json"))
    path = _20bn_file(root, "something-something-v2", f"{split}.json")
    content = _read_json(path)
    if not isinstance(content, list) or not content:
        raise ListError(
            f"{path}: expected a list of entries with 'id' and 'template'; "
            "choose the layout of this file's dataset"
        )
    lines = Lines(path, list(range(1, len(content) + 1)), content, "entry")
    rows = lines.require(list(map(_something_entry, content)), "an 'id' and a 'template'")
    folder = first_folder(root, ("20bn-something-something-v2", "videos"))
    return find_videos(root, folder, lines.listed(rows, class_names), match="name", missing=missing)


def _something_classes(path: Path) -> tuple[str, ...]:
    """Returns the class names by number, from {"Burying something in something": "4", ...}."""
    content = _read_json(path)
    expected = 'a class name and its number each, as in {"Burying something in something": "4"}'
    if not isinstance(content, dict) or not content:
        raise ListError(f"{path}: expected {expected}")
    by_number = {str(number): name for name, number in content.items()}
    names = [by_number.get(str(i)) for i in range(len(content))]
    if None in names:
        raise ListError(
            f"{path}: number {names.index(None)} is missing among {len(content)} classes; "
            f"expected {expected}, from 0 on"
        )
    return tuple(map(str, names))


def _something_entry(entry: object) -> tuple[str, str] | None:
    """Returns the id and the class name of {"id": "78687", "template": "Holding [something]"}."""
    if not isinstance(entry, dict):
        return None
    name, template = (str(entry.get(key) or "") for key in ("id", "template"))
    return (name, template.replace("[", "").replace("]", "")) if name and template else None


def read_jester(root: str | Path, split: str = "train", *, missing: Missing = "raise") -> Samples:
    """Reads Jester: `jester-v1-split.csv`, `jester-v1-labels.csv`, and frames `ID/00001.jpg`.

    The lists may be called `split.csv` and `labels.csv`, and are in the root, `labels/` or
    `annotations/`. The folders of frames are in `20bn-jester-v1/`, `rawframes/` or the root.

    Raises:
        ValueError: If anything is missing, malformed, repeated or unknown.
    """
    root = existing_root(root)
    class_names = read_class_list(_20bn_file(root, "jester-v1", "labels.csv"))
    lines = Lines.read(_20bn_file(root, "jester-v1", f"{split}.csv"), "'id;class name'")
    pairs = [split_last(line, ";") for line in lines.text]
    rows = lines.require(
        [pair if pair and all(pair) else None for pair in pairs],
        "'id;class name', e.g. '34870;Drumming Fingers'",
    )
    return find_videos(
        root,
        first_folder(root, ("20bn-jester-v1", "rawframes")),
        lines.listed(rows, class_names),
        match="path",
        missing=missing,
        frame_template="{:05d}.jpg",
    )


def _20bn_file(root: Path, prefix: str, name: str) -> Path:
    names = (name, f"{prefix}-{name}")
    return first_file(root, ("", "labels/", "annotations/"), names, f"the list {name!r}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ListError(f"{path} is not valid JSON: {error}") from error


def _read_csv(
    path: Path, columns: Sequence[str], parse: Callable[..., Parsed | None], expected: str
) -> tuple[Lines, list[Parsed]]:
    """Returns the rows of a csv file, and what `parse` returns for the cells in the columns.

    Raises:
        ListError: If it is not a csv file, lacks a column, or has a malformed row: its length is
            not that of the header, or `parse` returns None.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if len(row) > 1 or "".join(row).strip()]
    except csv.Error as error:
        raise ListError(f"{path} line {reader.line_num}: not a csv file ({error})") from error
    if not any(header):
        raise ListError(f"{path}: the csv is empty; expected the columns {','.join(columns)}")
    if not set(columns) <= set(header):
        raise ListError(
            f"{path} line 1: got {','.join(header)!r}; expected the columns {','.join(columns)}: "
            "choose the layout of this list's dataset"
        )
    lines = Lines(path, [number for number, _ in rows], [",".join(row) for _, row in rows])
    lines.check_not_empty(f"'{','.join(header)}'")
    wanted = [header.index(name) for name in columns]
    parsed = [
        parse(*(row[k].strip() for k in wanted)) if len(row) == len(header) else None
        for _, row in rows
    ]
    return lines, lines.require(parsed, expected)
