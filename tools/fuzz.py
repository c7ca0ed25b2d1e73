"""Decodes damaged copies of videos in processes that may crash or hang; counts the outcomes.

| outcome      | the decoder                                                                   |
| frames       | returns the frames that PyAV returns (PyAV itself: see `_read_from_start`)     |
| other frames | returns frames that differ from them                                          |
| DecodeError  | raises DecodeError; other exceptions are counted by their names               |
| crash        | ends its process                                                              |
| hang         | takes longer than the limit                                                   |
"""

import itertools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import av
import numpy as np
import torch
import typer
from av.error import FFmpegError

sys.path.append(str(Path(__file__).parent / "bench"))
from common import chosen_decoders, print_table, videos_under

from videoattn.data.decode import DecodeError, Decoder, check_decoder, count_frames, decode
from videoattn.data.decode.container import open_container, video_stream
from videoattn.data.workers import Crash, in_processes
from videoattn.types import Frames

# Names of chunks. The four bytes of a chunk's length follow the name (AVI) or precede it (MP4).
_CHUNKS = (
    *(b"ftyp", b"moov", b"mvhd", b"trak", b"tkhd", b"mdia", b"mdhd", b"minf", b"stbl", b"stsd"),
    *(b"avcC", b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco", b"edts", b"elst", b"mdat"),
    *(b"RIFF", b"LIST", b"avih", b"strh", b"strf", b"idx1", b"00dc"),
)
_LENGTHS = (b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\7", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff")
_TIMED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers that store the presentation time of each frame."""

SAME, OTHER, ERROR, CRASH, HANG = "frames", "other frames", "DecodeError", "crash", "hang"


class Mutant(NamedTuple):
    """The number of a damaged copy, and the decoder that reads it."""

    number: int
    source: Path
    decoder: Decoder


class Outcome(NamedTuple):
    """The outcome of decoding a mutant."""

    mutant: Mutant
    kind: str
    detail: str
    seconds: float


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


def mutate(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Returns a damaged copy. Half of the damage is near the start or the end of the file.

    Bytes are changed, removed, or replaced by bytes of another file, or the length of a chunk is
    set to a wrong value.
    """
    if len(data) < 64:
        return data[: int(rng.integers(0, len(data) + 1))]
    changed: bytes = _MUTATIONS[int(rng.integers(len(_MUTATIONS)))](data, other, rng)
    return changed


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
        reference = (_read_from_start if decoder == "pyav" else decode)(path, indices)
    except DecodeError as error:
        return ERROR, error.reason
    except Exception as error:
        return type(error).__name__, str(error)
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
    """Converts a frame to RGB, upright, in the size of the first one."""
    turns = int(frame.rotation / 90) % 4 if frame.rotation % 90 == 0 else 0
    height, width = frame.height, frame.width
    if before:
        height, width = before[0].shape[:2][:: -1 if turns % 2 else 1]
    image = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(image, turns))


def _position(length: int, rng: np.random.Generator) -> int:
    """Draws a position in a file: anywhere, or in the first or last 4,096 bytes."""
    draw = rng.random()
    if draw < 0.5:
        return int(rng.integers(length))
    near = int(rng.integers(min(length, 4096)))
    return near if draw < 0.75 else length - 1 - near


def _range(length: int, rng: np.random.Generator) -> tuple[int, int]:
    start = _position(length, rng)
    return start, start + int(2 ** rng.uniform(0, np.log2(length)))


def _flip(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(2 ** rng.uniform(0, 8))):
        changed[_position(len(data), rng)] ^= int(rng.integers(1, 256))
    return bytes(changed)


def _cut(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    start, end = _range(len(data), rng)
    return data[:start] + (data[end:] if rng.random() < 0.5 else b"")


def _splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start, end = _range(len(data), rng)
    first, last = _range(len(other), rng) if other else (0, 0)
    return data[:start] + other[first:last] + data[end:]


def _relength(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    length = _LENGTHS[int(rng.integers(len(_LENGTHS)))]
    found = [at for chunk in _CHUNKS if (at := data.find(chunk)) >= 4]
    if not found:  # Matroska, MPEG, GIF
        at = _position(len(data), rng)
        return data[:at] + length + data[at + 4 :]
    at = found[int(rng.integers(len(found)))]
    at = at + 4 if data[:4] == b"RIFF" else at - 4
    return data[:at] + length + data[at + 4 :]


_MUTATIONS: tuple[Callable[[bytes, bytes, np.random.Generator], bytes], ...] = (
    _flip,
    _cut,
    _splice,
    _relength,
)


if __name__ == "__main__":
    typer.run(main)
