"""Helpers of `videoattn prepare`: reading a source, examining files, reporting."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videoattn.data.lists import Missing, Samples
from videoattn.data.lists.files import outside
from videoattn.data.prepare.verify import Journal, Record, describe, examine, videos_in
from videoattn.data.workers import Task
from videoattn.engine.progress import Display
from videoattn.errors import first_few
from videoattn.files import write_text
from videoattn.recipe.console import show
from videoattn.recipe.data import make_samples
from videoattn.recipe.load import load

NUM_BROKEN_SHOWN = 10


def read_source(
    source: Path, overrides: Sequence[str], missing: Missing = "keep"
) -> tuple[str, dict[str, Samples]]:
    """Returns the name of a dataset, and its samples by subset: "train" and "test" of a recipe; ""
    of a folder, whose videos have no labels."""
    if source.is_dir():
        if overrides:
            raise ValueError(f"{source} is a folder, which has no settings; remove {overrides[0]}")
        paths = videos_in(source)
        samples = Samples(source, paths=paths, labels=[-1] * len(paths), class_names=())
        return source.resolve().name, {"": samples}
    config = load(source, overrides)
    if config.data.layout == "shards":
        raise ValueError("data.layout: got shards; need the layout of the original videos")
    return config.name, {
        "train": make_samples(config.data, "train", missing),
        "test": make_samples(config.data, "test", missing),
    }


def to_task(samples: Samples, index: int) -> Any:
    """Returns the argument of `verify`, or of `verify_folder` for a folder of images."""
    if samples.frame_template is None:
        return samples.path(index)
    return samples.source(index), int(samples.num_frames[index])


def to_line(samples: Samples, index: int) -> str:
    """Returns a line of a list (data.layout list or frames), or the path of an unlabeled video."""
    words = [samples.paths[index]]
    if samples.frame_template is not None and samples.num_frames[index]:
        words.append(str(samples.num_frames[index]))
    label = samples.label(index)
    if isinstance(label, tuple):
        words += [";".join(map(str, label))] * bool(label)
    elif label >= 0:
        words.append(str(label))
    return " ".join(words)


def inside(root: Path, paths: Sequence[str], follow_links: bool) -> list[int]:
    """Returns the indices of the files to copy. Without `follow_links`, leaves out those that links
    lead to outside of the root, because the copy may be published, and prints their number."""
    out = set() if follow_links else outside(root, paths)
    rows = [row for row, path in enumerate(paths) if path not in out]
    if out:
        where = f"links lead outside of {root}: {first_few(sorted(out))}"
        if not rows:
            raise ValueError(f"all {where}; copy their files with --follow-links")
        show(f"note: {len(out):,} {where}; they are left out; --follow-links copies their files")
    return rows


def examine_all(
    verb: str,
    task: Task,
    root: Path,
    items: Mapping[str, Any],
    journal: Journal | None,
    num_workers: int,
    seconds: float,
) -> tuple[dict[str, Record], dict[str, Record]]:
    """Runs a task on every file that the journal lacks, shows progress, and closes the journal.

    Args:
        verb: The past participle in the progress line, such as "verified".
        items: The argument of the task by path, relative to the root.

    Returns:
        The record of each path, and those that have an error.
    """
    records: dict[str, Record] = {}
    broken: dict[str, Record] = {}
    started = time.perf_counter()
    with closing(journal) if journal else nullcontext(), Display() as display:
        for record in examine(task, root, items, journal, num_workers=num_workers, seconds=seconds):
            records[record["path"]] = record
            if "error" in record:
                broken[record["path"]] = record
            display.update(
                f"{verb} {len(records):,}/{len(items):,}  broken {len(broken):,}  "
                f"{time.perf_counter() - started:.0f} s",
                done=len(records),
                total=len(items),
            )
    return records, broken


def show_broken(broken: Mapping[str, Record], folder: Path | None = None) -> None:
    """Prints the first broken files, and writes the full list to `broken.txt` in the folder."""
    errors = [(path, broken[path]["error"]) for path in sorted(broken)]
    if folder is not None:
        write_lines(folder / "broken.txt", (f"{path}\t{error}" for path, error in errors))
    for path, error in errors[:NUM_BROKEN_SHOWN]:
        show(f"  {path}: {error}")
    if len(errors) > NUM_BROKEN_SHOWN:
        show(f"  and {len(errors) - NUM_BROKEN_SHOWN:,} more")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines))


def count_frames(
    samples: Samples, num_workers: int, seconds: float, *, skip: bool
) -> tuple[Samples, dict[str, Record]]:
    """Returns the samples that decode, with frame counts and rates, and the records of the others.
    Videos in the dataset's index are not opened."""
    counts, rates = samples.num_frames.copy(), samples.fps.copy()
    rows = {samples.paths[i]: i for i in np.flatnonzero(counts == 0)}
    items = {path: samples.path(int(i)) for path, i in rows.items()}
    task = partial(describe, with_starts=False)
    records, broken = examine_all("counted", task, samples.root, items, None, num_workers, seconds)
    for path in records.keys() - broken.keys():
        counts[rows[path]], rates[rows[path]] = records[path]["num_frames"], records[path]["fps"]
    if broken and not skip:
        first = next(iter(broken))
        raise ValueError(
            f"{len(broken)} of {len(samples)} videos do not decode; the first: {first}: "
            f"{broken[first]['error']}; remove them, or skip them with data.on_error=skip"
        )
    decoding = np.flatnonzero(counts)
    kept = samples.take(decoding)
    kept.num_frames, kept.fps = counts[decoding], rates[decoding]
    return kept, broken
