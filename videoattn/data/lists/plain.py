"""Reads text files line by line, and lists with one video or one folder of images per line.

Errors name the file, the line number and its text.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

from videoattn.data.lists.files import ListError, existing_root, is_video, read_text
from videoattn.data.lists.samples import LabelSets, Listed, Missing, Samples, find_videos
from videoattn.errors import did_you_mean

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

_BLANKS = " \t\r\v\f\0"  # NUL: a crash may leave some at the end of a file
_NUMBERS_AT_END = re.compile(r"[-0-9;,\s]*$")

MAX_CLASSES = 100_000
"""Largest number of classes of a list without class names. The largest label is one less."""

Row = tuple[str, int, list[str]]
"""The path, the frame count (0 if the line has none) and the labels (as text) of a line."""

Parsed = TypeVar("Parsed")


class Lines(NamedTuple):
    """The stripped non-blank lines of a file, or the entries of a JSON list, numbered from 1."""

    path: Path
    numbers: list[int]
    text: list[Any]
    unit: str = "line"

    @classmethod
    def read(cls, path: Path, expected: str = "") -> "Lines":
        """Returns the lines of a file. An empty file raises a ListError if `expected` is given."""
        texts = [line.strip(_BLANKS) for line in read_text(path).split("\n")]
        numbers = [number for number, line in enumerate(texts, 1) if line]
        lines = cls(path, numbers, [line for line in texts if line])
        if expected:
            lines.check_not_empty(expected)
        return lines

    def fail(self, rows: Sequence[int], message: str) -> NoReturn:
        """Raises a ListError with the message and the line numbers of the wrong `rows`."""
        first, *others = (self.numbers[row] for row in rows)
        more = ", ".join(map(str, others[:20])) + (", ..." if len(others) > 20 else "")
        also = f"; also {self.unit} {more}" if others else ""
        raise ListError(f"{self.path} {self.unit} {first}: {message}{also}")

    def require(self, rows: Sequence[Parsed | None], expected: str) -> list[Parsed]:
        """Returns the parsed rows. None marks a malformed row, which raises a ListError."""
        if wrong := [i for i, row in enumerate(rows) if row is None]:
            self.fail(wrong, f"got {self.text[wrong[0]]!r}; expected {expected}")
        return [row for row in rows if row is not None]

    def check_not_empty(self, expected: str) -> None:
        if not self.text:
            raise ListError(f"{self.path}: the list is empty; expected lines of {expected}")

    def check_labels(
        self, labels: Sequence[int], num_classes: int | None, *, first: int = 0
    ) -> None:
        """Raises a ListError if a label is not in `first`, ..., `first + num_classes - 1`."""
        end = first + (MAX_CLASSES if num_classes is None else num_classes)
        if wrong := [i for i, label in enumerate(labels) if not first <= label < end]:
            allowed = f"{first} - {end - 1}"
            self.fail(wrong, f"label {labels[wrong[0]]} is out of range; allowed: {allowed}")

    def check_no_repeats(self, names: Sequence[str], message: str | None = None) -> None:
        """Raises a ListError if a name is repeated; `names[i]` is the name in row i."""
        if len(set(names)) == len(names):
            return
        first: dict[str, int] = {}
        wrong = [i for i, name in enumerate(names) if first.setdefault(name, i) != i]
        name = names[wrong[0]]
        message = message or "{name!r} was listed before, in {line}; list each video once"
        self.fail(wrong, message.format(name=name, line=f"{self.unit} {self.numbers[first[name]]}"))

    def labels_of(self, names: Sequence[str], classes: Sequence[str]) -> list[int]:
        """Returns the label of each row's class name; an unknown name raises a ListError."""
        label_of = {name: label for label, name in enumerate(classes)}
        if wrong := [i for i, name in enumerate(names) if name not in label_of]:
            name = names[wrong[0]]
            self.fail(
                wrong,
                f"class {name!r} is not in the class list ({len(classes)} names)"
                f"{did_you_mean(name, classes)}",
            )
        return [label_of[name] for name in names]

    def listed(
        self, rows: Sequence[tuple[str, str]], class_names: Sequence[str] | None = None
    ) -> Listed:
        """Returns the names and labels of rows (name of a video, name of its class).

        Args:
            class_names: All class names, in the order of their labels. Default: those of the rows,
                sorted.
        """
        classes = sorted({name for _, name in rows}) if class_names is None else class_names
        labels = self.labels_of([name for _, name in rows], classes)
        names = [name for name, _ in rows]
        self.check_no_repeats(names)
        return Listed(names, labels, tuple(classes))


def split_last(text: str, separator: str) -> tuple[str, str] | None:
    """Splits text at the last separator (" " includes tabs) into two stripped parts, or None."""
    at = text.rfind(separator)
    if separator == " ":
        at = max(at, text.rfind("\t"))
    if at < 0:
        return None
    return text[:at].strip(_BLANKS), text[at + len(separator) :].strip(_BLANKS)


def to_integer(text: str) -> int | None:
    """Returns the value of a decimal integer without a plus sign, or None for any other text."""
    digits = text.removeprefix("-")
    good = digits.isascii() and digits.isdigit() and len(digits) <= 18  # fits into int64
    return int(text) if good else None


