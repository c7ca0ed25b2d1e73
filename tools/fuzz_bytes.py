"""Damages files: changes, removes and inserts bytes, and sets wrong lengths."""

import re
from collections.abc import Callable

import numpy as np

# Names of chunks. The four bytes of a chunk's length follow the name (AVI) or precede it (MP4).
_CHUNKS = (
    *(b"ftyp", b"moov", b"mvhd", b"trak", b"tkhd", b"mdia", b"mdhd", b"minf", b"stbl", b"stsd"),
    *(b"avcC", b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco", b"edts", b"elst", b"mdat"),
    *(b"RIFF", b"LIST", b"avih", b"strh", b"strf", b"idx1", b"00dc"),
)
_LENGTHS = (b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\7", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff")
_TEXTS = (
    *(b"-1", b"1e999", b"NaN", b"null", b"9" * 20, b"9" * 5000, b"true", b"[]", b"{}", b"''"),
    *(b"[" * 3000, b'{"a":' * 3000, b"- " * 2000, b"a: " * 500, b"&a [*a, *a]", b"*a", b"!!str"),
    *(b"${oc.env:HOME}", b"${name}", b"${", b"pipe:false", b"http://127.0.0.1:9/", b"file:///"),
    *(
        b"../",
        b"/",
        b"..",
        b"~",
        b"\0",
        b"\r",
        b"\n",
        b"\t",
        b"\xff",
        b"\xff\xfe",
        b"\x1b]52;c;x\7",
    ),
    *(b'"', b"'", b"{0}", b"{:9999999999d}", b"{0!r}", b"%s", b",", b":", b" ", b"\xef\xbb\xbf"),
)
"""Texts that readers of numbers, lists and paths may misinterpret."""


def mutate(data: bytes, other: bytes, rng: np.random.Generator, *, texts: bool = False) -> bytes:
    """Returns a damaged copy. Half of the damage is near the start or the end of the file.

    Bytes are changed, removed, or replaced by bytes of another file, or the length of a chunk is
    set to a wrong value. With `texts`, a third of the time one byte is changed, and a third of
    the time a text is inserted, or replaces a word.
    """
    if texts and data and (draw := rng.random()) < 2 / 3:
        return _insert(data, rng) if draw < 1 / 3 else _change(data, rng)
    if len(data) < 64:
        return data[: int(rng.integers(0, len(data) + 1))]
    return _MUTATIONS[int(rng.integers(len(_MUTATIONS)))](data, other, rng)


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


def _change(data: bytes, rng: np.random.Generator) -> bytes:
    at = _position(len(data), rng)
    return data[:at] + bytes([rng.integers(256)]) + data[at + 1 :]


def _cut(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    start, end = _range(len(data), rng)
    return data[:start] + (data[end:] if rng.random() < 0.5 else b"")


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    """Inserts a text, or replaces a word, a number or a line with it."""
    text = _TEXTS[int(rng.integers(len(_TEXTS)))]
    places = [found.span() for found in re.finditer(rb"[\w.]+|\n", data[:100_000])]
    if not places or rng.random() < 0.3:
        start = end = _position(max(len(data), 1), rng)
    else:
        start, end = places[int(rng.integers(len(places)))]
    return data[:start] + text + data[end:]


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
