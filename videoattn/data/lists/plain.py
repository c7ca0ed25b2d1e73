"""Reads lists of one video or one folder of images per line."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NoReturn

from videoattn.data.lists.files import Listed, Missing, existing_root, find_videos, is_video
from videoattn.data.lists.lines import Lines, ListError, split_last, to_integer
from videoattn.data.lists.samples import LabelSets, Samples

Columns = Literal[
    "path label", "path frames label", "path label ...", "path labels", "path frames labels"
]
"""The columns of a line. Lines are split from the right, since paths may contain blanks. "..."
means further labels, which are ignored. "labels" are all labels of a video: numbers (3;7, 3,7 or 3
7) or class names (run;jump)."""

_EXAMPLES: dict[Columns, str] = {
    "path label": "'path label', e.g. 'a/b.mp4 3'",
    "path frames label": "'path frames label', e.g. 'a/b 120 3'",
    "path label ...": "'path label ...', e.g. 'a/b.mp4 3 7'",
    "path labels": "'path labels', e.g. 'a/b.mp4 3;7'",
    "path frames labels": "'path frames labels', e.g. 'a/b 120 3;7'",
}

Row = tuple[str, int, list[str]]
"""Path, frame count (0 if the line has none), labels: numbers, or names if there may be several."""


def read_list(
    list_file: str | Path,
    root: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    columns: Columns = "path label",
    separator: str = " ",
    missing: Missing = "raise",
) -> Samples:
    """Reads videos by path, relative to `root` or absolute, with labels from 0.

    Args:
        class_names: Class names in the order of their labels. Default: "0", "1", ... up to the
            largest label.
        columns: Columns of a line. Frame counts of videos are ignored, because lists often have
            wrong ones.
        separator: Text between columns. " " is any run of blanks and tabs.

    Raises:
        ValueError: If an argument is not allowed, or anything in the list is missing,
            malformed, repeated or out of range.
    """
    root = existing_root(root)
    listed = parse_list(list_file, class_names, columns=columns, separator=separator, root=root)
    return find_videos(root, "", listed._replace(num_frames=None), match="path", missing=missing)


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
    root = existing_root(root)
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


def parse_list(
    list_file: str | Path,
    class_names: Sequence[str] | None = None,
    *,
    columns: Columns = "path label",
    separator: str = " ",
    root: Path | None = None,
) -> Listed:
    """Returns the content of a list, without looking for videos.

    Args:
        root: If given, absolute paths inside it become relative ones.
    """
    list_file = Path(list_file)
    if columns not in _EXAMPLES:
        raise ValueError(f"columns: got {columns!r}; choose from {', '.join(_EXAMPLES)}")
    if not separator:
        raise ValueError("separator: got ''; need some text; ' ' matches any blanks and tabs")
    if not list_file.is_file():
        raise ListError(f"{list_file}: the list file does not exist; correct its path")
    lines = Lines.read(list_file)
    lines.check_not_empty(_EXAMPLES[columns].partition(",")[0])
    several = columns.endswith("labels")
    parsed = _parse_lines(lines.text, columns, separator)
    if wrong := [i for i, row in enumerate(parsed) if row is None]:
        _fail(lines, wrong, columns, separator)
    rows = [row for row in parsed if row is not None]
    inside = "" if root is None else f"{os.path.abspath(root)}/"
    names = [_simplify(path).removeprefix(inside) for path, _, _ in rows]
    num_frames = [count for _, count, _ in rows] if columns.startswith("path frames") else None
    lines.check_no_repeats(names)
    if several:
        return Listed(names, *_label_sets(lines, [row[2] for row in rows], class_names), num_frames)
    labels = [int(label) for _, _, [label] in rows]
    lines.check_labels(labels, None if class_names is None else len(class_names))
    classes = class_names if class_names is not None else map(str, range(max(labels) + 1))
    return Listed(names, labels, tuple(classes), num_frames)


def _label_sets(
    lines: Lines, sets: Sequence[list[str]], class_names: Sequence[str] | None
) -> tuple[LabelSets, tuple[str, ...]]:
    """Returns the labels of each row, which are numbers or names in all rows, and the classes."""
    words = sorted({word for label in sets for word in label})
    numbers = [to_integer(word) for word in words]
    if None in numbers:
        classes = tuple(words if class_names is None else class_names)
        label_of = {name: label for label, name in enumerate(classes)}
        unknown = [next((w for w in words if w not in label_of), classes[0]) for words in sets]
        lines.class_labels(unknown, classes)
    else:
        label_of = {word: int(word) for word in words}
        num_classes = None if class_names is None else len(class_names)
        for extreme in (min, max):
            lines.check_labels([extreme(map(int, w), default=0) for w in sets], num_classes)
        count = max(label_of.values(), default=-1) + 1
        classes = tuple(map(str, range(count)) if class_names is None else class_names)
    return LabelSets.of(sorted({label_of[word] for word in words}) for words in sets), classes


def _parse_lines(text: Sequence[str], columns: Columns, separator: str) -> list[Row | None]:
    """Returns the row of each line, or None if it is malformed."""
    if columns == "path label":
        return [_parse_label(line, separator) for line in text]
    if columns == "path frames label":
        return [_parse_frames(line, separator) for line in text]
    if columns != "path label ...":
        has_frames = columns == "path frames labels"
        return [_parse_several(line, separator, has_frames) for line in text]
    between = r"[ \t]+" if separator == " " else rf"\s*{re.escape(separator)}\s*"
    pattern = re.compile(rf"(.*?\S){between}(-?[0-9]+)(?:(?:{between}|\s*,\s*)-?[0-9]+)*")
    matches = [pattern.fullmatch(line) for line in text]
    return [(match[1], 0, [match[2]]) if match else None for match in matches]


def _parse_label(line: str, separator: str) -> Row | None:
    cells = split_last(line, separator)
    label = to_integer(cells[1]) if cells else None
    if cells is None or label is None or not cells[0]:
        return None
    if not is_video(path := cells[0]):
        # 'a.mp4 120 3' has a column too many: 'a.mp4 120' is not the name of a video.
        inner = split_last(path, separator)
        if inner and to_integer(inner[1]) is not None and is_video(inner[0]):
            return None
    return path, 0, [cells[1]]


def _parse_frames(line: str, separator: str) -> Row | None:
    cells = split_last(line, separator)
    inner = split_last(cells[0], separator) if cells else None
    if cells is None or inner is None or not inner[0]:
        return None
    count, label = to_integer(inner[1]), to_integer(cells[1])
    if label is None or not count or count < 0:
        return None
    return inner[0], count, [cells[1]]


def _parse_several(line: str, separator: str, has_frames: bool) -> Row | None:
    """Parses "a.mp4 3;7", "a.mp4 3,7", "a.mp4 3 7", "a.mp4 run;jump", or "a.mp4" without labels.

    With frames, their number is between the path and the labels.
    """
    if not has_frames and is_video(line):
        return line, 0, []
    numbers_at_end = re.compile(r"[-0-9;,\s]*$")  # "2; 0" has no column 0
    line = numbers_at_end.sub(lambda end: re.sub(r"\s*([;,])\s*", r"\1", end[0]), line, count=1)
    cells = split_last(line, separator)
    if cells is None:
        return None
    path, last = cells
    labels = [word.strip() for word in re.split("[;,]", last) if word.strip()]
    numbers: list[str] = []
    most = int(has_frames) if ";" in last else len(line)  # "take 2 3;7" has no label 2
    while len(numbers) < most and (cells := split_last(path, separator)):
        if to_integer(cells[1]) is None:
            break
        path, numbers = cells[0], [cells[1], *numbers]
    count = int(numbers.pop(0)) if has_frames and numbers else 0
    if not path or not labels or count < has_frames:
        return None
    return path, count, numbers + labels


def _simplify(path: str) -> str:
    """Removes "." and repeated slashes, so that one file has one spelling.

    It keeps "..", because the folder before it may be a link.
    """
    if "./" in path or "//" in path or path.endswith("/"):
        return str(PurePosixPath(path))
    return path


def _fail(lines: Lines, wrong: Sequence[int], columns: Columns, separator: str) -> NoReturn:
    line = lines.text[wrong[0]]
    message = f"got {line!r}; expected {_EXAMPLES[columns]}"
    if separator != " ":
        message += f", with {separator!r} between them"
    numbers = re.search(r"(?<=[\s,;:])-?[0-9]+(?:[\s,;:]+-?[0-9]+)+$", line)
    if columns == "path label" and numbers:
        message = (
            f"got {line!r}, with {numbers[0]!r} after the path; columns='path labels' takes all "
            "labels, 'path label ...' the first one, 'path frames label' is for lists with frame "
            "counts"
        )
    lines.fail(wrong, message)
