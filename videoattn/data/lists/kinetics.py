"""Kinetics-400, 600 and 700: the release's csv files, the clips' names."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from videoattn.data.lists.files import (
    Listed,
    Missing,
    existing_root,
    find_videos,
    first_file,
    first_folder,
)
from videoattn.data.lists.lines import Lines
from videoattn.data.lists.samples import Samples
from videoattn.data.lists.spans import Spans

_HEADER = ("label", "youtube_id", "time_start", "time_end", "split")
_UNIT = "\x1f"  # between columns where labels hold commas


def read_kinetics(
    root: str | Path, split: str = "train", *, class_names: Sequence[str] | None = None,
    missing: Missing = "raise",
) -> Samples:  # fmt: skip
    """Clips by their names, `{youtube_id}_{time_start:06d}_{time_end:06d}` with any extension.

    The csv is `split.csv` in the root or in `annotations/`; the clips are in `split/`, in
    `videos_split/`, or anywhere in the root: flat, or in class folders of any spelling. Labels
    come from the csv. Classes are its labels, sorted, unless `class_names` gives them.

    Raises: ValueError for anything missing, malformed, repeated or unknown, with file and line.
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
    """Names without extension, and labels."""
    lines, separator = _read_csv(path)
    if not len(lines.numbers):
        raise ValueError(f"{path}: the csv is empty; expected the columns {','.join(_HEADER)}")
    header = [name.strip() for name in lines.text[0].split(separator)]
    if not set(_HEADER) <= set(header):
        lines.fail(
            [0],
            f"got {','.join(header)!r}; a csv of Kinetics has the columns {','.join(_HEADER)}: "
            "choose data.layout for the data set that this list is of",
        )
    rows = lines.take(np.arange(1, len(lines.numbers)))
    rows.check_not_empty(f"'{','.join(_HEADER)}'")
    columns, complete = rows.text.split(separator, len(header))
    label, video, start, end = (columns[header.index(name)].strip() for name in _HEADER[:4])
    (start_time, valid_start), (end_time, valid_end) = start.integers(), end.integers()
    good = complete & valid_start & valid_end & (label.lengths > 0) & (video.lengths > 0)
    good &= (start_time >= 0) & (end_time > start_time) & (end_time < 10**6)
    rows.check(good, f"{','.join(header)}, e.g. 'abseiling,0347ZoDXyP0,95,105,train'")
    names = clip_names(video, start_time, end_time)
    labels, classes = rows.class_labels(label, class_names)
    rows.check_no_repeats(names)
    return Listed(names, labels, classes)


def clip_names(video: Spans, start: Int64[np.ndarray, " N"], end: Int64[np.ndarray, " N"]) -> Spans:
    """`{youtube_id}_{time_start:06d}_{time_end:06d}` of each; times in seconds, below 10**6."""
    times = np.full((len(video), 14), ord("_"), np.uint8)
    for first, values in ((1, start), (8, end)):
        for i in range(6):
            times[:, first + i] = ord("0") + values // 10 ** (5 - i) % 10
    # An id and its times are two strings, side by side once the block is compact.
    starts = len(video.data) + 14 * np.arange(len(video))
    parts = Spans(
        np.concatenate([video.data, times.reshape(-1)]),
        np.stack([video.starts, starts], axis=1).reshape(-1),
        np.stack([video.ends, starts + 14], axis=1).reshape(-1),
    ).compact()
    return Spans(parts.data, parts.starts[::2], parts.ends[1::2])


def _read_csv(path: Path) -> tuple[Lines, str]:
    """The rows, and what is between their columns."""
    data = np.fromfile(path, np.uint8)
    if not (data == ord('"')).any():
        return Lines.read(path), ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [_UNIT.join(row) for row in csv.reader(file)]
    full = np.flatnonzero([bool(row) for row in rows])
    return Lines(path, full + 1, Spans.of(rows[i] for i in full)), _UNIT
