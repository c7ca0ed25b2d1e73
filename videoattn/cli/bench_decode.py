"""`videoattn bench fuzz | memory`: what decoders make of damaged files, and of memory."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from videoattn.data.decode import DecodeError, Decoder, check_decoder, count_frames, decode
from videoattn.data.fuzz import CRASH, ERROR, HANG, OTHER, SAME, Outcome, fuzz, mutant_bytes
from videoattn.data.lists import VIDEO_SUFFIXES
from videoattn.recipe.run import out

DECODERS: tuple[Decoder, ...] = ("pyav", "decord", "torchcodec")


def chosen(decoder: str) -> tuple[Decoder, ...]:
    """Raises: ValueError for a name that does not exist."""
    if decoder == "all":
        return DECODERS
    if decoder not in DECODERS:
        raise ValueError(f"decoder: got {decoder!r}; choose from all, {', '.join(DECODERS)}")
    return (decoder,)


def videos_under(root: Path, max_bytes: int | None = None) -> list[Path]:
    """The smallest first. Raises: ValueError where there is none."""
    known = VIDEO_SUFFIXES | {".gif"}
    paths = [path for path in root.rglob("*") if path.suffix.lower() in known and path.is_file()]
    if max_bytes is not None:
        paths = [path for path in paths if path.stat().st_size <= max_bytes]
    if not paths:
        small = "" if max_bytes is None else f" of {max_bytes} bytes or less"
        raise ValueError(f"{root} holds no video{small}")
    return sorted(paths, key=lambda path: (path.stat().st_size, str(path)))


def bench_fuzz(
    root: Path, *, decoder: str = "all", count: int = 2000, seed: int = 0, limit: float = 30.0,
    num_workers: int = 2, max_bytes: int = 400_000, keep: Path | None = None,
) -> list[Outcome]:  # fmt: skip
    """Counts by outcome of mutants of the videos under `root`. Those that end in neither the right
    frames nor DecodeError are named, and written to `keep`."""
    sources = [path for path in videos_under(root, max_bytes) if path.stat().st_size]
    decoders = chosen(decoder)
    found: list[Outcome] = []
    for outcome in fuzz(
        sources, decoders, count=count, seed=seed, limit=limit, num_workers=num_workers
    ):
        found.append(outcome)
        mutant = outcome.mutant
        if outcome.what not in (SAME, ERROR):
            where = f"mutant {mutant.number} of {mutant.source}"
            out.print(f"{mutant.decoder}: {outcome.what} ({outcome.detail}): {where}", markup=False)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                copy = keep / f"{mutant.decoder}-{mutant.number}{mutant.source.suffix}"
                copy.write_bytes(mutant_bytes(sources, mutant.number, seed))
    counts = {name: Counter(o.what for o in found if o.mutant.decoder == name) for name in decoders}
    kinds = list(dict.fromkeys((SAME, ERROR, OTHER, CRASH, HANG, *(o.what for o in found))))
    table = Table("decoder", *kinds, "slowest, s")
    for name, counter in counts.items():
        slowest = max(o.seconds for o in found if o.mutant.decoder == name)
        table.add_row(name, *(str(counter[kind]) for kind in kinds), f"{slowest:.1f}")
    table.caption = (
        f"{count} damaged copies of {len(sources)} videos (seed {seed}), each in a process that is "
        f"stopped after {limit:.0f} s"
    )
    out.print(table)
    return found


def bench_memory(
    root: Path, picture: Path, *, decoder: str = "all", count: int = 10_000,
    max_bytes: int = 40_000,
) -> dict[Decoder, list[float]]:  # fmt: skip
    """MiB of resident memory over `count` decodes, of each decoder in a process of its own."""
    paths = videos_under(root, max_bytes)
    grown = {}
    for name in chosen(decoder):
        check_decoder(name)
        grown[name] = resident(paths, name, count)
        quarter = len(grown[name]) // 4
        late = grown[name][-1] - grown[name][quarter]
        out.print(
            f"{name}: {grown[name][0]:.0f} MiB at first, {grown[name][-1]:.0f} MiB after {count} "
            f"decodes; {late:+.1f} MiB in the last three quarters"
        )
    _plot(grown, count, len(paths), picture)
    out.print(f"{picture}")
    return grown


def resident(
    paths: Sequence[Path], decoder: Decoder, count: int, *, points: int = 200
) -> list[float]:
    """MiB after each of `points` equal parts of `count` decodes (8 frames of each video in turn;
    those that do not decode count too)."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_decode_on, args=(theirs, paths, decoder, count, points)
    )
    process.start()
    theirs.close()
    measured: list[float] = []
    try:
        while True:
            measured.append(ours.recv())
    except EOFError:
        process.join()
    if process.exitcode:
        raise RuntimeError(f"decoder {decoder} ended its process (exit code {process.exitcode})")
    return measured


def _decode_on(
    connection: Connection, paths: Sequence[Path], decoder: Decoder,
    count: int, points: int,
) -> None:  # fmt: skip
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    step = max(count // points, 1)
    lengths: dict[Path, int] = {}
    for done in range(count):
        path = paths[done % len(paths)]
        try:
            if path not in lengths:
                lengths[path] = 0
                lengths[path] = count_frames(path)[0]
            decode(path, np.linspace(0, max(lengths[path] - 1, 0), 8).astype(int), decoder=decoder)
        except DecodeError:
            pass
        if done % step == step - 1:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            connection.send(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def _plot(grown: dict[Decoder, list[float]], count: int, num_videos: int, picture: Path) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, values in grown.items():
        decodes = np.linspace(count / len(values), count, len(values))
        axes.plot(decodes, values, label=name)
    axes.set_xlabel(f"decodes of 8 frames ({num_videos} videos in turn)")
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
