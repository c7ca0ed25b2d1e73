"""Reuses the memory of batches.

New memory for every batch is slow: the kernel clears each page, and maps it once more in the main
process. With clips of 32 x 224 x 224, reuse makes the loader 1.1 times as fast in one process, and
1.3 times with two workers.
"""

import weakref
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

_BUFFERS_PER_PROCESS = 6


class Slot(NamedTuple):
    """The buffer of a batch."""

    process: int
    number: int


class BufferPool:
    """A pool of reusable buffers for the processes of a loader.

    A worker, or the main process without workers, stacks batches into its own buffers. A buffer is
    in use until the main process has freed the last tensor that views it. If all of them are in
    use, a batch gets new memory.
    """

    def __init__(self, num_workers: int) -> None:
        shape = (max(num_workers, 1), _BUFFERS_PER_PROCESS)
        self._in_use = torch.zeros(shape, dtype=torch.bool, device="cpu").share_memory_()
        self._buffers: dict[int, UInt8[Tensor, "N ..."]] = {}  # of this process
        self._received: dict[Slot, UInt8[Tensor, "N ..."]] = {}  # keeps the memory mapped
        self._held: set[Slot] = set()

    def stack(self, clips: list[Tensor]) -> tuple[UInt8[Tensor, "N ..."], Slot | None]:
        """Stacks the clips of a batch in a free buffer, or in new memory if none is free."""
        worker = get_worker_info()
        process = 0 if worker is None else worker.id
        free = (~self._in_use[process]).nonzero().flatten().tolist()
        if not free:
            return default_collate(clips), None
        number = free[0]
        self._in_use[process, number] = True
        buffer = self._buffers.get(number)
        if buffer is None or len(buffer) < len(clips) or buffer.shape[1:] != clips[0].shape:
            buffer = self._buffers[number] = default_collate(clips)  # in a worker, shared memory
        else:
            buffer = torch.stack(clips, out=buffer[: len(clips)])
        return buffer, Slot(process, number)

    def hold(self, batch: UInt8[Tensor, "N ..."], slot: Slot | None) -> UInt8[Tensor, "N ..."]:
        """Returns the batch in the main process; its buffer is reused once the result is freed."""
        if slot is None:
            return batch
        slot = Slot(*slot)
        if batch.is_pinned():  # a copy
            self._in_use[slot] = False
            return batch
        array = batch.numpy()  # an object that lives as long as any view of the result
        self._received[slot] = batch
        self._held.add(slot)
        weakref.finalize(array, self._release, slot).atexit = False
        return torch.from_numpy(array)

    def reclaim(self) -> None:
        """Frees the buffers of batches that the main process never received."""
        for slot in map(Slot._make, self._in_use.nonzero().tolist()):
            if slot not in self._held:
                self._in_use[slot] = False

    def _release(self, slot: Slot) -> None:
        self._held.discard(slot)
        self._in_use[slot] = False
