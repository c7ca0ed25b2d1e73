"""Reads list files line by line. Errors name the file, the line number and its text."""

import codecs
import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from videoattn.errors import did_you_mean

_BLANKS = " \t\r\v\f\0"  # NUL: a crash may leave some at the end of a file

MAX_CLASSES = 100_000
"""Largest number of classes of a list without class names. The largest label is one less."""

Row = TypeVar("Row")


class ListError(ValueError):
    """An error in a list file, or in the files that it names. The message names the file."""


class Lines(NamedTuple):
    """The non-blank lines of a file, stripped, or the entries of a JSON list, from number 1."""

    path: Path
    numbers: list[int]
    text: list[Any]
    unit: str = "line"

    @classmethod
    def read(cls, path: Path) -> "Lines":
        lines = [line.strip(_BLANKS) for line in read_text(path).split("\n")]
        numbers = [number for number, line in enumerate(lines, 1) if line]
        return cls(path, numbers, [line for line in lines if line])

    def fail(self, rows: Sequence[int], message: str) -> NoReturn:
        """Raises a ListError with the number of the first wrong row, then of the others."""
        first, *others = (self.numbers[row] for row in rows)
        more = ", ".join(map(str, others[:20])) + (", ..." if len(others) > 20 else "")
        also = f"; also {self.unit} {more}" if others else ""
        raise ListError(f"{self.path} {self.unit} {first}: {message}{also}")

    def require(self, rows: Sequence[Row | None], expected: str) -> list[Row]:
        """Returns the parsed rows. None marks a malformed row.

        Raises:
            ListError: If a row is malformed.
        """
        if wrong := [i for i, row in enumerate(rows) if row is None]:
            self.fail(wrong, f"got {self.text[wrong[0]]!r}; expected {expected}")
        return [row for row in rows if row is not None]

    def check_not_empty(self, expected: str) -> None:
        if not self.text:
            raise ListError(f"{self.path}: the list is empty; expected lines of {expected}")

    def check_labels(
        self, labels: Sequence[int], num_classes: int | None, *, first: int = 0
    ) -> None:
        """Checks that labels, numbered in the file from `first`, are in range."""
        end = first + (MAX_CLASSES if num_classes is None else num_classes)
        if wrong := [i for i, label in enumerate(labels) if not first <= label < end]:
            allowed = f"{first} - {end - 1}"
            self.fail(wrong, f"label {labels[wrong[0]]} is out of range; allowed: {allowed}")

    def check_no_repeats(self, names: Sequence[str], message: str | None = None) -> None:
        """Checks that no name is listed twice. `names[i]` comes from row i."""
        if len(set(names)) == len(names):
            return
        first: dict[str, int] = {}
        wrong = [i for i, name in enumerate(names) if first.setdefault(name, i) != i]
        name = names[wrong[0]]
        message = message or "{name!r} was listed before, in {line}; list each video once"
        self.fail(wrong, message.format(name=name, line=f"{self.unit} {self.numbers[first[name]]}"))

    def class_labels(
        self, names: Sequence[str], class_names: Sequence[str] | None
    ) -> tuple[list[int], tuple[str, ...]]:
        """Returns the label of each row's class name, and all class names.

        Args:
            names: Class name of each row.
            class_names: All class names, in the order of their labels. Default: the names of the
                rows, sorted.

        Raises:
            ListError: If a row's name is not in `class_names`.
        """
        classes = tuple(sorted(set(names)) if class_names is None else class_names)
        label_of = {name: label for label, name in enumerate(classes)}
        if wrong := [i for i, name in enumerate(names) if name not in label_of]:
            name = names[wrong[0]]
            self.fail(
                wrong,
                f"class {name!r} is not in the class list ({len(classes)} names)"
                f"{did_you_mean(name, classes)}",
            )
        return [label_of[name] for name in names], classes


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file without its byte order mark.

    File names in another encoding survive, as in `os.fsdecode`.

    Raises:
        ListError: If the text is UTF-16, or its first line has NUL bytes or lone CR line ends.
    """
    data = path.read_bytes()
    first_line = data[: data.find(b"\n") + 1 or len(data)]
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ListError(f"{path} is UTF-16 text; save it as UTF-8")
    if b"\0" in first_line:
        raise ListError(f"{path} has NUL bytes, as UTF-16 text has; save it as UTF-8")
    if b"\r" in first_line.rstrip(b"\r\n"):
        raise ListError(f"{path} has lines that end in CR; save it as UTF-8 with LF line ends")
    return os.fsdecode(data.removeprefix(codecs.BOM_UTF8))


def read_csv(path: Path, columns: Sequence[str]) -> tuple[list[str], Lines, list[list[str]]]:
    """Returns the header of a csv file, its rows for error messages, and their cells.

    Raises:
        ListError: If it is not a csv file, or lacks any of the columns.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    lines, cells = Lines(path, [], []), []
    try:
        header = [name.strip() for name in next(rows, [])]
        for row in rows:
            if len(row) > 1 or "".join(row).strip():
                lines.numbers.append(rows.line_num)
                lines.text.append(",".join(row))
                cells.append(row)
    except csv.Error as error:
        raise ListError(f"{path} line {rows.line_num}: not a csv file ({error})") from error
    if not any(header):
        raise ListError(f"{path}: the csv is empty; expected the columns {','.join(columns)}")
    if not set(columns) <= set(header):
        raise ListError(
            f"{path} line 1: got {','.join(header)!r}; expected the columns {','.join(columns)}: "
            "choose the layout of this list's dataset"
        )
    lines.check_not_empty(f"'{','.join(header)}'")
    return header, lines, cells


def split_last(text: str, separator: str) -> tuple[str, str] | None:
    """Splits at the last separator and strips both sides. A " " also matches a tab."""
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


def read_class_list(path: str | Path) -> tuple[str, ...]:
    """Reads a file of one class name per line.

    Raises:
        ListError: If the file is missing or empty, or a name is repeated.
    """
    path = Path(path)
    if not path.is_file():
        raise ListError(f"{path}: no such class list; give a file with one name per line")
    lines = Lines.read(path)
    lines.check_not_empty("one class name each")
    lines.check_no_repeats(lines.text, "class {name!r} is {line}, too; name each once")
    return tuple(lines.text)
