"""Measures clips per second of our loader and of other ways to load the same clips.

The loaders (sides) take turns on the same files, so that a change in the machine's load affects all
of them. All but FFmpeg return clips of 224 x 224 pixels, cropped at two scales (pytorchvideo: at
one scale, from frames whose short side is 256); half of the clips are mirrored. Our loader decodes
with two threads per process, and decord with a second thread. If loaders keep every core busy, no
core is free for second threads; so the first table also has rates on one core, and the last table
has only those. Our side knows the length of each video, as after `videoattn prepare index` or one
epoch, except for the row of a first epoch.
"""

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from common import DECODERS, print_table, videos_under
from loader_sides import (
    BATCH_SIZE,
    CROP,
    READERS,
    SHORT_SIDE,
    Clips,
    ffmpeg_rate,
    pytorchvideo_clips,
    whole_frame_clips,
    whole_frame_views,
)
from networks import against
from torch import Tensor

from videoattn.data.dataset import ClipDataset
from videoattn.data.decode import DecodeError, Decoder, count_frames, decode
from videoattn.data.lists import Samples
from videoattn.data.loader import ClipLoader
from videoattn.data.prepare.reencode import Reencode, reencode
from videoattn.data.prepare.verify import probe
from videoattn.data.sampling import Sampler, repeated, train_sampler, view_sampler
from videoattn.data.transforms import TestTransform, TrainTransform
from videoattn.data.transforms.mirror import Mirror

SETTINGS: dict[str, Sampler] = {
    "dense 32x2": train_sampler("dense", num_frames=32, frame_stride=2),
    "dense 8x8": train_sampler("dense", num_frames=8, frame_stride=8),
    "8 segments": train_sampler("segments", num_frames=8),
}
CLIP_SECONDS = {"dense 32x2": 64 / 25, "dense 8x8": 64 / 25, "8 segments": 3600.0}
NUM_FRAMES = {"dense 32x2": 32, "dense 8x8": 8, "8 segments": 8}
BASELINE, OPENCV = READERS
HAS_OPENCV = find_spec("cv2") is not None
FIRST = "ours, first epoch, no index"
KEY_FRAME_INTERVAL = 8
MAX_REENCODED = 40


def bench_loader(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A folder of videos.")
    ],
    workers: Annotated[int, typer.Option(min=0, help="Largest number of loader processes.")] = 4,
    seconds: Annotated[float, typer.Option(min=1, help="How long each side is timed.")] = 20.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of 30 views of each video.")] = 5,
) -> None:
    """Measure clips per second of our loader with each decoder, and of other loaders."""
    samples = find_videos(folder)
    torch.set_num_threads(1)  # as in a loader process; idle threads would slow decord down
    print(f"{len(samples)} videos, {os.cpu_count()} cores, {seconds:g} s per side, in turns\n")
    _print_sides(samples, seconds)
    _print_workers(samples, workers, seconds)
    with one_core():
        _print_gains(samples, seconds)
        _print_views(samples, rounds)


def find_videos(root: Path) -> Samples:
    """Returns the videos with at least 8 frames, which every side can load.

    Raises:
        typer.BadParameter: If there are none.
    """
    paths = []
    for path in sorted(videos_under(root)):
        with suppress(DecodeError):
            if probe(path).num_frames >= 8:
                paths.append(str(path.relative_to(root)))
    if not paths:
        raise typer.BadParameter(f"{root} contains no video of at least 8 frames that decodes")
    return _samples(root, paths)


def ours(
    samples: Samples,
    sampler: Sampler,
    *,
    decoder: Decoder = "auto",
    num_workers: int = 0,
    num_clips: int = 1,
    first: bool = False,
) -> Clips:
    """Returns our loader, with `num_clips` clips from each decoded video. If `first`, all epochs
    are like the first one without an index: no number of frames is known."""

    def make() -> ClipLoader:
        paths, labels = samples.paths, samples.labels
        unknown = Samples(samples.root, paths=paths, labels=labels, class_names=["any"])
        dataset = ClipDataset(
            unknown if first else samples,
            sample_frames=repeated(sampler, num_clips),
            transform=TrainTransform(CROP),
            mirror=Mirror(0.5, ["any"]),
            on_error="skip",
            decode=partial(decode, decoder=decoder),
        )
        size = BATCH_SIZE // num_clips
        return ClipLoader(dataset, batch_size=size, shuffle=True, num_workers=num_workers)

    loader = make()
    return lambda epoch: (
        batch.frames.flatten(0, 1) for batch in (make() if first else loader).epoch(epoch)
    )


