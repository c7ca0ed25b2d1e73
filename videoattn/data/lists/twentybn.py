"""Reads Something-Something v2 and Jester, which have the same publisher."""

import json
from pathlib import Path
from typing import Any

from videoattn.data.lists import files
from videoattn.data.lists.files import Listed, Missing
from videoattn.data.lists.lines import Lines, ListError, read_class_list, read_text, split_last
from videoattn.data.lists.samples import Samples


def read_something(
    root: str | Path, split: str = "train", *, missing: Missing = "raise"
) -> Samples:
    """Reads Something-Something v2: `split.json`, `labels.json`, and videos such as `78687.webm`.

    The lists may be called `something-something-v2-split.json`, and are in the root, `labels/` or
    `annotations/`. The videos are in `20bn-something-something-v2/`, `videos/` or anywhere in the
    root, with any extension.

    Raises:
        ValueError: If anything is missing, malformed, repeated or unknown.
    """
    root = files.existing_root(root)
    classes = read_something_labels(_list_file(root, "something-something-v2", "labels", "json"))
    file = _list_file(root, "something-something-v2", split, "json")
    folder = files.first_folder(root, ("20bn-something-something-v2", "videos"))
    listed = read_something_json(file, classes)
    return files.find_videos(root, folder, listed, match="name", missing=missing)


def read_something_labels(path: Path) -> tuple[str, ...]:
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
    return tuple(str(name) for name in names)


def read_something_json(path: Path, class_names: tuple[str, ...]) -> Listed:
    """Returns names and labels, from [{"id": "78687", "template": "Holding [something]"}, ...]."""
    content = _read_json(path)
    if not isinstance(content, list) or not content:
        raise ListError(
            f"{path}: expected a list of entries with 'id' and 'template'; "
            "choose the layout of this file's dataset"
        )
    numbers = list(range(1, len(content) + 1))
    lines = Lines(path, numbers, content, "entry")
    entries = lines.require([_parse_entry(entry) for entry in content], "an 'id' and a 'template'")
    names = [name for name, _ in entries]
    labels, _ = lines.class_labels([template for _, template in entries], class_names)
    lines.check_no_repeats(names)
    return Listed(names, labels, class_names)


def read_jester(root: str | Path, split: str = "train", *, missing: Missing = "raise") -> Samples:
    """Reads Jester: `jester-v1-split.csv`, `jester-v1-labels.csv`, and frames `ID/00001.jpg`.

    The lists may be called `split.csv` and `labels.csv`, and are in the root, `labels/` or
    `annotations/`. The folders of frames are in `20bn-jester-v1/`, `rawframes/` or the root.

    Raises:
        ValueError: If anything is missing, malformed, repeated or unknown.
    """
    root = files.existing_root(root)
    classes = read_class_list(_list_file(root, "jester-v1", "labels", "csv"))
    listed = read_jester_csv(_list_file(root, "jester-v1", split, "csv"), classes)
    folder = files.first_folder(root, ("20bn-jester-v1", "rawframes"))
    return files.find_videos(
        root, folder, listed, match="path", missing=missing, frame_template="{:05d}.jpg"
    )


def read_jester_csv(path: Path, class_names: tuple[str, ...]) -> Listed:
    """Returns names and labels of the folders, from lines of `id;class name`."""
    lines = Lines.read(path)
    lines.check_not_empty("'id;class name'")
    pairs = [split_last(line, ";") for line in lines.text]
    videos = lines.require(
        [pair if pair and all(pair) else None for pair in pairs],
        "'id;class name', e.g. '34870;Drumming Fingers'",
    )
    names = [name for name, _ in videos]
    labels, _ = lines.class_labels([class_name for _, class_name in videos], class_names)
    lines.check_no_repeats(names)
    return Listed(names, labels, class_names)


def _list_file(root: Path, prefix: str, split: str, suffix: str) -> Path:
    names = [f"{split}.{suffix}", f"{prefix}-{split}.{suffix}"]
    tried = [f"{folder}{name}" for folder in ("", "labels/", "annotations/") for name in names]
    return files.first_file(root, tried, f"the list {split!r}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ListError(f"{path} is not valid JSON: {error}") from error


def _parse_entry(entry: object) -> tuple[str, str] | None:
    """Returns the id and the class name, or None if the entry lacks one of them."""
    if not isinstance(entry, dict):
        return None
    name, template = (str(entry.get(key) or "") for key in ("id", "template"))
    return (name, template.replace("[", "").replace("]", "")) if name and template else None
