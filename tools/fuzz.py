"""Reads damaged copies of files in processes that may crash or hang, and counts the outcomes.

`videos FOLDER` decodes damaged copies of videos.

| outcome      | the decoder                                                                   |
| frames       | returns the frames that PyAV returns (PyAV itself: see `_read_from_start`)     |
| other frames | returns frames that differ from them                                          |
| DecodeError  | raises DecodeError; other exceptions are counted by their names               |
| crash        | ends its process                                                              |
| hang         | takes longer than the limit                                                   |

`readers` damages the input of every other reader (`fuzz_readers.py`), in processes of limited
memory. A reader returns a result, or raises an error of one line that names the cause (error).
"damaged or too large" counts errors at the limit on memory. Everything else is a fault: other
exceptions, by their names, long errors, crashes and hangs.
"""

import itertools
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import av
import numpy as np
import torch
import typer
from av.error import FFmpegError

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "bench")]
from common import chosen_decoders, print_table, videos_under
from fuzz_bytes import mutate
from fuzz_clips import UNUSUAL
from fuzz_readers import READERS, damage

from videoattn.cli.app import MAX_MESSAGE, expected_errors, one_line
from videoattn.data.decode import DecodeError, Decoder, check_decoder, count_frames, decode
from videoattn.data.decode.container import open_container, video_stream
from videoattn.data.workers import Crash, in_processes
from videoattn.errors import one_of
from videoattn.types import Frames

