"""Writes the metrics of a run to files, to MLflow, or to Weights & Biases."""

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """Appends each record to the file `path` as a line of JSON.

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
    """Writes each number as the scalar `kind/name`; hides earlier events past step `resumed_at`."""

    def __init__(self, folder: Path, *, resumed_at: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(folder), purge_step=resumed_at + 1)

    def write(self, kind: Kind, step: int, record: Record) -> None:
        for name, value in _numbers(kind, record).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """Writes each number as the metric `kind/name` to the server or folder MLFLOW_TRACKING_URI.

    Args:
        name: The name of a new run, in the experiment MLFLOW_EXPERIMENT_NAME or "videoattn".
        settings: The parameters of a new run.
        run_id: The run to continue. None: start a new run.

    Raises:
        OSError: Here, in `write` and in `close`, if MLflow raises an error.
    """

    def __init__(self, name: str, settings: Mapping[str, str], *, run_id: str | None) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        with _mlflow_errors():
            self._client = MlflowClient()
            if run_id is not None:
                self.run_id = run_id
                self._client.update_run(run_id, status="RUNNING")
                return
            title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "videoattn")
            found = self._client.get_experiment_by_name(title)
            experiment = found.experiment_id if found else self._client.create_experiment(title)
            self.run_id = self._client.create_run(experiment, run_name=name).info.run_id
            params = [Param(key, value) for key, value in settings.items()]
            for first in range(0, len(params), 100):  # the most in one request
                self._client.log_batch(self.run_id, params=params[first : first + 100])

    def write(self, kind: Kind, step: int, record: Record) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(*item, now, step) for item in _numbers(kind, record).items()]
        with _mlflow_errors():
            self._client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        with _mlflow_errors():
            self._client.set_terminated(self.run_id)


class WeightsAndBiases:
    """Writes each number as `kind/name` to Weights & Biases. `wandb` reads its usual settings: the
    login, WANDB_MODE, and WANDB_PROJECT ("videoattn" by default).

    Args: as for `MLflow`.

    Raises:
        OSError: If the run cannot be started.
    """

    def __init__(self, name: str, settings: Mapping[str, str], *, run_id: str | None) -> None:
        import wandb

        self.run_id = run_id or secrets.token_hex(4)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "videoattn"),
                name=name,
                id=self.run_id,
                resume="allow",
                config=dict(settings),
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            hint = "to work offline, set WANDB_MODE=offline"
            raise OSError(f"Weights & Biases: {error}; {hint}") from error

    def write(self, kind: Kind, step: int, record: Record) -> None:
        self._run.log(_numbers(kind, record), step=step)

    def close(self) -> None:
        self._run.finish()


def read_records(path: Path, /, **types: type | UnionType) -> list[dict[str, Any]]:
    """Returns the objects in a file of JSON lines, without incomplete lines; [] without the file.

    Args:
        types: The keys that each object must have, and the types of their values.

    Raises:
        ValueError: If a line is not such an object, for example in a file from a shared folder.
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


def _numbers(kind: Kind, record: Record) -> dict[str, int | float]:
    return {f"{kind}/{name}": v for name, v in record.items() if isinstance(v, int | float)}


@contextmanager
def _mlflow_errors() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        where = os.environ.get("MLFLOW_TRACKING_URI", "not set")
        raise OSError(f"MLflow (MLFLOW_TRACKING_URI is {where}): {error.message}") from error
