"""Seconds and memory of a list of many videos: loaded, checked, shared by workers.

No video is needed: the list and the index are written to a temporary folder, as long as those of
Kinetics-700, with paths of its kind.
"""

import gc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from videoattn.data.lists import Samples, read_kinetics, read_list
from videoattn.data.prepare.index import VideoIndex, write_index
from videoattn.data.strings import PackedStrings
from videoattn.recipe.run import out

NUM_CLASSES = 700


class Cost(NamedTuple):
    """Of one format; memory in MB."""

    name: str
    seconds: float  # wall clock
    cpu_seconds: float
    arrays: float  # what the table itself holds
    added: float  # private memory that loading left in the process that loads
    worker_pss: float  # the largest of any worker: its own memory and its share of what is shared
    worker_uss: float  # the largest of any worker: its own memory
    worker_added: float  # how much of a worker's own memory came by reading all entries


def bench_annotations(*, num_videos: int = 650_000, num_workers: int = 8) -> list[Cost]:
    """Loads a `path label` list and a Kinetics csv; prints and returns what they cost."""
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        class_names = write_lists(root, num_videos)
        readers: dict[str, Callable[[], Samples]] = {
            "path label": lambda: read_list(root / "list.txt", root, class_names=class_names),
            "Kinetics csv": lambda: read_kinetics(root, "train", class_names=class_names),
        }
        costs = [_measure(name, read, num_workers) for name, read in readers.items()]
    columns = ("seconds", "of CPU", "arrays", "added", "PSS", "USS", "USS added")
    table = Table("", *columns, title=f"{num_videos:,} videos, {num_workers} workers; MB")
    for cost in costs:
        times = (f"{cost.seconds:.2f}", f"{cost.cpu_seconds:.2f}")
        table.add_row(cost.name, *times, *(f"{size:.0f}" for size in cost[3:]))
    table.caption = (
        "seconds: parse, check labels, repeats, and every path against the index. added: private "
        "memory of the loading process, after less before. PSS, USS: the largest of the forked "
        "workers, after they read every entry between them; USS added: by that reading"
    )
    out.print(table)
    return costs


def write_lists(root: Path, num_videos: int) -> tuple[str, ...]:
    """`list.txt`, `train.csv` and the index in a folder; returns the classes."""
    alphabet = np.frombuffer(
        b"0123456789-_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "u1"
    )
    rng = np.random.default_rng(0)
    ids = alphabet[rng.integers(0, len(alphabet), (num_videos, 11))].tobytes().decode()
    names = tuple(f"class number {i:03d}" for i in range(NUM_CLASSES))
    paths = []
    with (root / "list.txt").open("w") as lines, (root / "train.csv").open("w") as csv:
        csv.write("label,youtube_id,time_start,time_end,split\n")
        for i in range(num_videos):
            video, label, start = ids[11 * i : 11 * i + 11], i * NUM_CLASSES // num_videos, i % 600
            path = f"train/{names[label]}/{video}_{start:06d}_{start + 10:06d}.mp4"
            lines.write(f"{path} {label}\n")
            csv.write(f"{names[label]},{video},{start},{start + 10},train\n")
            paths.append(path)
    (root / "train").mkdir()
    some = np.full(num_videos, 300)
    size = np.full(num_videos, 256, np.int32)
    write_index(root, VideoIndex(PackedStrings.of(paths), some, some / 10, size, size, some // 12))
    return names


def _measure(name: str, read: Callable[[], Samples], num_workers: int) -> Cost:
    gc.collect()
    before = _memory()["Private"]
    wall, cpu = time.perf_counter(), time.process_time()
    samples = read()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    added = _memory()["Private"] - before
    workers = _in_workers(samples, num_workers)
    tables = (samples.paths.data, samples.paths.ends, samples.labels)
    extra = [a for a in (samples.num_frames, samples.fps) if a is not None]
    arrays = sum(array.nbytes for array in (*tables, *extra)) / 1e6
    worst = [max(values) for values in zip(*workers, strict=True)]
    return Cost(name, wall, cpu, arrays, added, *worst)


def _in_workers(samples: Samples, num_workers: int) -> list[tuple[float, float, float]]:
    """PSS, USS and the USS that reading added, of forked workers that read all entries together."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    everyone = context.Barrier(num_workers)
    processes = [
        context.Process(target=_read_all, args=(samples, worker, num_workers, everyone, results))
        for worker in range(num_workers)
    ]
    for process in processes:
        process.start()
    measured = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return measured


def _read_all(
    samples: Samples, worker: int, num_workers: int, everyone: Barrier,
    results: "multiprocessing.SimpleQueue[tuple[float, float, float]]",
) -> None:  # fmt: skip
    before = _memory()["Private"]
    order = np.random.default_rng(0).permutation(len(samples))
    for index in order[worker::num_workers].tolist():
        os.fspath(samples.path(index))
        samples.label(index)
    everyone.wait()  # all are there while each is measured, and share what they share
    memory = _memory()
    everyone.wait()
    results.put((memory["Pss"], memory["Private"], memory["Private"] - before))


def _memory() -> dict[str, float]:
    """Of this process, in MB, by Linux: its own (Private) and with its share of shared (Pss)."""
    sizes = {}
    with open("/proc/self/smaps_rollup") as file:
        for line in list(file)[1:]:
            key, value = line.split()[:2]
            sizes[key.rstrip(":")] = int(value) * 1024 / 1e6
    return {"Pss": sizes["Pss"], "Private": sizes["Private_Clean"] + sizes["Private_Dirty"]}
