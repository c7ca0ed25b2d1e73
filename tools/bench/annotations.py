"""Measures the time and memory of loading a long list of videos.

No videos are needed. The lists and the index are written to a temporary folder. They have the
length of Kinetics-700, and paths of the same form.
"""

import gc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from common import print_table

from videoattn.data.lists import Samples, read_kinetics, read_list
from videoattn.data.prepare.index import write_index

NUM_CLASSES = 700


class Cost(NamedTuple):
    """The time (seconds) and memory (MB) of loading one list."""

    seconds: float
    cpu_seconds: float
    added: float  # private memory of the loading process, after loading minus before
    worker_pss: float  # largest of any worker: own memory plus its share of shared memory
    worker_uss: float  # largest of any worker: own memory
    worker_added: float  # largest of any worker: own memory that reading all entries added


def bench_annotations(
    videos: Annotated[int, typer.Option(min=1, help="Lines per list.")] = 650_000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share a list.")] = 8,
) -> None:
    """Measure seconds and memory of loading a long list, and of the workers that read it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = write_lists(root, videos)
        readers: dict[str, Callable[[], Samples]] = {
            "path label": lambda: read_list(root / "list.txt", root, class_names=names),
            "Kinetics csv": lambda: read_kinetics(root, "train", class_names=names),
        }
        costs = {name: measure(read, workers) for name, read in readers.items()}
    print_table(
        ("list", "seconds", "CPU seconds", "added MB", "PSS", "USS", "USS added"),
        [
            (
                name,
                f"{cost.seconds:.2f}",
                f"{cost.cpu_seconds:.2f}",
                *(f"{x:.0f}" for x in cost[2:]),
            )
            for name, cost in costs.items()
        ],
        note=f"{videos:,} videos, {workers} workers. Seconds: parse, check labels and duplicates, "
        "look up every path in the index. Added: private memory of the loading process. PSS, USS: "
        "largest of the forked workers after they read all entries; USS added: by reading.",
    )


def write_lists(root: Path, num_videos: int) -> tuple[str, ...]:
    """Writes `list.txt`, `train.csv` and the index into a folder; returns the class names."""
    alphabet = b"0123456789-_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    rng = np.random.default_rng(0)
    letters = np.frombuffer(alphabet, "u1")[rng.integers(0, len(alphabet), (num_videos, 11))]
    ids = letters.tobytes().decode()
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
    facts = {"num_frames": 300, "fps": 30.0, "height": 256, "width": 256, "key_frames": 25}
    write_index(root, [{"path": path, **facts} for path in paths])
    return names


def measure(read: Callable[[], Samples], num_workers: int) -> Cost:
    """Returns the cost of loading a list and of reading it in workers."""
    gc.collect()
    before = _memory()["Private"]
    wall, cpu = time.perf_counter(), time.process_time()
    samples = read()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    added = _memory()["Private"] - before
    largest = [max(values) for values in zip(*_in_workers(samples, num_workers), strict=True)]
    return Cost(wall, cpu, added, *largest)


def _in_workers(samples: Samples, num_workers: int) -> list[tuple[float, float, float]]:
    """Returns the PSS, the USS and the increase of USS by reading, in MB, of each forked worker."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    barrier = context.Barrier(num_workers)
    processes = [
        context.Process(target=_read_share, args=(samples, worker, num_workers, barrier, results))
        for worker in range(num_workers)
    ]
    for process in processes:
        process.start()
    measured = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return measured


def _read_share(
    samples: Samples,
    worker: int,
    num_workers: int,
    barrier: Barrier,
    results: "multiprocessing.SimpleQueue[tuple[float, float, float]]",
) -> None:
    before = _memory()["Private"]
    order = np.random.default_rng(0).permutation(len(samples))
    for index in order[worker::num_workers].tolist():
        os.fspath(samples.path(index))
        samples.label(index)
    barrier.wait()  # PSS depends on how many processes share the memory: measure while all live
    memory = _memory()
    barrier.wait()
    results.put((memory["Pss"], memory["Private"], memory["Private"] - before))


def _memory() -> dict[str, float]:
    """Returns the memory of this process in MB: "Private", and "Pss" (plus a share of the rest)."""
    sizes = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        key, value = line.split()[:2]
        sizes[key.rstrip(":")] = int(value) * 1024 / 1e6
    return {"Pss": sizes["Pss"], "Private": sizes["Private_Clean"] + sizes["Private_Dirty"]}


if __name__ == "__main__":
    typer.run(bench_annotations)
