"""Clips per second of the loader beside other ways to get the same clips, in one run.

The sides take turns on the same files, so that a machine's moods fall on all of them. All but
FFmpeg make clips of 224 x 224 pixels, crops of two scales (pytorchvideo's: of one, from frames
whose short side is 256), half of them mirrored. One process of ours decodes in two threads, one of
decord's has a second that decodes; a machine whose loaders keep every core busy has no room for
either, so the first table and the last have them on one core too. Our side knows the videos'
lengths, as after `videoattn prepare index` or an epoch.
"""

import gc
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from videoattn.cli.bench_loader_sides import (
    BATCH_SIZE,
    CROP,
    SHORT_SIDE,
    Clips,
    decord_clips,
    ffmpeg_rate,
    pytorchvideo_clips,
)
from videoattn.data.dataset import ClipDataset
from videoattn.data.decode import (
    DecodeError,
    Decoder,
    check_decoder,
    count_frames,
    decode,
    probe,
)
from videoattn.data.lists import VIDEO_SUFFIXES, Samples
from videoattn.data.loader import ClipLoader
from videoattn.data.prepare.reencode import Reencode, reencode
from videoattn.data.sampling import Sampler, repeated, train_sampler
from videoattn.data.transforms.augment import TrainTransform
from videoattn.data.transforms.mirror import Mirror
from videoattn.recipe.run import out

SETTINGS: dict[str, Sampler] = {
    "dense 32x2": train_sampler("dense", num_frames=32, frame_stride=2),
    "dense 8x8": train_sampler("dense", num_frames=8, frame_stride=8),
    "8 segments": train_sampler("segments", num_frames=8),
}
SECONDS_OF_CLIP = {"dense 32x2": 64 / 25, "dense 8x8": 64 / 25, "8 segments": 3600.0}
NUM_FRAMES = {"dense 32x2": 32, "dense 8x8": 8, "8 segments": 8}
BASELINE = "decord, whole frames resized"
KEY_FRAME_INTERVAL = 8
REENCODED = 40  # of the videos, at most


def bench_loader(root: Path, *, max_workers: int = 4, seconds: float = 20.0) -> None:
    """Three tables: each decoder beside others' loaders, more processes, what else helps.

    `seconds` is how long each side of each row runs, in three turns of a third.

    Raises: ValueError when `root` holds no video that decodes; ImportError without decord.
    """
    samples = find_videos(root)
    with _one_thread():
        _print_sides(samples, seconds)
        _print_workers(samples, max_workers, seconds)
        with _one_core():
            _print_gains(samples, seconds)


def _print_sides(samples: Samples, seconds: float) -> None:
    missing: dict[str, str] = {}
    readable = _by_decoder(samples, missing)
    table = Table("one process", "loader", "clips/s", "ratio", "on one core, clips/s", "ratio")
    for setting in SETTINGS:
        rates = _one_process(samples, readable, setting, missing, seconds)
        with _one_core():
            alone = _one_process(samples, readable, setting, missing, seconds)
        for name in rates:
            cells = *_cells(rates[name], rates[BASELINE]), *_cells(alone[name], alone[BASELINE])
            table.add_row(setting, name, *cells)
    table.caption = f"{len(samples)} videos; in turns, {seconds:.0f} s a side; {_cores()}"
    out.print(table)
    for name, reason in missing.items():
        out.print(f"missing: {name}: {reason}", markup=False)


def _one_process(
    samples: Samples, readable: Mapping[Decoder, Samples], setting: str, missing: dict[str, str],
    seconds: float,
) -> dict[str, float]:  # fmt: skip
    """Of the first table's sides; what cannot take part goes to `missing`, with the reason."""
    sampler = SETTINGS[setting]
    sides: dict[str, Clips] = {BASELINE: decord_clips(samples, sampler)}
    for decoder, some in readable.items():
        sides[f"ours, {decoder}"] = ours(some, sampler, decoder=decoder)
    name = "pytorchvideo, LabeledVideoDataset"
    try:
        sides[name] = pytorchvideo_clips(samples, SECONDS_OF_CLIP[setting], NUM_FRAMES[setting])
    except ImportError as error:
        missing[name] = str(error)
    rates = compare(sides, seconds)
    name = "FFmpeg, decoding alone"
    try:
        rates[name] = ffmpeg_rate(samples, sampler, seconds)
    except ImportError as error:
        missing[name] = str(error)
    return rates


def ours(
    samples: Samples, sampler: Sampler, *, decoder: Decoder = "auto", num_workers: int = 0,
    num_clips: int = 1,
) -> Clips:  # fmt: skip
    """`num_clips` of each video, from one decode."""
    dataset = ClipDataset(
        samples,
        sample_frames=repeated(sampler, num_clips),
        transform=TrainTransform(CROP),
        mirror=Mirror(0.5, ["any"]),
        on_error="skip",
        decode=partial(decode, decoder=decoder),
    )
    loader = ClipLoader(
        dataset, batch_size=BATCH_SIZE // num_clips, shuffle=True, num_workers=num_workers
    )
    return lambda epoch: (_count(batch.frames) for batch in loader.epoch(epoch))


def compare(sides: Mapping[str, Clips], seconds: float, num_workers: int = 0) -> dict[str, float]:
    """Each side's clips a second: three turns each, one after the other.

    Each turn starts with as many steps, uncounted, as workers made ready while others ran.
    """
    running = {name: _endless(clips) for name, clips in sides.items()}
    clips = dict.fromkeys(sides, 0)
    spent = dict.fromkeys(sides, 0.0)
    for _ in range(3):
        for name, steps in running.items():
            for _ in range(2 * num_workers + 1):
                next(steps)
            started, done = time.perf_counter(), 0
            while time.perf_counter() - started < seconds / 3 or not done:
                done += next(steps)
            clips[name] += done
            spent[name] += time.perf_counter() - started
    return {name: clips[name] / spent[name] for name in sides}


