"""Reads Kinetics-400, 600 and 700 from the csv files of the release."""

from collections.abc import Sequence
from pathlib import Path

from videoattn.data.lists import files
from videoattn.data.lists.files import Listed, Missing
from videoattn.data.lists.lines import read_csv, to_integer
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
    root = files.existing_root(root)
    file = kinetics_csv(root, split)
    listed = read_kinetics_csv(file, class_names)
    folder = files.first_folder(root, (file.stem, f"videos_{file.stem}"))
    return files.find_videos(root, folder, listed, match="name", missing=missing)


def kinetics_csv(root: Path, split: str) -> Path:
    file = split if split.endswith(".csv") else f"{split}.csv"
    return files.first_file(root, (file, f"annotations/{file}"), f"the Kinetics list of {split!r}")


def read_kinetics_csv(path: Path, class_names: Sequence[str] | None = None) -> Listed:
    """Returns the clips' names, without extension, and their labels."""
    header, lines, rows = read_csv(path, _HEADER)
    columns = [header.index(name) for name in _HEADER[:4]]
    clips = lines.require(
        [_parse(row, columns, len(header)) for row in rows],
        f"{','.join(header)}, e.g. 'abseiling,0347ZoDXyP0,95,105,train'",
    )
    names = [name for name, _ in clips]
    labels, classes = lines.class_labels([label for _, label in clips], class_names)
    lines.check_no_repeats(names)
    return Listed(names, labels, classes)


def _parse(row: list[str], columns: Sequence[int], width: int) -> tuple[str, str] | None:
    """Returns the clip's name and class, or None for a malformed row."""
    if len(row) != width:
        return None
    label, video, first, last = [row[column].strip() for column in columns]
    start, end = to_integer(first), to_integer(last)
    if start is None or end is None or not 0 <= start < end < 10**6 or not (label and video):
        return None
    return f"{video}_{start:06d}_{end:06d}", label