def read_list(
    list_file: str | Path,
    root: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    columns: Columns = "path label",
    separator: str = " ",
    missing: Missing = "raise",
) -> Samples:
    """Reads a list of video files, with paths relative to `root` or absolute, and labels from 0.

    Args:
        class_names: Class names in the order of their labels. Default: "0", "1", ... up to the
            largest label.
        columns: Columns of a line. Frame counts of videos are ignored, because lists often have
            wrong ones.
        separator: Text between columns. " " is any run of blanks and tabs.

    Raises:
        ValueError: If an argument or a line of the list is invalid, or a video is missing.
    """
    root = existing_root(root)
    listed = parse_list(list_file, class_names, columns=columns, separator=separator, root=root)
    return find_videos(root, "", listed._replace(num_frames=None), match="path", missing=missing)


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
    lines = Lines.read(list_file, _EXAMPLES[columns].partition(",")[0])
    parsed = [_parse(line, columns, separator) for line in lines.text]
    if columns == "path label":
        _suggest_columns(lines, [row for row, found in enumerate(parsed) if found is None])
    between = "" if separator == " " else f", with {separator!r} between them"
    rows = lines.require(parsed, _EXAMPLES[columns] + between)
    inside = "" if root is None else f"{os.path.abspath(root)}/"
    names = [_simplify(path).removeprefix(inside) for path, _, _ in rows]
    num_frames = [count for _, count, _ in rows] if columns.startswith("path frames") else None
    lines.check_no_repeats(names)
    if columns.endswith("labels"):
        return Listed(names, *_label_sets(lines, [row[2] for row in rows], class_names), num_frames)
    labels = [int(label) for _, _, [label] in rows]
    lines.check_labels(labels, None if class_names is None else len(class_names))
    classes = class_names if class_names is not None else map(str, range(max(labels) + 1))
    return Listed(names, labels, tuple(classes), num_frames)


def _label_sets(
    lines: Lines, sets: Sequence[list[str]], class_names: Sequence[str] | None
) -> tuple[LabelSets, tuple[str, ...]]:
    """Returns each row's labels, and the class names. Words are names unless all are numbers."""
    words = sorted({word for label in sets for word in label})
    numbers = [to_integer(word) for word in words]
    if None in numbers:
        classes = tuple(words if class_names is None else class_names)
        label_of = {name: label for label, name in enumerate(classes)}
        unknown = [next((w for w in words if w not in label_of), classes[0]) for words in sets]
        lines.labels_of(unknown, classes)
    else:
        label_of = {word: int(word) for word in words}
        num_classes = None if class_names is None else len(class_names)
        for extreme in (min, max):
            lines.check_labels([extreme(map(int, w), default=0) for w in sets], num_classes)
        count = max(label_of.values(), default=-1) + 1
        classes = tuple(map(str, range(count)) if class_names is None else class_names)
    return LabelSets.of(sorted({label_of[word] for word in words}) for words in sets), classes


def _suggest_columns(lines: Lines, wrong: Sequence[int]) -> None:
    """Raises a ListError if several numbers are after the path in the first wrong line."""
    line = lines.text[wrong[0]] if wrong else ""
    if numbers := re.search(r"(?<=[\s,;:])-?[0-9]+(?:[\s,;:]+-?[0-9]+)+$", line):
        lines.fail(
            wrong,
            f"got {line!r}, with {numbers[0]!r} after the path; columns='path labels' takes all "
            "labels, 'path label ...' the first one, 'path frames label' is for lists with frame "
            "counts",
        )


def _parse(line: str, columns: Columns, separator: str) -> Row | None:
    """Returns the path, the number of frames and the labels of a line, or None if it is malformed.

    Several labels are in lines such as "a.mp4 3;7", "a.mp4 3, 7", "a.mp4 3 7" or "a.mp4 run;jump".
    "a.mp4" has none.
    """
    if columns == "path label ...":
        between = r"[ \t]+" if separator == " " else rf"\s*{re.escape(separator)}\s*"
        more = rf"(?:(?:{between}|\s*,\s*)-?[0-9]+)*"
        match = re.fullmatch(rf"(.*?\S){between}(-?[0-9]+){more}", line)
        return (match[1], 0, [match[2]]) if match else None
    has_frames, several = columns.startswith("path frames"), columns.endswith("labels")
    if columns == "path labels" and is_video(line):
        return line, 0, []
    if several:  # the 0 of "2; 0" is not a column
        line = _NUMBERS_AT_END.sub(
            lambda end: re.sub(r"\s*([;,])\s*", r"\1", end[0]), line, count=1
        )
    if (cells := split_last(line, separator)) is None:
        return None
    path, last = cells
    words = re.split("[;,]", last) if several else [last]
    labels = [word.strip() for word in words if word.strip()]
    numbers: list[str] = []
    most = len(line) if several and ";" not in last else has_frames  # "take 2 3;7" has labels 3, 7
    while len(numbers) < most and (cells := split_last(path, separator)):
        if to_integer(cells[1]) is None:
            break
        path, numbers = cells[0], [cells[1], *numbers]
    count = int(numbers.pop(0)) if has_frames and numbers else 0
    if not path or not labels or count < has_frames:
        return None
    if several:
        return path, count, numbers + labels
    # "a.mp4 120 3" has a column too many: "a.mp4 120" is not the name of a video.
    inner = None if has_frames or is_video(path) else split_last(path, separator)
    too_many = inner is not None and is_video(inner[0]) and to_integer(inner[1]) is not None
    return None if too_many or to_integer(last) is None else (path, count, [last])


def _simplify(path: str) -> str:
    """Removes "." components and extra slashes, so that one file has one spelling.

    It keeps "..", because the folder before it may be a link.
    """
    if "./" in path or "//" in path or path.endswith("/"):
        return str(PurePosixPath(path))
    return path