def find_videos(root: Path) -> Samples:
    """Every video under `root` that all sides can be asked for: 8 frames or more."""
    if not root.is_dir():
        raise ValueError(f"data root {root} does not exist; set data.root to the folder of videos")
    paths = []
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        try:
            if probe(path).num_frames >= 8:
                paths.append(str(path.relative_to(root)))
        except DecodeError:
            continue  # fixtures hold broken files on purpose; a benchmark is no check
    if not paths:
        raise ValueError(f"{root} holds no video of 8 frames or more that decodes")
    return _samples(root, paths)


@contextmanager
def _one_thread() -> Iterator[None]:
    """For torch, as in a loader's process: those that wait for work would slow decord's down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _one_core() -> Iterator[None]:
    """For this thread and what it starts, programs too. Systems other than Linux cannot be told:
    there, second threads have what core they find."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


def _print_workers(samples: Samples, max_workers: int, seconds: float) -> None:
    table = Table("workers", "setting", "ours, clips/s", "decord, clips/s", "ratio", "of 0 workers")
    alone: dict[str, float] = {}
    counts = [count for count in (0, 1, 2, 4, 8, 16) if count <= max_workers]
    for count in counts:
        for setting, sampler in SETTINGS.items():
            sides = {
                "ours": ours(samples, sampler, num_workers=count),
                BASELINE: decord_clips(samples, sampler, num_workers=count),
            }
            rates = compare(sides, seconds, count)
            # Workers of this row end now: forked into the next row's, their handles would complain.
            del sides
            gc.collect()
            mine, theirs = rates["ours"], rates[BASELINE]
            gain = mine / alone.setdefault(setting, mine)
            cells = (f"{mine:.1f}", f"{theirs:.1f}", f"{mine / theirs:.2f}", f"{gain:.2f}")
            table.add_row(str(count), setting, *cells)
    table.caption = _cores()
    out.print(table)


def _print_gains(samples: Samples, seconds: float) -> None:
    """Of videos that were re-encoded, and of two clips from one decode."""
    table = Table("setting", "videos", "clips/s", "ratio")
    with tempfile.TemporaryDirectory() as folder:
        few, small, shrunk = _reencoded(samples, Path(folder))
        for setting, sampler in SETTINGS.items():
            sides = {
                BASELINE: decord_clips(few, sampler),
                "as they are": ours(few, sampler),
                "re-encoded": ours(small, sampler),
                "two clips of each": ours(few, sampler, num_clips=2),
                "both": ours(small, sampler, num_clips=2),
            }
            rates = compare(sides, seconds)
            for name, rate in rates.items():
                table.add_row(setting, name, *_cells(rate, rates[BASELINE]))
    table.caption = (
        f"{len(few)} videos; re-encoded: short side {SHORT_SIDE} at most, a key frame every "
        f"{KEY_FRAME_INTERVAL} frames, {shrunk:.2f} times the bytes"
    )
    out.print(table)


def _reencoded(samples: Samples, folder: Path) -> tuple[Samples, Samples, float]:
    """Some of the videos, the same re-encoded, and the size of these over that of those."""
    step = -(-len(samples) // REENCODED)
    paths, sizes = [], [0, 0]
    for index in range(0, len(samples), step):
        source, name = samples.path(index), Path(samples.paths[index]).with_suffix(".mp4")
        job = Reencode(source, folder / name, SHORT_SIDE, KEY_FRAME_INTERVAL)
        if "error" not in reencode(job):
            paths.append(samples.paths[index])
            sizes = [sizes[0] + source.stat().st_size, sizes[1] + job.out.stat().st_size]
    names = [str(Path(path).with_suffix(".mp4")) for path in paths]
    return _samples(samples.root, paths), _samples(folder, names), sizes[1] / sizes[0]


def _by_decoder(samples: Samples, missing: dict[str, str]) -> dict[Decoder, Samples]:
    """The files that each decoder does not refuse: one that is here is exact or raises."""
    found: dict[Decoder, Samples] = {}
    decoders: tuple[Decoder, ...] = ("pyav", "decord", "torchcodec")
    for decoder in decoders:
        try:
            check_decoder(decoder)
        except ImportError as error:
            missing[f"ours, {decoder}"] = str(error)
            continue
        paths = []
        for index in range(len(samples)):
            with suppress(DecodeError):
                decode(samples.path(index), [0], decoder=decoder)
                paths.append(samples.paths[index])
        if len(paths) < len(samples):
            refused = len(samples) - len(paths)
            missing[f"ours, {decoder}"] = f"refuses {refused} of {len(samples)} files"
        if paths:
            found[decoder] = _samples(samples.root, paths)
    return found


def _samples(root: Path, paths: list[str]) -> Samples:
    """With what an index tells, and what a run knows anyway once it has seen a video."""
    timings = np.array([count_frames(root / path) for path in paths]).reshape(-1, 2)
    return Samples(
        root,
        paths=paths,
        labels=[0] * len(paths),
        class_names=["any"],
        num_frames=timings[:, 0].astype(np.int64),
        fps=timings[:, 1],
    )


def _endless(clips: Clips) -> Iterator[int]:
    epoch = 0
    while True:
        yield from clips(epoch)
        epoch += 1


def _count(frames: Tensor) -> int:
    return frames.shape[0] * frames.shape[1]


def _cores() -> str:
    return f"{os.cpu_count()} cores"


def _cells(rate: float, base: float) -> tuple[str, str]:
    return f"{rate:.1f}", f"{rate / base:.2f}"
