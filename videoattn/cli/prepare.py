"""`videoattn prepare verify` and `index`: what is wrong with a data set's files, what they hold."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from videoattn.data.lists import Missing, Samples, existing_root
from videoattn.data.prepare.index import INDEX_NAME, write_index
from videoattn.data.prepare.verify import (
    Journal,
    Record,
    describe,
    examine,
    to_index,
    verify,
    verify_folder,
    videos_in,
)
from videoattn.data.workers import Task
from videoattn.engine.progress import Display
from videoattn.recipe.console import console as out
from videoattn.recipe.data import make_samples
from videoattn.recipe.folder import RUNS
from videoattn.recipe.load import load


def run_verify(
    what: Path, overrides: Sequence[str] = (), *, num_workers: int, seconds: float,
    folder: Path | None = None,
) -> int:  # fmt: skip
    """Decodes every file of a recipe's two parts, or of a folder, and writes which are clean.

    Returns how many are not.

    Raises:
        ValueError: a wrong recipe or data set.
    """
    parts = parts_of(what, overrides)
    root, name = _root_and_name(what, overrides)
    folder = folder or RUNS / f"verify-{name}"
    items: dict[str, Any] = {}
    for samples in parts.values():
        for i in range(len(samples)):
            items[samples.paths[i]] = _item(samples, i)
    task = verify_folder if any(s.frame_template for s in parts.values()) else verify
    about = {"verified": str(root.resolve())}
    records = examined(
        "verified", task, root, items, folder / "checked.jsonl", about, num_workers, seconds
    )
    broken = {path: record for path, record in records.items() if "error" in record}
    for part, samples in parts.items():
        kept = [i for i in range(len(samples)) if samples.paths[i] not in broken]
        lines = [_line(samples, i) for i in kept]
        write_lines(folder / f"clean{f'_{part}' * bool(part)}.txt", lines)
        write_lines(folder / "classes.txt", samples.class_names)
    some = sum("num_frames" in record for record in broken.values())
    out.print(
        f"{len(items):,} files: {len(items) - len(broken):,} clean, {len(broken):,} broken"
        + f" ({some:,} of these give some frames)" * bool(some)
        + f"; {folder}/ lists them",
        markup=False,
    )
    name_broken(broken, folder)
    return len(broken)


def run_index(root: Path, *, num_workers: int, seconds: float) -> Path:
    """Writes the index of a data root. A journal beside it spares files that stay as they are.

    Raises:
        ValueError: no such folder, or no video in it.
    """
    root = existing_root(root)
    items = {path: root / path for path in videos_in(root)}
    journal = root / f"{INDEX_NAME.removesuffix('.npz')}.jsonl"
    records = examined(
        "indexed",
        describe,
        root,
        items,
        journal,
        {"indexed": 1},
        num_workers,
        seconds,
        is_complete=lambda record: "starts" in record,
    )
    path = write_index(root, to_index([records[name] for name in items]))
    broken = {path: record for path, record in records.items() if "error" in record}
    frames = sum(record.get("num_frames", 0) for record in records.values())
    out.print(
        f"{path}: {len(records):,} videos, {frames:,} frames"
        + f"; {len(broken):,} that do not decode have none" * bool(broken),
        markup=False,
    )
    name_broken(broken)
    return path


def parts_of(what: Path, overrides: Sequence[str], missing: Missing = "keep") -> dict[str, Samples]:
    """A recipe's samples by part, with the missing among them; a folder's under "", unlabelled."""
    if what.is_dir():
        _check_no_overrides(what, overrides)
        paths = videos_in(what)
        return {"": Samples(what, paths=paths, labels=[-1] * len(paths), class_names=())}
    config = load(what, overrides).data
    if config.layout == "shards":
        raise ValueError("data.layout is shards; prepare reads the videos that they were made of")
    return {
        "train": make_samples(config, "train", missing),
        "test": make_samples(config, "test", missing),
    }


def _check_no_overrides(what: Path, overrides: Sequence[str]) -> None:
    if overrides:
        raise ValueError(f"{what} is a folder; {overrides[0]} would change a recipe")


def examined(
    what: str, task: Task, root: Path, items: Mapping[str, Any], journal: Path,
    about: Mapping[str, Any], num_workers: int, seconds: float,
    is_complete: Callable[[Record], bool] = lambda _: True,
) -> dict[str, Record]:  # fmt: skip
    """Records by path; says how it goes on."""
    records: dict[str, Record] = {}
    kept = Journal(journal, about)
    kept.records = {path: r for path, r in kept.records.items() if "error" in r or is_complete(r)}
    started, broken = time.perf_counter(), 0
    try:
        with Display() as display:
            for record in examine(
                task, root, items, kept, num_workers=num_workers, seconds=seconds
            ):
                records[record["path"]] = record
                broken += "error" in record
                display.update(
                    f"{what} {len(records):,}/{len(items):,}  broken {broken:,}  "
                    f"{time.perf_counter() - started:.0f} s",
                    done=len(records),
                    total=len(items),
                )
    finally:
        kept.close()
    return records


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def name_broken(broken: Mapping[str, Record], folder: Path | None = None) -> None:
    """The first few on the terminal, all in `folder/broken.txt`."""
    lines = [f"{path}\t{broken[path]['error']}" for path in sorted(broken)]
    if folder is not None:
        write_lines(folder / "broken.txt", lines)
    for line in lines[:10]:
        out.print("  " + line.replace("\t", ": "), markup=False)
    if len(lines) > 10:
        out.print(f"  and {len(lines) - 10:,} more")


def _root_and_name(what: Path, overrides: Sequence[str]) -> tuple[Path, str]:
    if what.is_dir():
        return what, what.resolve().name
    config = load(what, overrides)
    return existing_root(config.data.root), config.name


def _item(samples: Samples, index: int) -> Any:
    """What `verify` takes, or `verify_folder`."""
    if samples.frame_template is None:
        return samples.path(index)
    count = 0 if samples.num_frames is None else int(samples.num_frames[index])
    return samples.path(index), samples.frame_template, count


def _line(samples: Samples, index: int) -> str:
    """As layouts list and frames read it; a path alone where there is no label."""
    words = [samples.paths[index]]
    if samples.frame_template is not None and samples.num_frames is not None:
        words.append(str(samples.num_frames[index]))
    if samples.label(index) >= 0:
        words.append(str(samples.label(index)))
    return " ".join(words)
