"""Lines of a list file, and what is wrong with them: the file, the line's number, its text."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from jaxtyping import Int64

from videoattn.data.lists.spans import Spans
from videoattn.errors import did_you_mean


class Lines(NamedTuple):
    """The lines of a file that are not blank, stripped, with their numbers from 1."""

    path: Path
    numbers: Int64[np.ndarray, " N"]
    text: Spans
    unit: str = "line"

    @classmethod
    def read(cls, path: Path) -> "Lines":
        text = Spans.lines(np.fromfile(path, np.uint8)).strip()
        full = np.flatnonzero(text.lengths)
        return cls(path, full + 1, text.take(full))

    def take(self, which: np.ndarray) -> "Lines":
        return Lines(self.path, self.numbers[which], self.text.take(which))

    def fail(self, wrong: Sequence[int] | np.ndarray, message: str) -> NoReturn:
        """Raises: ValueError with the first wrong line, and the numbers of the others."""
        first, *others = (int(self.numbers[i]) for i in wrong)
        more = ", ".join(map(str, others[:20])) + (", ..." if len(others) > 20 else "")
        also = f"; also {self.unit} {more}" if others else ""
        raise ValueError(f"{self.path} {self.unit} {first}: {message}{also}")

    def check(self, good: np.ndarray, expected: str) -> None:
        """Raises: ValueError for lines that are not what was expected."""
        if len(wrong := np.flatnonzero(~good)):
            self.fail(wrong, f"got {self.text[wrong[0]]!r}; expected {expected}")

    def check_not_empty(self, expected: str) -> None:
        if not len(self.numbers):
            raise ValueError(f"{self.path}: the list is empty; expected lines of {expected}")

    def check_labels(
        self, labels: Int64[np.ndarray, " N"], num_classes: int | None, *, first: int = 0
    ) -> None:
        """`labels` count from 0, the file from `first`. Raises: ValueError for one out of range."""
        good = (labels >= 0) & (labels < (num_classes or np.iinfo(np.int64).max))
        if len(wrong := np.flatnonzero(~good)):
            allowed = f"{first} - {num_classes - 1 + first}" if num_classes else "0 or more"
            got = labels[wrong[0]] + first
            self.fail(wrong, f"label {got} is out of range; allowed: {allowed}")

    def check_no_repeats(self, names: Spans) -> None:
        """`names[i]` is what line i lists. Raises: ValueError for one that is listed twice."""
        if repeats := names.repeats():
            again, before = repeats[0]
            self.fail(
                [later for later, _ in repeats],
                f"{names[again]!r} was listed before, in {self.unit} {self.numbers[before]}; "
                "list each video once",
            )

    def class_labels(
        self, names: Spans, class_names: Sequence[str] | None
    ) -> tuple[Int64[np.ndarray, " N"], tuple[str, ...]]:
        """Labels of the lines' class names, and the classes: these names, sorted, unless given.

        Raises: ValueError for a name that is not among the given ones.
        """
        there, which = names.unique()
        if class_names is None:
            return which, tuple(there)
        places = {name: label for label, name in enumerate(class_names)}
        labels = np.array([places.get(name, -1) for name in there], np.int64)[which]
        if len(wrong := np.flatnonzero(labels < 0)):
            name = names[wrong[0]]
            hint = did_you_mean(name, class_names)
            self.fail(
                wrong, f"class {name!r} is not in the class list ({len(class_names)} names){hint}"
            )
        return labels, tuple(class_names)


def read_class_list(path: str | Path) -> tuple[str, ...]:
    """A class name a line.

    Raises: ValueError for a missing or empty file, and for a name that comes twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: the class list does not exist; give a file of one name a line")
    lines = Lines.read(path)
    lines.check_not_empty("one class name each")
    if repeats := lines.text.repeats():
        again, before = repeats[0]
        lines.fail(
            [later for later, _ in repeats],
            f"class {lines.text[again]!r} is line {lines.numbers[before]}, too; name each once",
        )
    return tuple(lines.text)
