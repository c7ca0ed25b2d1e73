"""Counts and lists samples that training skips because they cannot be decoded."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from videoattn.engine.parallel import Parallel
from videoattn.engine.state import RunSettings, TrainState
from videoattn.engine.trackers import read_records
from videoattn.files import named_in_errors
from videoattn.types import Batch, Failure

SKIPPED = "skipped.jsonl"
"""The name of the file in a run folder that lists the skipped samples, one JSON object a line."""


class TooManyFailuresError(RuntimeError):
    """Raised if more than `max_failures` samples could not be decoded."""


def count_samples(
    group: Sequence[Batch], state: TrainState, *, run: RunSettings, parallel: Parallel
) -> None:
    """Adds the samples of a step on all ranks to `state`, and lists each failed one once per run.

    Raises:
        TooManyFailuresError: If more than `run.max_failures` samples have failed.
    """
    own = [failure for batch in group for failure in batch.failures]
    num_own = sum(len(batch.indices) for batch in group)
    num_seen, num_skipped = parallel.sum([num_own, len(own)])
    state.num_seen += int(num_seen)
    state.num_skipped += int(num_skipped)
    if not num_skipped:
        return
    new = {
        failure.index: failure
        for failures in parallel.gather(own)
        for failure in failures
        if failure.index not in state.failed
    }
    state.failed = sorted([*state.failed, *new])
    if parallel.is_main:
        append_failures(run.folder / SKIPPED, new.values())
    if run.max_failures is not None and len(state.failed) > run.max_failures:
        last = list(new.values())[-1]
        raise TooManyFailuresError(
            f"{len(state.failed)} videos could not be decoded; at most {run.max_failures} may fail"
            f"; see {run.folder / SKIPPED}; the last: {last.path}: {last.reason}"
        )


def read_failures(path: Path) -> list[Failure]:
    """Returns the failures that `append_failures` wrote; none if the file does not exist."""
    records = read_records(path, index=int, path=str, reason=str)
    return [Failure(record["index"], record["path"], record["reason"]) for record in records]


def append_failures(path: Path, failures: Iterable[Failure]) -> None:
    """Appends each failure to a file as one line of JSON."""
    with named_in_errors(path), open(path, "a") as file:
        file.writelines(json.dumps(asdict(failure)) + "\n" for failure in failures)


def keep_failures(path: Path, indices: Collection[int]) -> None:
    """Removes samples other than `indices` from a file of failures. An interrupted run may have
    listed more after its last checkpoint; the resumed run lists them again."""
    kept = [failure for failure in read_failures(path) if failure.index in indices]
    path.unlink(missing_ok=True)
    if kept:
        append_failures(path, kept)
