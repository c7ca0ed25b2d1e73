"""Packs strings into two arrays that worker processes share instead of copying.

A Python list of half a million strings would be copied into every worker, page by page, as
reference counts change. It would also be pickled string by string.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int64, UInt8


@dataclass(frozen=True, eq=False)
class PackedStrings:
    """A read-only sequence of strings. String i ends before byte `ends[i]` of `data`.

    The bytes are in the encoding of the file system, so that every file name can be stored.
    """

    data: UInt8[np.ndarray, " B"]
    ends: Int64[np.ndarray, " N"]

    @classmethod
    def of(cls, strings: Iterable[str]) -> "PackedStrings":
        encoded = [os.fsencode(string) for string in strings]
        ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int | np.integer) -> str:
        start = 0 if index == 0 or index == -len(self) else self.ends[index - 1]
        return os.fsdecode(self.data[start : self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        data = self.data.tobytes()
        for start, end in pairwise([0, *self.ends.tolist()]):
            yield os.fsdecode(data[start:end])

    def take(self, rows: Sequence[int] | np.ndarray) -> "PackedStrings":
        """Returns the strings at the given positions."""
        return PackedStrings.of(self[row] for row in rows)
