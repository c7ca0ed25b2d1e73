"""Many short strings as one block of bytes: what lists of half a million files are read into.

A Python list of strings would be copied into every worker, page by page, as reference counts
touch it; here all strings of a table share three arrays. Splitting moves starts and ends only.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64

_BLOCK = 1 << 15  # strings copied at once: every byte of them needs 16 bytes of work space

_PIECE = 1 << 18  # bytes searched at once

# Odd factors spread a difference upwards, shifts downwards: David Stafford's constants.
_MIX = (
    (np.uint64(0xBF58476D1CE4E5B9), np.uint64(32)),
    (np.uint64(0x94D049BB133111EB), np.uint64(29)),
)


@dataclass(frozen=True, eq=False)
class Spans:
    """String i is data[starts[i]:ends[i]], in the bytes of the file system's encoding."""

    data: UInt8[np.ndarray, " B"]
    starts: Int64[np.ndarray, " N"]
    ends: Int64[np.ndarray, " N"]

    @classmethod
    def of(cls, strings: Iterable[str]) -> "Spans":
        encoded = [os.fsencode(string) for string in strings]
        ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)
        data = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(data, np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)], ends)

    @classmethod
    def lines(cls, data: UInt8[np.ndarray, " B"]) -> "Spans":
        """The lines of a text, blank ones too; a byte order mark is left out."""
        first = 3 if data[:3].tobytes() == b"\xef\xbb\xbf" else 0
        breaks = _places_of("\n", data)
        ends = breaks if data[-1:].tobytes() == b"\n" else np.append(breaks, len(data))
        return cls(data, np.concatenate([[first], ends[:-1] + 1]).astype(np.int64), ends)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int | np.integer) -> str:
        return os.fsdecode(self.data[self.starts[index] : self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        return self.ends - self.starts

    def take(self, which: np.ndarray | Sequence[int]) -> "Spans":
        """Those strings: places, or a mask. The block of bytes stays the same."""
        which = np.asarray(which, dtype=None if len(which) else np.int64)
        return Spans(self.data, self.starts[which], self.ends[which])

    def compact(self) -> "Spans":
        """The same strings, one after the other, in a block that holds nothing else."""
        lengths = self.lengths
        ends = np.cumsum(lengths)
        if np.array_equal(ends, self.ends) and len(self.data) == lengths.sum():
            return self
        data = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        at = 0
        for i in range(0, len(self), _BLOCK):
            some = lengths[i : i + _BLOCK]
            before = np.cumsum(some) - some
            found = self.data[
                np.arange(some.sum()) + np.repeat(self.starts[i : i + _BLOCK] - before, some)
            ]
            data[at : at + len(found)] = found
            at += len(found)
        return Spans(data, ends - lengths, ends)

    def followed_by(self, others: "Spans") -> "Spans":
        shift = len(self.data)
        return Spans(
            np.concatenate([self.data, others.data]),
            np.concatenate([self.starts, others.starts + shift]),
            np.concatenate([self.ends, others.ends + shift]),
        )

    def strip(self) -> "Spans":
        """Without blanks, tabs and carriage returns at both ends."""
        starts, ends = self.starts.copy(), self.ends.copy()
        for at, step in ((ends, -1), (starts, 1)):
            look = np.flatnonzero(ends > starts)
            while len(look):
                blank = self.data[at[look] - (step < 0)] <= ord(" ")
                at[look[blank]] += step
                look = look[blank & (ends > starts)[look]]
        return Spans(self.data, starts, ends)

    def rsplit(self, separator: str) -> tuple["Spans", "Spans", Bool[np.ndarray, " N"]]:
        """What is left and right of the last separator, and where there is one; " " is any blank.

        Without a separator, all is on the right.
        """
        hits = _places_of(separator, data := self.data)
        if separator == " " and len(tabs := _places_of("\t", data)):
            hits = np.sort(np.concatenate([hits, tabs]))
        size = len(separator.encode())
        hits = np.append(hits, -1)
        last = np.searchsorted(hits[:-1], self.ends - size, side="right") - 1
        at = hits[last]  # -1 where none comes before
        found = at >= self.starts
        middle = np.where(found, at, self.starts)
        right = np.where(found, at + size, self.starts)
        return Spans(data, self.starts, middle), Spans(data, right, self.ends), found

    def split(self, separator: str, num_columns: int) -> tuple[list["Spans"], np.ndarray]:
        """The columns, and which strings have just so many; the columns of others mean nothing."""
        hits = _places_of(separator, self.data)
        first = np.searchsorted(hits, self.starts)
        good = np.searchsorted(hits, self.ends) - first == num_columns - 1
        columns, starts = [], self.starts
        for i in range(num_columns):
            last = i == num_columns - 1
            ends = self.ends if last else np.append(hits, 0)[np.where(good, first + i, -1)]
            columns.append(Spans(self.data, starts, np.where(good, ends, starts)))
            starts = np.where(good, ends + 1, starts)
        return columns, good

    def names(self) -> "Spans":
        """The last parts of paths."""
        return self.rsplit("/")[1]

    def stems(self) -> "Spans":
        """Paths without their extension."""
        before, suffixes, found = self.rsplit(".")
        found &= ~suffixes.rsplit("/")[2]
        return Spans(self.data, self.starts, np.where(found, before.ends, self.ends))

    def integers(self) -> tuple[Int64[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
        """Their values, and which of them are decimal integers (of at most 18 digits)."""
        starts, widths = self.starts, self.lengths
        values = np.zeros(len(self), np.int64)
        negative = np.zeros(len(self), bool)
        if len(self.data):
            negative = (widths > 0) & (self.data[np.where(widths > 0, starts, 0)] == ord("-"))
        starts, widths = starts + negative, widths - negative
        valid = (widths > 0) & (widths <= 18)
        for i in range(int(widths[valid].max(initial=0))):
            more = valid & (i < widths)
            digits = self.data[np.where(more, starts + i, 0)].astype(np.int64) - ord("0")
            valid &= ~more | ((digits >= 0) & (digits <= 9))
            values = np.where(more, 10 * values + digits, values)
        return np.where(negative, -values, values), valid

    def startswith(self, prefix: str) -> Bool[np.ndarray, " N"]:
        word = os.fsencode(prefix)
        mask = self.lengths >= len(word)
        for i, byte in enumerate(word):
            here = np.flatnonzero(mask)
            mask[here] = self.data[self.starts[here] + i] == byte
        return mask

    def find(self, table: "Spans") -> Int64[np.ndarray, " N"]:
        """Where each string is in the table (its first place there); -1: nowhere."""
        if not len(table):
            return np.full(len(self), -1)
        mine, theirs = self.hashes, table.hashes
        asking, order = np.argsort(mine), np.argsort(theirs)
        if (np.diff(theirs[order]) == 0).any():
            order = np.argsort(theirs, kind="stable")
        place = np.empty(len(self), np.int64)
        place[asking] = order[np.searchsorted(theirs[order], mine[asking]).clip(max=len(order) - 1)]
        return np.where(theirs[place] == mine, place, -1)

    def unique(self) -> tuple[list[str], Int64[np.ndarray, " N"]]:
        """The different strings, sorted, and each string's place among them."""
        values = np.unique(self.hashes)
        which = np.searchsorted(values, self.hashes)
        first = np.empty(len(values), np.int64)
        first[which[::-1]] = np.arange(len(self))[::-1]
        strings = list(self.take(first))
        order = sorted(range(len(strings)), key=strings.__getitem__)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return [strings[i] for i in order], rank[which]

    def repeats(self) -> list[tuple[int, int]]:
        """(place, earlier place) of each string that was there before."""
        if not (np.diff(np.sort(self.hashes)) == 0).any():
            return []
        order = np.argsort(self.hashes, kind="stable")
        again = np.flatnonzero(np.diff(self.hashes[order]) == 0)
        return sorted((int(order[i + 1]), int(order[i])) for i in again)

    @cached_property
    def hashes(self) -> UInt64[np.ndarray, " N"]:
        """64 bits of each string: every 8 bytes are mixed into those before them.

        Strings are the same to `find`, `unique` and `repeats` when these are: that two of a
        million different ones meet has a chance of 1 in 30 million.
        """
        data = self.data if len(self.data) >= 8 else np.append(self.data, np.zeros(8, np.uint8))
        words = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
        out = self.lengths.astype(np.uint64)
        for i in range(0, len(self), _BLOCK):
            block = slice(i, i + _BLOCK)
            _mix_into(out[block], words, self.starts[block], self.ends[block])
        return out


def _mix_into(
    out: UInt64[np.ndarray, " N"], words: UInt64[np.ndarray, " B"],
    starts: Int64[np.ndarray, " N"], ends: Int64[np.ndarray, " N"],
) -> None:  # fmt: skip
    for step in range(0, int((ends - starts).max(initial=0)), 8):
        which = np.flatnonzero(ends - starts > step)
        at = starts[which] + step
        before = np.maximum(at - (len(words) - 1), 0)  # bytes that the last word begins too early
        surplus = 64 - 8 * np.minimum(ends[which] - at, 8)
        word = words[at - before] >> (8 * before).astype(np.uint64)
        mixed = out[which] ^ (word & (np.uint64(2**64 - 1) >> surplus.astype(np.uint64)))
        for factor, shift in _MIX:
            mixed *= factor
            mixed ^= mixed >> shift
        out[which] = mixed


def _places_of(text: str, data: UInt8[np.ndarray, " B"]) -> Int64[np.ndarray, " P"]:
    """Where a text begins; in pieces that stay in the processor's cache."""
    word = np.frombuffer(text.encode(), np.uint8)
    places = [np.zeros(0, np.int64)]
    for start in range(0, len(data) - len(word) + 1, _PIECE):
        piece = data[start : start + _PIECE + len(word) - 1]
        match = piece[: len(piece) - len(word) + 1] == word[0]
        for i in range(1, len(word)):
            match &= piece[i : i + len(match)] == word[i]
        places.append(np.flatnonzero(match) + start)
    return np.concatenate(places)
