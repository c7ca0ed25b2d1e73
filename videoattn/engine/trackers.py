"""Writes the metrics of a run to files: JSON lines and TensorBoard events."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

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
        records = [json.loads(line) for line in complete_lines(path)] if resumed_at else []
        kept = [record for record in records if record["step"] <= last[record["kind"]]]
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


def complete_lines(path: Path) -> list[str]:
    """Returns the lines of a file of JSON objects, without an incomplete last line."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines() if line.endswith("}")]
