"""Writes the metrics of a run to files: JSON lines and TensorBoard events."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Protocol, runtime_checkable

from videoattn.files import named_in_errors, write_text

Kind = Literal["train", "validation"]
Record = Mapping[str, str | int | float | None]


@runtime_checkable
class Tracker(Protocol):
    """A destination for metrics."""

    def write(self, kind: Kind, step: int, record: Record) -> None:
        """Writes the metrics after `step` steps of the run; None means NaN."""

    def close(self) -> None: ...


class JsonLines:
    """Writes one JSON object per record, and flushes it.

    After a resume, records that the interrupted run wrote after its checkpoint are dropped, so that
    the file has each step once.

    Args:
        resumed_at: The step of the checkpoint; 0 for a new run.
        validated: Whether the checkpoint includes the validation of that step. If not, the
            validation runs again, and its record is dropped.
    """

    def __init__(self, path: Path, *, resumed_at: int = 0, validated: bool = True) -> None:
        self.path = path
        last = {"train": resumed_at, "validation": resumed_at if validated else resumed_at - 1}
        records = read_records(path, kind=str, step=int) if resumed_at else []
        kept = [r for r in records if r["step"] <= last.get(r["kind"], resumed_at)]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, kind: Kind, step: int, record: Record) -> None:
        with named_in_errors(self.path), open(self.path, "a") as file:
            file.write(json.dumps({"kind": kind, "step": step} | dict(record)) + "\n")

    def close(self) -> None:
        pass


class TensorBoard:
    """Writes each number as the scalar `kind/name`; hides events after `resumed_at` steps."""

    def __init__(self, folder: Path, *, resumed_at: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(folder), purge_step=resumed_at + 1)

    def write(self, kind: Kind, step: int, record: Record) -> None:
        for name, value in record.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


def read_records(path: Path, /, **types: type | UnionType) -> list[dict[str, Any]]:
    """Returns the objects in a file of JSON lines, without an incomplete last line; none if the
    file does not exist.

    Args:
        types: The keys that each object must have, and the types of their values.

    Raises:
        ValueError: If a line is not such an object: the file may have come with a shared folder.
    """
    records: list[dict[str, Any]] = []
    if not path.exists():
        return records
    for number, line in enumerate(path.read_text("utf-8", "surrogateescape").splitlines(), 1):
        if not line.endswith("}"):
            continue
        try:
            record = json.loads(line)
            wrong = [key for key, kind in types.items() if not isinstance(record[key], kind)]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} line {number} is damaged ({error!r}); remove it") from error
        if wrong:
            raise ValueError(f"{path} line {number} is damaged: {wrong[0]}; remove it")
        records.append(record)
    return records
