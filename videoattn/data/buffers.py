"""Reuses the memory of batches.

New memory for every batch is slow: the kernel clears each page, and maps it once more in the main
process. With clips of 32 x 224 x 224, reuse makes the loader 1.1 times as fast in one process, and
1.3 times with two workers.
"""

import weakref

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

_BUFFERS_PER_PROCESS = 6


class BufferPool:
    """A pool of reusable buffers for the processes of a loader.

    A worker, or the main process without workers, stacks batches into its own buffers. A buffer is
    in use until the main process has freed the last tensor that views it. If all of them are in
    use, a batch gets new memory.
    """

    def __init__(self, num_workers: int) -> None:
        count = max(num_workers, 1) * _BUFFERS_PER_PROCESS
        self._in_use = torch.zeros(count, dtype=torch.bool, device="cpu").share_memory_()
        self._buffers: dict[int, UInt8[Tensor, "N ..."]] = {}  # of this process, by number
        self._received: dict[int, UInt8[Tensor, "N ..."]] = {}  # keeps the memory mapped
        self._held: set[int] = set()

    def stack(self, clips: list[Tensor]) -> tuple[UInt8[Tensor, "N ..."], int | None]:
        """Stacks the clips of a batch in a free buffer, or in new memory if none is free.

        Returns:
            The batch, and the number of its buffer, or None for new memory.
        """
        worker = get_worker_info()
        first = 0 if worker is None else worker.id * _BUFFERS_PER_PROCESS
        own = range(first, first + _BUFFERS_PER_PROCESS)
        number = next((number for number in own if not self._in_use[number]), None)
        if number is None:
            return default_collate(clips), None
        self._in_use[number] = True
        buffer = self._buffers.get(number)
        if buffer is None or len(buffer) < len(clips) or buffer.shape[1:] != clips[0].shape:
            buffer = self._buffers[number] = default_collate(clips)  # in a worker, shared memory
        else:
            buffer = torch.stack(clips, out=buffer[: len(clips)])
        return buffer, number

    def hold(self, batch: UInt8[Tensor, "N ..."], number: int | None) -> UInt8[Tensor, "N ..."]:
        """Returns the batch in the main process; its buffer is reused once the result is freed."""
        if number is None:
            return batch
        if batch.is_pinned():  # a copy
            self._in_use[number] = False
            return batch
        array = batch.numpy()  # an object that lives as long as any view of the result
        self._received[number] = batch
        self._held.add(number)
        weakref.finalize(array, self._release, number).atexit = False
        return torch.from_numpy(array)

    def reclaim(self) -> None:
        """Frees the buffers of batches that the main process never received."""
        for number in self._in_use.nonzero().flatten().tolist():
            self._in_use[number] = number in self._held

    def _release(self, number: int) -> None:
        self._held.discard(number)
        self._in_use[number] = False
