"""Reads Kinetics-400, 600 and 700 from the csv files of the release."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from videoattn.data.lists.files import (
    Listed,
    Missing,
    existing_root,
    find_videos,
    first_file,
    first_folder,
)
from videoattn.data.lists.lines import Lines, ListError, read_text, to_integer
from videoattn.data.lists.samples import Samples

_HEADER = ("label", "youtube_id", "time_start", "time_end", "split")


def read_kinetics(
    root: str | Path,
    split: str = "train",
    *,
    class_names: Sequence[str] | None = None,
    missing: Missing = "raise",
) -> Samples:
    """Finds clips named `{youtube_id}_{time_start:06d}_{time_end:06d}`, with any extension.

    The csv is `split.csv` in the root or in `annotations/`. The clips are in `split/`, in
    `videos_split/`, or anywhere in the root, with or without class folders. Labels come from the
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
    file = split if split.endswith(".csv") else f"{split}.csv"
    return first_file(root, (file, f"annotations/{file}"), f"the Kinetics list of {split!r}")


def read_kinetics_csv(path: Path, class_names: Sequence[str] | None = None) -> Listed:
    """Returns the clips' names, without extension, and their labels."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    lines = Lines(path, [], [])
    parsed: list[tuple[str, str] | None] = []
    try:
        header = [name.strip() for name in next(rows, [])]
        columns = _columns(path, header)
        for row in rows:
            if len(row) > 1 or "".join(row).strip():
                lines.numbers.append(rows.line_num)
                lines.text.append(",".join(row))
                parsed.append(_parse(row, columns, len(header)))
    except csv.Error as error:
        raise ListError(f"{path} line {rows.line_num}: not a csv file ({error})") from error
    lines.check_not_empty(f"'{','.join(_HEADER)}'")
    clips = lines.require(parsed, f"{','.join(header)}, e.g. 'abseiling,0347ZoDXyP0,95,105,train'")
    names = [name for name, _ in clips]
    labels, classes = lines.class_labels([label for _, label in clips], class_names)
    lines.check_no_repeats(names)
    return Listed(names, labels, classes)


def _columns(path: Path, header: Sequence[str]) -> list[int]:
    """Returns the indices of the columns label, youtube_id, time_start and time_end."""
    if not any(header):
        raise ListError(f"{path}: the csv is empty; expected the columns {','.join(_HEADER)}")
    if not set(_HEADER) <= set(header):
        raise ListError(
            f"{path} line 1: got {','.join(header)!r}; a csv of Kinetics has the columns "
            f"{','.join(_HEADER)}: choose the layout of this list's dataset"
        )
    return [header.index(name) for name in _HEADER[:4]]


def _parse(row: list[str], columns: Sequence[int], width: int) -> tuple[str, str] | None:
    """Returns the clip's name and class, or None for a malformed row."""
    if len(row) != width:
        return None
    label, video, first, last = [row[column].strip() for column in columns]
    start, end = to_integer(first), to_integer(last)
    if start is None or end is None or not 0 <= start < end < 10**6 or not (label and video):
        return None
    return f"{video}_{start:06d}_{end:06d}", label
