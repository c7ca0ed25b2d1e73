"""Something-Something v2 and Jester, which came from one publisher."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from videoattn.data.lists.files import (
    Listed,
    Missing,
    existing_root,
    find_folders,
    find_videos,
    first_file,
    first_folder,
)
from videoattn.data.lists.lines import Lines, read_class_list
from videoattn.data.lists.samples import Samples
from videoattn.data.lists.spans import Spans


def read_something(
    root: str | Path, split: str = "train", *, missing: Missing = "raise"
) -> Samples:
    """Something-Something v2: `split.json` and `labels.json`, videos `ID.webm` by their stem.

    The files may be called `something-something-v2-split.json`, and lie in the root, `labels/` or
    `annotations/`; the videos in `20bn-something-something-v2/`, `videos/` or anywhere in the root.

    Raises: ValueError for anything missing, malformed, repeated or unknown, with file and entry.
    """
    root = existing_root(root)
    classes = read_something_labels(_file(root, "something-something-v2", "labels", "json"))
    listed = read_something_json(_file(root, "something-something-v2", split, "json"), classes)
    folder = first_folder(root, ("20bn-something-something-v2", "videos"))
    return find_videos(root, folder, listed, match="name", missing=missing)


def read_something_labels(path: Path) -> tuple[str, ...]:
    """Class names by number, from {"Burying something in something": "4", ...}."""
    content = _read_json(path)
    expected = 'a class name and its number each, as in {"Burying something in something": "4"}'
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: expected {expected}")
    by_number = {str(number): name for name, number in content.items()}
    names = [by_number.get(str(i)) for i in range(len(content))]
    if None in names:
        raise ValueError(
            f"{path}: no class has the number {names.index(None)}, of {len(content)}; "
            f"expected {expected}, from 0 on"
        )
    return tuple(str(name) for name in names)


def read_something_json(path: Path, class_names: tuple[str, ...]) -> Listed:
    """Videos' names and labels: [{"id": "78687", "template": "Holding [something]"}, ...]."""
    content = _read_json(path)
    if not isinstance(content, list) or not content:
        raise ValueError(
            f"{path}: expected a list of entries with 'id' and 'template'; "
            "choose data.layout for the data set that this file is of"
        )
    ids = [_text(entry, "id") for entry in content]
    templates = [_text(entry, "template") for entry in content]
    entries = Lines(path, np.arange(1, len(ids) + 1), Spans.of(ids), unit="entry")
    wrong = [i for i, pair in enumerate(zip(ids, templates, strict=True)) if not all(pair)]
    if wrong:
        entries.fail(wrong, f"got {content[wrong[0]]!r}; expected an 'id' and a 'template'")
    plain = Spans.of(template.replace("[", "").replace("]", "") for template in templates)
    labels, _ = entries.class_labels(plain, class_names)
    entries.check_no_repeats(entries.text)
    return Listed(entries.text, labels, class_names)


def read_jester(root: str | Path, split: str = "train", *, missing: Missing = "raise") -> Samples:
    """Jester: `jester-v1-split.csv` and `jester-v1-labels.csv`, frames `ID/00001.jpg`.

    The files may be called `split.csv` and `labels.csv`, and lie in the root, `labels/` or
    `annotations/`; the folders of frames in `20bn-jester-v1/`, `rawframes/` or the root.

    Raises: ValueError for anything missing, malformed, repeated or unknown, with file and line.
    """
    root = existing_root(root)
    classes = read_class_list(_file(root, "jester-v1", "labels", "csv"))
    listed = read_jester_csv(_file(root, "jester-v1", split, "csv"), classes)
    folder = first_folder(root, ("20bn-jester-v1", "rawframes"))
    return find_folders(root, folder, listed, frame_template="{:05d}.jpg", missing=missing)


def read_jester_csv(path: Path, class_names: tuple[str, ...]) -> Listed:
    """Folders' names and labels: lines of `id;class name`."""
    lines = Lines.read(path)
    lines.check_not_empty("'id;class name'")
    videos, names, found = lines.text.rsplit(";")
    videos, names = videos.strip(), names.strip()
    good = found & (videos.lengths > 0) & (names.lengths > 0)
    lines.check(good, "'id;class name', e.g. '34870;Drumming Fingers'")
    labels, _ = lines.class_labels(names, class_names)
    lines.check_no_repeats(videos)
    return Listed(videos, labels, class_names)


def _file(root: Path, prefix: str, split: str, kind: str) -> Path:
    names = [f"{split}.{kind}", f"{prefix}-{split}.{kind}"]
    places = [f"{folder}{name}" for folder in ("", "labels/", "annotations/") for name in names]
    return first_file(root, places, f"the list {split!r}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _text(entry: object, key: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    return str(value) if value is not None else ""
