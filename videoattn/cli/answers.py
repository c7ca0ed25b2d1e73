"""Writes the answers of `predict` to files, one row per video, as they come.

The rows are on disk before the next videos are scored. To resume an interrupted command, an
incomplete last row is dropped, and only videos without a row are scored.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from videoattn.errors import first_few
from videoattn.files import csv_text, named_in_errors, spreadsheet_cell, write_text


class Answer(NamedTuple):
    """The most likely classes of a video with their probabilities, or an error."""

    video: str
    classes: Sequence[tuple[str, float]] = ()
    error: str = ""


class Format(NamedTuple):
    """The text format of a file: its start, its end, its rows, and the separator between rows.

    `read` returns the video and the text of each complete row in the text of a file, which may be
    truncated. It raises a ValueError if the text has another format.
    """

    start: str
    between: str
    end: str
    row: Callable[[Answer], str]
    read: Callable[[str], list[tuple[str, str]]]


def csv_format(top: int) -> Format:
    """Returns the format with the columns video, error, class_1, probability_1, ..."""
    pairs = ((f"class_{k}", f"probability_{k}") for k in range(1, top + 1))
    header = ["video", "error", *(name for pair in pairs for name in pair)]

    def row(answer: Answer) -> str:
        cells = [cell for name, share in answer.classes for cell in (name, f"{share:.4f}")]
        return csv_text([[answer.video, answer.error, *cells, *[""] * (2 * top - len(cells))]])

    def read(text: str) -> list[tuple[str, str]]:
        if csv_text([header]).startswith(text):
            return []  # the file was cut off within the header
        columns, *rows = csv.reader(io.StringIO(text, newline=""))
        if columns != header:
            raise ValueError(f"its columns are {first_few(columns)}; was --top another number?")
        complete = rows if text.endswith("\r\n") else rows[:-1]
        return [(cells[0], csv_text([cells])) for cells in complete]

    return Format(csv_text([header]), "", "", row, read)


def json_format() -> Format:
    """Returns the format of a list of {"video": .., "error": .., "classes": [..]}, one per line."""

    def row(answer: Answer) -> str:
        classes = [{"name": name, "probability": round(p, 4)} for name, p in answer.classes]
        return "\n" + json.dumps(
            {"video": answer.video, "error": answer.error or None, "classes": classes}
        )

    def read(text: str) -> list[tuple[str, str]]:
        start, *lines = text.split("\n")
        if start not in ("", "["):
            raise ValueError("it does not start with [")
        rows = []
        for number, line in enumerate(lines):
            try:
                rows.append((json.loads(line.rstrip(","))["video"], "\n" + line.rstrip(",")))
            except (ValueError, TypeError, KeyError):
                if line not in ("", "]") and number < len(lines) - 1:
                    raise
        return rows

    return Format("[", ",", "\n]\n", row, read)


class AnswerFiles:
    """The files of answers, which the main process writes."""

    def __init__(self, formats: Mapping[Path, Format]) -> None:
        self.formats = formats
        self._is_empty = True

    def start(self, videos: Sequence[str], *, resume: bool) -> list[str]:
        """Starts the files, or with `resume` keeps their rows; returns the videos without a row."""
        key = spreadsheet_cell  # the name of a video as a CSV file has it
        found = {path: self._read(path, resume) for path in self.formats}
        answered = [{key(video) for video, _ in rows} for rows in found.values()]
        done = set.intersection(*answered) if answered else set()
        self._is_empty = not done
        for path, rows in found.items():
            form = self.formats[path]
            kept = (text for video, text in rows if key(video) in done)
            write_text(path, form.start + form.between.join(kept))
        return [video for video in videos if key(video) not in done]

    def write(self, answers: Sequence[Answer]) -> None:
        """Appends the rows of one or more videos."""
        for path, form in self.formats.items():
            text = form.between.join(form.row(answer) for answer in answers)
            self._append(path, text if self._is_empty else form.between + text)
        self._is_empty = False

    def end(self) -> None:
        """Appends the text that closes each file: the ] of a JSON file, nothing to a CSV file."""
        for path, form in self.formats.items():
            self._append(path, form.end)

    def _append(self, path: Path, text: str) -> None:
        with named_in_errors(path), _open(path, "a") as file:
            file.write(text)

    def _read(self, path: Path, resume: bool) -> list[tuple[str, str]]:
        if not path.exists():
            return []
        if not resume:
            raise ValueError(
                f"{path} already exists; continue it with --resume, or choose another file"
            )
        with _open(path, "r") as file:
            text = file.read()
        try:
            return self.formats[path].read(text)
        except (ValueError, csv.Error, IndexError) as error:
            raise ValueError(f"{path} was not written by this command: {error}") from error


def _open(path: Path, mode: str) -> IO[str]:
    return path.open(mode, encoding="utf-8", errors="surrogateescape", newline="")
