"""Loads clips from shards: the main process reads tar files ahead, and the workers decode.

So a batch holds the same samples for any number of workers, and a shard is read once. Resuming
inside an epoch does not open the shards that were consumed.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any

import torch

from videoattn.data.dataset import ClipDataset, Sample
from videoattn.data.shards import Shards
from videoattn.types import Failure

_AHEAD = 4  # batches


class ShardDataset(ClipDataset):
    """The samples of shards. Their keys hold the encoded videos, which come in the shards' order.

    Args:
        options: Arguments of ClipDataset.
    """

    def __init__(self, shards: Shards, **options: Any) -> None:
        super().__init__(shards.samples(), **options)
        self.shards = shards

    def order(self, generator: torch.Generator | None, world_size: int) -> list[int]:
        """Returns the order of an epoch; see `Shards.order`."""
        return self.shards.order(generator, world_size)

    def keys(self, epoch: int, batches: Sequence[Sequence[int]]) -> Iterator[list[Any]]:
        """Yields the keys of each batch, in the order of reading."""
        return _ahead(self._read(epoch, batches), _AHEAD)

    def fetch(self, key: tuple[Any, ...]) -> Sample | Failure:
        """Returns a sample. If its video is not loaded, reads the shard for this sample only."""
        epoch, index, *found = key
        video = found[0] if found else next(self.shards.read([index]))
        return video if isinstance(video, Failure) else self.sample(epoch, index, video)

    def _read(self, epoch: int, batches: Sequence[Sequence[int]]) -> Iterator[list[Any]]:
        videos = self.shards.read([index for batch in batches for index in batch])
        for batch in batches:
            yield [(epoch, index, next(videos)) for index in batch]


def _ahead(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """Yields the items, which a thread reads up to `depth` ahead until the generator ends."""
    pool = ThreadPool(1)
    try:
        read = partial(pool.apply_async, next, (items, None))
        ready = deque(read() for _ in range(depth))
        while (item := ready.popleft().get()) is not None:
            ready.append(read())
            yield item
    finally:
        pool.terminate()  # without waiting for the thread, which may wait for a network