def compare(sides: Mapping[str, Clips], seconds: float, num_workers: int = 0) -> dict[str, float]:
    """Returns the clips per second of each side, measured in three turns.

    At the start of a turn, the batches that workers loaded during the other sides' turns are
    discarded.
    """
    running = {name: _endless(clips) for name, clips in sides.items()}
    clips = dict.fromkeys(sides, 0)
    spent = dict.fromkeys(sides, 0.0)
    for _ in range(3):
        for name, batches in running.items():
            for _ in range(2 * num_workers + 1):
                next(batches)
            started, done = time.perf_counter(), 0
            while time.perf_counter() - started < seconds / 3 or not done:
                done += len(next(batches))
            clips[name] += done
            spent[name] += time.perf_counter() - started
    return {name: clips[name] / spent[name] for name in sides}


@contextmanager
def one_core() -> Iterator[None]:
    """Restricts this thread, and the processes and threads that it starts, to one core (Linux)."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _print_sides(samples: Samples, seconds: float) -> None:
    """Prints the rates of our loader, with each decoder, and of other loaders in one process."""
    missing: dict[str, str] = {}
    readable = _by_decoder(samples, missing)
    rows = []
    for setting in SETTINGS:
        rates = _one_process(samples, readable, setting, missing, seconds)
        with one_core():
            alone = _one_process(samples, readable, setting, missing, seconds)
        for name in rates:
            cells = *_cells(rates[name], rates[BASELINE]), *_cells(alone[name], alone[BASELINE])
            rows.append((setting, name, *cells))
    columns = ("one process", "loader", "clips/s", "ratio", "on one core, clips/s", "ratio")
    note = "\n".join(f"missing: {name}: {reason}" for name, reason in missing.items())
    print_table(columns, rows, note=note)


def _one_process(
    samples: Samples,
    readable: Mapping[Decoder, Samples],
    setting: str,
    missing: dict[str, str],
    seconds: float,
) -> dict[str, float]:
    """Returns the rates of the first table. Adds sides that cannot run to `missing`."""
    sampler = SETTINGS[setting]
    sides: dict[str, Clips] = {BASELINE: whole_frame_clips(BASELINE, samples, sampler)}
    if HAS_OPENCV:
        sides[OPENCV] = whole_frame_clips(OPENCV, samples, sampler)
    else:
        missing[OPENCV] = "cv2 is not installed"
    sides[FIRST] = ours(samples, sampler, first=True)
    for decoder, subset in readable.items():
        sides[f"ours, {decoder}"] = ours(subset, sampler, decoder=decoder)
    name = "pytorchvideo, LabeledVideoDataset"
    try:
        sides[name] = pytorchvideo_clips(samples, CLIP_SECONDS[setting], NUM_FRAMES[setting])
    except ImportError as error:
        missing[name] = str(error)
    rates = compare(sides, seconds)
    name = "FFmpeg, decoding alone"
    try:
        rates[name] = ffmpeg_rate(samples, sampler, seconds)
    except FileNotFoundError as error:
        missing[name] = str(error)
    return rates


def _print_workers(samples: Samples, max_workers: int, seconds: float) -> None:
    """Prints the rates of our loader and decord for several numbers of loader processes."""
    rows = []
    alone: dict[str, float] = {}
    for count in (count for count in (0, 1, 2, 4, 8, 16) if count <= max_workers):
        for setting, sampler in SETTINGS.items():
            sides = {
                "ours": ours(samples, sampler, num_workers=count),
                BASELINE: whole_frame_clips(BASELINE, samples, sampler, num_workers=count),
            }
            rates = compare(sides, seconds, count)
            # End the workers now. The next row's fork would inherit their handles.
            del sides
            gc.collect()
            mine, theirs = rates["ours"], rates[BASELINE]
            gain = mine / alone.setdefault(setting, mine)
            cells = (f"{mine:.1f}", f"{theirs:.1f}", f"{mine / theirs:.2f}", f"{gain:.2f}")
            rows.append((count, setting, *cells))
    columns = ("workers", "setting", "ours, clips/s", "decord, clips/s", "ratio", "of 0 workers")
    print_table(columns, rows)


def _print_gains(samples: Samples, seconds: float) -> None:
    """Prints the rates with re-encoded videos, and two clips from each decode, on one core."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        originals, reencoded, size = _reencode(samples, Path(folder))
        for setting, sampler in SETTINGS.items():
            sides = {
                BASELINE: whole_frame_clips(BASELINE, originals, sampler),
                "originals": ours(originals, sampler),
                "re-encoded": ours(reencoded, sampler),
                "two clips per decode": ours(originals, sampler, num_clips=2),
                "both": ours(reencoded, sampler, num_clips=2),
            }
            rates = compare(sides, seconds)
            rows += [(setting, name, *_cells(x, rates[BASELINE])) for name, x in rates.items()]
    print_table(
        ("on one core", "videos", "clips/s", "ratio"),
        rows,
        note=f"{len(originals)} videos. Re-encoded: short side at most {SHORT_SIDE}, a key frame "
        f"every {KEY_FRAME_INTERVAL} frames, {size:.2f} times the bytes.",
    )