_TIMED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers that store the presentation time of each frame."""

SAME, OTHER, ERROR, CRASH, HANG = "frames", "other frames", "DecodeError", "crash", "hang"
RESULT, MESSAGE, MEMORY = "result", "error", "damaged or too large"


class Mutant(NamedTuple):
    """The number of a damaged copy, its original, and the decoder that reads it."""

    number: int
    source: Path
    decoder: Decoder


class Outcome(NamedTuple):
    """The outcome of decoding a mutant."""

    mutant: Mutant
    kind: str
    detail: str
    seconds: float


app = typer.Typer(add_completion=False, rich_markup_mode=None, help=__doc__)


@app.command("readers")
def fuzz_readers(
    count: Annotated[int, typer.Option(min=1, help="Damaged inputs of all readers.")] = 10_000,
    reader: Annotated[str, typer.Option(help=f"{', '.join(READERS)}, or all.")] = "all",
    seed: Annotated[int, typer.Option(help="Seed of the damage.")] = 0,
    limit: Annotated[float, typer.Option(min=1, help="Seconds after which a reader hangs.")] = 30.0,
    memory: Annotated[int, typer.Option(min=1, help="MiB that a reader may allocate.")] = 1024,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Read damaged inputs with every reader and count the outcomes."""
    names = list(READERS) if reader == "all" else [one_of("reader", reader, READERS)]
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    slowest = dict.fromkeys(names, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            (Path(folder) / name).mkdir()
            READERS[name].make(Path(folder) / name)
        task = partial(_read_damaged, seed=seed, folder=Path(folder), megabytes=memory)
        jobs = [(names[number % len(names)], number) for number in range(count)]
        for (name, number), found in in_processes(task, jobs, num_workers=workers, seconds=limit):
            if isinstance(found, Crash):
                kind = HANG if found.reason.startswith("took more") else CRASH
                found = (kind, found.reason, limit if kind == HANG else 0.0)
            kind, detail, seconds = found
            counts[name][kind] += 1
            slowest[name] = max(slowest[name], seconds)
            if kind not in (RESULT, MESSAGE, MEMORY):
                print(f"{name}: {kind} ({detail[:300]!r}): input {number}", flush=True)
    others = itertools.chain.from_iterable(counts.values())
    kinds = list(dict.fromkeys((RESULT, MESSAGE, MEMORY, CRASH, HANG, *others)))
    rows = [
        (name, *(counts[name][kind] for kind in kinds), f"{slowest[name]:.1f}") for name in names
    ]
    print_table(
        ("reader", *kinds, "slowest, s"),
        rows,
        note=f"{count:,} damaged inputs, seed {seed}, limits {limit:g} s and {memory} MiB.",
    )


def _read_damaged(
    job: tuple[str, int], seed: int, folder: Path, megabytes: int
) -> tuple[str, str, float]:
    """Reads a damaged input in a worker; returns the outcome, its detail, and the seconds."""
    name, number = job
    torch.set_num_threads(1)  # a forked child lacks the parent's threads and would wait for them
    limit_memory(megabytes)
    started = time.monotonic()
    place = folder / f"{name}-{number}"
    damaged_copy(name, folder / name, place, seed=seed, number=number)
    try:
        READERS[name].read(place)
    except expected_errors() as error:
        text = one_line(error)
        too_large = "damaged or too large" in text or "cannot allocate memory" in text.lower()
        kind = MEMORY if too_large else MESSAGE if len(text) <= MAX_MESSAGE else "long error"
        return kind, text, time.monotonic() - started
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - started
    finally:
        shutil.rmtree(place)
    return RESULT, "", time.monotonic() - started


def damaged_copy(name: str, source: Path, place: Path, *, seed: int, number: int) -> None:
    """Writes the damaged input with this number, a pure function of seed and number."""
    rng = np.random.default_rng((seed, number))
    shutil.copytree(source, place)
    files = sorted(path for path in place.glob(READERS[name].files) if path.is_file())
    target = files[int(rng.integers(len(files)))]
    other = files[int(rng.integers(len(files)))].read_bytes()
    for _ in range(1 + int(rng.integers(4) == 0) + int(rng.integers(8) == 0)):
        data = target.read_bytes()
        target.write_bytes(damage(data, lambda part: mutate(part, other, rng, texts=True), rng))


def limit_memory(megabytes: int) -> None:
    """Limits the address space to its current size plus `megabytes` MiB, unless it has a limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


@app.command("unusual")
def write_unusual(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="A new folder.")],
) -> None:
    """Write small videos with a cover, gradual refresh, edit lists and fragments, to damage."""
    folder.mkdir(parents=True)
    for name, write in UNUSUAL.items():
        write(folder / name)
        print(folder / name)


@app.command("videos")
def main(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A folder of videos.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Damaged copies per decoder.")] = 2000,
    decoder: Annotated[str, typer.Option(help="pyav, decord, torchcodec or all.")] = "all",
    seed: Annotated[int, typer.Option(help="Seed of the damage.")] = 0,
    limit: Annotated[float, typer.Option(min=1, help="Seconds after which a decode hangs.")] = 30.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    max_bytes: Annotated[int, typer.Option(min=1, help="Skip larger videos.")] = 400_000,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for copies that end in neither frames nor an error.")
    ] = None,
) -> None:
    """Decode damaged copies of videos and count the outcomes."""
    sources = [path for path in videos_under(folder, max_bytes) if path.stat().st_size]
    decoders = chosen_decoders(decoder)
    found: list[Outcome] = []
    for outcome in fuzz(sources, decoders, count=count, seed=seed, limit=limit, workers=workers):
        found.append(outcome)
        mutant = outcome.mutant
        if outcome.kind in (SAME, ERROR):
            continue
        name = f"mutant {mutant.number} of {mutant.source}"
        print(f"{mutant.decoder}: {outcome.kind} ({outcome.detail}): {name}")
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            copy = keep / f"{mutant.decoder}-{mutant.number}{mutant.source.suffix}"
            copy.write_bytes(mutant_bytes(sources, mutant.number, seed))
    kinds = list(dict.fromkeys((SAME, ERROR, OTHER, CRASH, HANG, *(x.kind for x in found))))
    rows = []
    for name in decoders:
        own = [outcome for outcome in found if outcome.mutant.decoder == name]
        counts = Counter(outcome.kind for outcome in own)
        slowest = max(outcome.seconds for outcome in own)
        rows.append((name, *(counts[kind] for kind in kinds), f"{slowest:.1f}"))
    print_table(
        ("decoder", *kinds, "slowest, s"),
        rows,
        note=f"{count:,} damaged copies of {len(sources)} videos, seed {seed}, limit {limit:g} s.",
    )


def fuzz(
    sources: Sequence[Path],
    decoders: Sequence[Decoder],
    *,
    count: int,
    seed: int = 0,
    limit: float = 30.0,
    workers: int = 2,
) -> Iterator[Outcome]:
    """Decodes `count` mutants with each decoder; yields the outcomes as they arrive.

    Raises:
        ImportError: If a decoder is not installed.
    """
    for decoder in decoders:
        check_decoder(decoder)
    mutants = [Mutant(i, sources[i % len(sources)], d) for d in decoders for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        attempt = partial(_attempt, sources=sources, seed=seed, folder=folder)
        for mutant, result in in_processes(attempt, mutants, num_workers=workers, seconds=limit):
            if isinstance(result, Crash):
                kind = HANG if result.reason.startswith("took more") else CRASH
                yield Outcome(mutant, kind, result.reason, limit if kind == HANG else 0.0)
            else:
                yield Outcome(mutant, *result)


def mutant_bytes(sources: Sequence[Path], number: int, seed: int) -> bytes:
    """Returns the damaged copy with this number, as a pure function of seed and number."""
    rng = np.random.default_rng((seed, number))
    other = sources[int(rng.integers(len(sources)))]
    return mutate(sources[number % len(sources)].read_bytes(), other.read_bytes(), rng)


def _attempt(
    mutant: Mutant, sources: Sequence[Path], seed: int, folder: str
) -> tuple[str, str, float]:
    """Decodes a mutant in a worker; returns the outcome, its detail, and the seconds."""
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)  # messages of the decoders' libraries
    started = time.monotonic()
    path = Path(folder, f"{mutant.decoder}-{mutant.number}{mutant.source.suffix}")
    path.write_bytes(mutant_bytes(sources, mutant.number, seed))
    kind, detail = _decode(path, mutant.decoder)
    path.unlink()
    return kind, detail, time.monotonic() - started


def _decode(path: Path, decoder: Decoder) -> tuple[str, str]:
    try:
        num_frames, _ = count_frames(path)
        indices = np.unique(np.linspace(0, num_frames - 1, 8).astype(np.int64))
        frames = decode(path, indices, decoder=decoder)
        middle = len(indices) // 2
        alone = decode(path, indices[middle : middle + 1], decoder=decoder)
        reference = (_read_from_start if decoder == "pyav" else decode)(path, indices)
    except DecodeError as error:
        return ERROR, error.reason
    except Exception as error:
        return type(error).__name__, str(error)
    if not torch.equal(alone[0], frames[middle]):
        return OTHER, f"frame {indices[middle]} differs if it is requested alone"
    if reference is None:
        return SAME, "the damage is in frames that were skipped"
    if frames.shape != reference.shape:
        return OTHER, f"{tuple(frames.shape)} instead of {tuple(reference.shape)}"
    difference = float((frames.float() - reference.float()).abs().mean(dim=(1, 2, 3)).max())
    if difference > 8:  # other color conversions, and other concealment of damage, differ by less
        return OTHER, f"a frame differs by {difference:.0f} of 255"
    return SAME, ""


def _read_from_start(path: Path, indices: np.ndarray) -> Frames | None:
    """Decodes every frame up to the last index, without seeking or skipping.

    Returns:
        The frames. If damage outside of the requested frames leaves fewer frames, their numbers
        shift. The result is then None if the file stores times, which identify frames. Otherwise
        it is empty, and counts as "other frames".
    """
    wanted, count = set(indices.tolist()), 0
    images: list[np.ndarray] = []
    with open_container(path) as container:
        stream = video_stream(container, path)
        packets = (packet for packet in container.demux(stream) if packet.size)
        for packet in itertools.chain(packets, [None]):
            try:
                frames = stream.codec_context.decode(packet)
            except FFmpegError:
                continue
            for frame in frames:
                if count in wanted:
                    images.append(_image(frame, images))
                count += 1
            if count > indices[-1]:
                break
        timed = container.format.name in _TIMED
    if len(images) == len(indices):
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return None if timed else torch.zeros(0, 3, 0, 0, dtype=torch.uint8)


def _image(frame: av.VideoFrame, before: Sequence[np.ndarray]) -> np.ndarray:
    """Returns a frame as RGB (H, W, 3) uint8, upright, in the size of the first frame."""
    turns = int(frame.rotation / 90) % 4 if frame.rotation % 90 == 0 else 0
    height, width = frame.height, frame.width
    if before:
        height, width = before[0].shape[:2][:: -1 if turns % 2 else 1]
    image = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(image, turns))


if __name__ == "__main__":
    app()
