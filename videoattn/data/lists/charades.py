"""Reads Charades, whose videos have any number of actions."""

from collections.abc import Sequence
from pathlib import Path

from videoattn.data.lists import files
from videoattn.data.lists.files import Listed, Missing
from videoattn.data.lists.lines import Lines, read_csv, to_integer
from videoattn.data.lists.samples import LabelSets, Samples

NUM_CLASSES = 157
_COLUMNS = ("id", "actions")
_FOLDERS = ("", "Charades/", "annotations/")


def read_charades(root: str | Path, split: str = "train", *, missing: Missing = "raise") -> Samples:
    """Reads Charades: `Charades_v1_split.csv`, and videos such as `46GP8.mp4`.

    A video has the labels of all its actions; the times of the actions are not used. The lists and
    `Charades_v1_classes.txt` are in the root, `Charades/` or `annotations/`. The videos are in
    `videos/`, `Charades_v1_480/`, `Charades_v1/` or anywhere in the root, with any extension.

    Raises:
        ValueError: If anything is missing, malformed, repeated or out of range.
    """
    root = files.existing_root(root)
    listed = read_charades_csv(charades_csv(root, split), read_charades_classes(root))
    folder = files.first_folder(root, ("videos", "Charades_v1_480", "Charades_v1"))
    return files.find_videos(root, folder, listed, match="name", missing=missing)


def charades_csv(root: Path, split: str) -> Path:
    name = split if split.endswith(".csv") else f"Charades_v1_{split}.csv"
    return files.first_file(root, [f + name for f in _FOLDERS], f"the Charades list of {split!r}")


def read_charades_classes(root: Path) -> tuple[str, ...]:
    """Returns the names in Charades_v1_classes.txt, with lines `c000 Holding some clothes`."""
    names = [f"{folder}Charades_v1_classes.txt" for folder in _FOLDERS]
    lines = Lines.read(files.first_file(root, names, "the Charades class list"))
    lines.check_not_empty("'c000 Holding some clothes'")
    for i, line in enumerate(lines.text):
        number, _, name = line.partition(" ")
        if number != f"c{i:03d}" or not name.strip():
            lines.fail([i], f"got {line!r}; expected 'c{i:03d} Name of the class'")
    return tuple(line.partition(" ")[2].strip() for line in lines.text)


def read_charades_csv(path: Path, class_names: Sequence[str]) -> Listed:
    """Returns the names of the videos and the labels of each, perhaps none."""
    header, lines, rows = read_csv(path, _COLUMNS)
    expected = "an id and actions, as in 'c092 11.90 21.20;c147 0.00 12.60'"
    columns = [header.index(name) for name in _COLUMNS]
    parsed = lines.require(
        [_parse([row[k] for k in columns]) if len(row) == len(header) else None for row in rows],
        expected,
    )
    labels = [sorted(set(found)) for _, found in parsed]
    lines.check_labels([max(found, default=0) for found in labels], len(class_names))
    names = [name for name, _ in parsed]
    lines.check_no_repeats(names)
    return Listed(names, LabelSets.of(labels), tuple(class_names))


def _parse(cells: Sequence[str]) -> tuple[str, list[int]] | None:
    """Returns the id and the labels of a row, or None if it is malformed."""
    name, actions = (cell.strip() for cell in cells)
    labels = []
    for action in filter(None, actions.split(";")):
        number = to_integer(action.split(" ")[0].removeprefix("c"))
        if not action.startswith("c") or number is None or number < 0:
            return None
        labels.append(number)
    return (name, labels) if name else None
