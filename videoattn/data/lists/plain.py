"""Lists of one video a line: `path label` in its dialects, and folders of pictures."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from jaxtyping import Int64

from videoattn.data.lists.files import (
    Listed,
    Missing,
    are_videos,
    existing_root,
    find_folders,
    find_videos,
)
from videoattn.data.lists.lines import Lines
from videoattn.data.lists.samples import Samples
from videoattn.data.lists.spans import Spans

Columns = Literal["path label", "path frames label", "path label ..."]
"""What a line says. Paths may hold blanks: lines are split from the right. Of the labels that
follow `...` none is learned."""

_EXAMPLES: dict[Columns, str] = {
    "path label": "'path label', e.g. 'a/b.mp4 3'",
    "path frames label": "'path frames label', e.g. 'a/b 120 3'",
    "path label ...": "'path label ...', e.g. 'a/b.mp4 3 7'",
}


def read_list(
    list_file: str | Path, root: str | Path, *, class_names: Sequence[str] | None = None,
    columns: Columns = "path label", separator: str = " ", missing: Missing = "raise",
) -> Samples:  # fmt: skip
    """Videos by path relative to `root`, or absolute, with labels from 0.

    `separator` " " is any run of blanks and tabs. Frame counts are read over. Without `class_names`
    the classes are "0", "1", ... up to the largest label.

    Raises: ValueError for what is missing, malformed, repeated or out of range, with file and line.
    """
    root = existing_root(root)
    listed = parse_list(list_file, class_names, columns=columns, separator=separator)
    listed = listed._replace(num_frames=None)  # of videos, lists often state wrong ones
    return find_videos(root, "", listed, match="path", missing=missing)


def read_frames(
    list_file: str | Path, root: str | Path, *, class_names: Sequence[str] | None = None,
    frame_template: str = "img_{:05d}.jpg", separator: str = " ", missing: Missing = "raise",
) -> Samples:  # fmt: skip
    """Lines of `folder frames label`: pictures numbered from 1, named by `frame_template`.

    Raises: ValueError as `read_list`, and for a template that names all frames alike.
    """
    root = existing_root(root)
    check_template(frame_template)
    listed = parse_list(list_file, class_names, columns="path frames label", separator=separator)
    return find_folders(root, "", listed, frame_template=frame_template, missing=missing)


def check_template(template: str) -> None:
    """Raises: ValueError unless it gives each number a file name of its own."""
    try:
        good = template.format(1) != template.format(2)
    except (ValueError, IndexError, KeyError):
        good = False
    if not good:
        raise ValueError(
            f"frame_template: got {template!r}; it needs one place for the frame's number, "
            "as in img_{:05d}.jpg"
        )


def parse_list(
    list_file: str | Path, class_names: Sequence[str] | None = None, *,
    columns: Columns = "path label", separator: str = " ",
) -> Listed:  # fmt: skip
    """What the list says; no video is looked for."""
    list_file = Path(list_file)
    if columns not in _EXAMPLES:
        raise ValueError(f"columns: got {columns!r}; choose from {', '.join(_EXAMPLES)}")
    if not separator:
        raise ValueError("separator: got nothing; the default ' ' is any blanks and tabs")
    if not list_file.is_file():
        raise ValueError(f"{list_file}: the list file does not exist")
    lines = Lines.read(list_file)
    lines.check_not_empty(_EXAMPLES[columns].partition(",")[0])
    if columns == "path label ...":
        paths, labels, good = _first_labels(lines.text, separator)
    else:
        paths, last, found = lines.text.rsplit(separator)
        paths = paths.strip()
        labels, good = last.strip().integers()
        good &= found & (paths.lengths > 0)
    num_frames = None
    if columns == "path frames label":
        paths, middle, found = paths.rsplit(separator)
        paths = paths.strip()
        num_frames, valid = middle.strip().integers()
        good &= found & valid & (num_frames > 0) & (paths.lengths > 0)
    elif columns == "path label":
        good &= ~_has_number(paths, separator)
    if len(wrong := np.flatnonzero(~good)):
        _fail(lines, wrong, columns, separator)
    lines.check_labels(labels, None if class_names is None else len(class_names))
    lines.check_no_repeats(paths)
    names = class_names if class_names is not None else map(str, range(int(labels.max()) + 1))
    return Listed(paths, labels, tuple(names), num_frames)


def _has_number(paths: Spans, separator: str) -> np.ndarray:
    """Paths such as 'a.mp4 120', a video and one more column."""
    mask = ~are_videos(paths)
    rows = np.flatnonzero(mask)
    inner, number, found = paths.take(rows).rsplit(separator)
    mask[rows] = found & number.strip().integers()[1] & are_videos(inner.strip())
    return mask


def _first_labels(
    lines: Spans, separator: str
) -> tuple[Spans, Int64[np.ndarray, " N"], np.ndarray]:
    """Paths, first labels, and which lines are so. Labels end the line; commas may join them."""
    between = r"[ \t]+" if separator == " " else rf"\s*{re.escape(separator)}\s*"
    pattern = re.compile(rf"(.*?\S){between}(-?[0-9]+)(?:(?:{between}|\s*,\s*)-?[0-9]+)*")
    matches = [pattern.fullmatch(line) for line in lines]
    paths = Spans.of(match[1] if match else "" for match in matches)
    labels = np.array([int(match[2]) if match else -1 for match in matches], np.int64)
    return paths, labels, np.array([match is not None for match in matches])


def _fail(lines: Lines, wrong: np.ndarray, columns: Columns, separator: str) -> NoReturn:
    line = lines.text[wrong[0]]
    message = f"got {line!r}; expected {_EXAMPLES[columns]}"
    if separator != " ":
        message += f", with {separator!r} between them"
    numbers = re.search(r"(?<=[\s,;:])-?[0-9]+(?:[\s,;:]+-?[0-9]+)+$", line)
    if columns == "path label" and numbers:
        message = (
            f"got {line!r}, with {numbers[0]!r} after the path; a network here learns one label a "
            "video: data.columns='path label ...' takes the first label, "
            "'path frames label' is for lists with frame counts"
        )
    lines.fail(wrong, message)