def _print_views(samples: Samples, rounds: int) -> None:
    """Prints the time to prepare 30 views of each video: 10 clips of 8x8, 3 crops."""
    sampler = view_sampler("dense", num_frames=8, frame_stride=8, num_clips=10)
    transform = TestTransform(SHORT_SIDE, crop=(SHORT_SIDE, SHORT_SIDE), num_crops=3)
    dataset = ClipDataset(samples, sample_frames=sampler, transform=transform)
    peers = [name for name in READERS if name != OPENCV or HAS_OPENCV]
    rows = []
    for index in range(len(samples)):
        path = samples.path(index)
        sides: dict[str, Callable[[], object]] = {"ours": partial(dataset.__getitem__, (0, index))}
        sides |= {name: partial(whole_frame_views, name, path, sampler) for name in peers}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds + 1):  # the first round opens the file and is not counted
            for name, side in sides.items():
                started = time.perf_counter()
                side()
                times[name].append(time.perf_counter() - started)
        base = times["ours"][1:]
        ratios = [against(times[name][1:], base)[-1] for name in peers]
        rows.append((samples.paths[index], f"{1000 * statistics.median(base):.0f}", *ratios))
    print_table(
        ("30 views", "ours, ms", *(f"{name}, of ours" for name in peers)),
        rows,
        note=f"One core, {rounds} rounds in turns: medians of the rounds' ratios. We know the "
        "numbers of frames.",
    )


def _reencode(samples: Samples, folder: Path) -> tuple[Samples, Samples, float]:
    """Returns some videos, their re-encoded copies, and the copies' size relative to the videos."""
    step = -(-len(samples) // MAX_REENCODED)
    paths, before, after = [], 0, 0
    for index in range(0, len(samples), step):
        source, name = samples.path(index), Path(samples.paths[index]).with_suffix(".mp4")
        job = Reencode(source, folder / name, SHORT_SIDE, KEY_FRAME_INTERVAL)
        if "error" not in reencode(job):
            paths.append(samples.paths[index])
            before += source.stat().st_size
            after += job.out.stat().st_size
    names = [str(Path(path).with_suffix(".mp4")) for path in paths]
    return _samples(samples.root, paths), _samples(folder, names), after / before


def _by_decoder(samples: Samples, missing: dict[str, str]) -> dict[Decoder, Samples]:
    """Returns the videos that each installed decoder accepts."""
    found: dict[Decoder, Samples] = {}
    for decoder in DECODERS:
        paths = []
        try:
            for index in range(len(samples)):
                with suppress(DecodeError):
                    decode(samples.path(index), [0], decoder=decoder)
                    paths.append(samples.paths[index])
        except ImportError as error:
            missing[f"ours, {decoder}"] = str(error)
            continue
        if len(paths) < len(samples):
            refused = len(samples) - len(paths)
            missing[f"ours, {decoder}"] = f"refuses {refused} of {len(samples)} files"
        if paths:
            found[decoder] = _samples(samples.root, paths)
    return found


def _samples(root: Path, paths: list[str]) -> Samples:
    """Returns samples with frame counts and rates, as from an index."""
    timings = np.array([count_frames(root / path) for path in paths]).reshape(-1, 2)
    return Samples(
        root,
        paths=paths,
        labels=[0] * len(paths),
        class_names=["any"],
        num_frames=timings[:, 0].astype(np.int64),
        fps=timings[:, 1],
    )


def _endless(clips: Clips) -> Iterator[Tensor]:
    epoch = 0
    while True:
        yield from clips(epoch)
        epoch += 1


def _cells(rate: float, base: float) -> tuple[str, str]:
    return f"{rate:.1f}", f"{rate / base:.2f}"


if __name__ == "__main__":
    typer.run(bench_loader)
