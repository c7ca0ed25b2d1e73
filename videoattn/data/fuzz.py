"""Damaged copies of videos, and what decoding each comes to, in processes that may die or hang."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from videoattn.data.decode import (
    DecodeError,
    Decoder,
    Video,
    check_decoder,
    count_frames,
    decode,
)
from videoattn.data.decode.pyav import ToRGB
from videoattn.data.workers import Crash, in_processes
from videoattn.types import Frames

# Names that stand before (AVI) or behind (MP4) the four bytes of a part's length.
_ATOMS = (
    *(b"ftyp", b"moov", b"mvhd", b"trak", b"tkhd", b"mdia", b"mdhd", b"minf", b"stbl", b"stsd"),
    *(b"avcC", b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco", b"edts", b"elst", b"mdat"),
    *(b"RIFF", b"LIST", b"avih", b"strh", b"strf", b"idx1", b"00dc"),
)
_LENGTHS = (b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\7", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff")

SAME, OTHER, ERROR, CRASH, HANG = "frames", "other frames", "DecodeError", "crash", "hang"
"""Outcomes. `other frames`: they are not those that PyAV gives; PyAV's own are compared with those
that it gives when it decodes all before them, too. Where damage there leaves fewer, they are
`frames` by the times that are stored, and `other frames` where none are. What else is raised is
named."""


class Mutant(NamedTuple):
    """The `number`-th damaged copy of a seed, and the decoder that it is given to."""

    number: int
    source: Path
    decoder: Decoder


class Outcome(NamedTuple):
    mutant: Mutant
    what: str
    detail: str
    seconds: float


def mutate(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A copy with one kind of damage: bytes changed, cut out, taken from another file, or the
    length of a part set to nothing or too much. Half of it is where headers are."""
    if len(data) < 64:
        return data[: int(rng.integers(0, len(data) + 1))]
    changed: bytes = _MUTATIONS[int(rng.integers(len(_MUTATIONS)))](data, other, rng)
    return changed


def mutant_bytes(sources: Sequence[Path], number: int, seed: int) -> bytes:
    """The same for the same seed and number, in any order."""
    rng = np.random.default_rng((seed, number))
    other = sources[int(rng.integers(len(sources)))]
    return mutate(sources[number % len(sources)].read_bytes(), other.read_bytes(), rng)


def fuzz(
    sources: Sequence[Path], decoders: Sequence[Decoder], *, count: int, seed: int = 0,
    limit: float = 30.0, num_workers: int = 2,
) -> Iterator[Outcome]:  # fmt: skip
    """Decodes `count` mutants with each decoder; a mutant that takes more than `limit` seconds is
    stopped with its process. Outcomes come as they are made.

    Raises: ImportError for a decoder that is not installed.
    """
    for decoder in decoders:
        check_decoder(decoder)
    mutants = [Mutant(i, sources[i % len(sources)], d) for d in decoders for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        attempt = partial(_attempt, sources=sources, seed=seed, folder=folder)
        for mutant, what in in_processes(attempt, mutants, num_workers=num_workers, seconds=limit):
            if isinstance(what, Crash):
                kind = HANG if what.reason.startswith("took more") else CRASH
                yield Outcome(mutant, kind, what.reason, limit if kind == HANG else 0.0)
            else:
                yield Outcome(mutant, *what)


def _attempt(
    mutant: Mutant, sources: Sequence[Path], seed: int, folder: str
) -> tuple[str, str, float]:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # where the decoders' libraries complain
    started = time.monotonic()
    path = Path(folder, f"{mutant.decoder}-{mutant.number}{mutant.source.suffix}")
    path.write_bytes(mutant_bytes(sources, mutant.number, seed))
    what, detail = _decoded(path, mutant.decoder)
    path.unlink()
    return what, detail, time.monotonic() - started


def _decoded(path: Path, decoder: Decoder) -> tuple[str, str]:
    try:
        num_frames, _ = count_frames(path)
        asked = np.unique(np.linspace(0, num_frames - 1, 8).astype(np.int64))
        frames = decode(path, asked, decoder=decoder)
        reference = _reference(path, asked, decoder)
        if reference is None:
            return SAME, "damage in pictures that were passed over"
        if frames.shape != reference.shape:
            return OTHER, f"{tuple(frames.shape)} instead of {tuple(reference.shape)}"
        error = (frames.float() - reference.float()).abs().mean(dim=(1, 2, 3)).max()
        if error > 8:  # other conversions of colours, and of damage, are below
            return OTHER, f"a frame differs by {float(error):.0f} of 255"
    except DecodeError as error:
        return ERROR, error.reason
    except Exception as error:
        return type(error).__name__, str(error)
    return SAME, ""


def _reference(path: Path, asked: np.ndarray, decoder: Decoder) -> Frames | None:
    """None where there is nothing to compare with: a picture that was passed over is damaged and
    missing from a reading of all, so that numbers move there; stored times still tell the frames.
    """
    if decoder not in ("auto", "pyav"):
        return decode(path, asked)
    try:
        with Video(path) as video:
            to_rgb, images = ToRGB(), {}
            for number, frame in enumerate(islice(video.frames(), int(asked[-1]) + 1)):
                if number in asked:
                    images[number] = to_rgb(frame).copy()
        images_in_order = np.stack([images[number] for number in asked.tolist()])
        return torch.from_numpy(images_in_order).permute(0, 3, 1, 2)
    except (DecodeError, KeyError):
        with Video(path) as video:
            # Without times, frames that a reading of all does not have were counted wrongly.
            return None if video.timed else torch.zeros(0, 3, 0, 0, dtype=torch.uint8)


def _place(length: int, rng: np.random.Generator) -> int:
    """Anywhere, or in the first or last 4,096 bytes."""
    where = rng.random()
    if where < 0.5:
        return int(rng.integers(length))
    near = int(rng.integers(min(length, 4096)))
    return near if where < 0.75 else length - 1 - near


def _span(length: int, rng: np.random.Generator) -> tuple[int, int]:
    start = _place(length, rng)
    return start, start + int(2 ** rng.uniform(0, np.log2(length)))


def _flip(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(2 ** rng.uniform(0, 8))):
        changed[_place(len(data), rng)] ^= int(rng.integers(1, 256))
    return bytes(changed)


def _cut(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(len(data), rng)
    return data[:start] + (data[end:] if rng.random() < 0.5 else b"")


def _splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start, end = _span(len(data), rng)
    begin, stop = _span(len(other), rng) if other else (0, 0)
    return data[:start] + other[begin:stop] + data[end:]


def _relength(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    length = _LENGTHS[int(rng.integers(len(_LENGTHS)))]
    found = [at for atom in _ATOMS if (at := data.find(atom)) >= 4]
    if not found:  # Matroska, MPEG, GIF
        at = _place(len(data), rng)
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
