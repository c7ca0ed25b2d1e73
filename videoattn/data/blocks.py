"""Memory that batches lie in: lent to whoever holds one, and used again when nobody does.

Fresh memory for each batch costs more than half of what resizing its frames does: the kernel clears
every page, and between processes maps each of them twice. So each loader process makes a few
blocks, tells the trainer of them once, and from then on only which of them holds the next batch.
"""

import weakref
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

_MOST = 8  # blocks of a process; whoever holds more batches at once gets memory of their own


class Parcel(NamedTuple):
    """Where a process has put something: in its block of that number, or in memory of its own
    (block -1). `memory` is left out once the trainer knows the block."""

    process: int
    block: int
    memory: UInt8[Tensor, " B"] | None
    shape: tuple[int, ...]


class Blocks:
    """Of all processes of a loader: a process packs, the trainer opens.

    Each block is free (0), or in use since the trainer started so many epochs.
    """

    def __init__(self, num_workers: int) -> None:
        self._shared = num_workers > 0
        self._used = torch.zeros(max(num_workers, 1), _MOST, dtype=torch.int64)
        self._told = torch.zeros_like(self._used)  # 1: the trainer knows the block
        self._epoch = torch.zeros(1, dtype=torch.int64)
        if self._shared:
            for state in (self._used, self._told, self._epoch):
                state.share_memory_()
        self._mine: dict[int, UInt8[Tensor, " B"]] = {}  # of this process
        self._known: dict[tuple[int, int], UInt8[Tensor, " B"]] = {}  # to the trainer
        self._lent: set[tuple[int, int]] = set()

    def start(self) -> None:
        """Before an epoch. What was packed in an earlier one and not opened never will be: its
        blocks are free again."""
        self._epoch += 1
        for place in (self._used < self._epoch).logical_and(self._used > 0).nonzero().tolist():
            if tuple(place) not in self._lent:
                self._used[tuple(place)] = 0

    def pack(self, shape: tuple[int, ...]) -> tuple[Parcel, UInt8[np.ndarray, "..."]]:
        """Memory of a shape to be filled, and what to hand to the trainer."""
        worker = get_worker_info()
        process = 0 if worker is None else worker.id
        num_bytes = int(np.prod(shape))
        free = (self._used[process] == 0).nonzero()
        block = int(free[0]) if len(free) else -1
        memory, told = self._mine.get(block), False
        if memory is None or len(memory) < num_bytes:
            memory = self._new(num_bytes)
        else:
            told = bool(self._told[process, block])
        if block >= 0:
            self._mine[block] = memory
            self._used[process, block] = self._epoch[0]
            self._told[process, block] = told
        parcel = Parcel(process, block, None if told else memory, shape)
        return parcel, memory.numpy()[:num_bytes].reshape(shape)

    def open(self, parcel: Parcel) -> UInt8[Tensor, "..."]:
        """What was put there; the block is lent until nobody holds this, or a part of it."""
        place = parcel.process, parcel.block
        memory = self._known[place] if parcel.memory is None else parcel.memory
        view = memory.numpy()[: int(np.prod(parcel.shape))].reshape(parcel.shape)
        if parcel.block >= 0:
            self._known[place] = memory
            self._told[place] = 1
            self._lent.add(place)
            weakref.finalize(view, self._give_back, place).atexit = False
        return torch.from_numpy(view)

    def drop(self, parcel: Parcel) -> None:
        """By the process that packed it: it will not be handed on."""
        if parcel.block >= 0:
            self._used[parcel.process, parcel.block] = 0

    def _give_back(self, place: tuple[int, int]) -> None:
        self._lent.discard(place)
        self._used[place] = 0

    def _new(self, num_bytes: int) -> UInt8[Tensor, " B"]:
        if not self._shared:
            return torch.empty(num_bytes, dtype=torch.uint8)
        # As torch's own loader makes its batches: `share_memory_` would fill and copy it first.
        storage = torch.UntypedStorage._new_shared(num_bytes)
        return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (num_bytes,), (1,))
