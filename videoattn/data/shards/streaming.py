"""Loads clips from shards: the main process reads tar files ahead, and the workers decode.

So a batch holds the same samples for any number of workers, and a shard is read once. Resuming
inside an epoch does not open the shards that were consumed.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from videoattn.data.dataset import ClipDataset, Sample
from videoattn.data.decode.source import DecodeError, VideoBytes
from videoattn.data.lists import Samples
from videoattn.data.shards import Shards
from videoattn.types import Failure

_AHEAD = 4  # batches

Key = tuple[int, int, VideoBytes | Failure]


class ShardDataset:
    """A dataset of shards, for ClipLoader.

    Args:
        clips: Decodes the videos. It has the names and labels of the shards' samples.
    """

    def __init__(self, shards: Shards, clips: ClipDataset) -> None:
        self.shards = shards
        self.clips = clips

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, key: tuple[int, int]) -> Sample | Failure:
        """Returns one sample, and reads its shard only for this sample."""
        epoch, index = key
        item = self.fetch((epoch, index, next(self.shards.read([index]))))
        if isinstance(item, Failure) and self.on_error == "raise":
            raise DecodeError(item.path, item.reason)
        return item

    @property
    def samples(self) -> Samples:
        return self.clips.samples

    @property
    def on_error(self) -> Literal["raise", "skip"]:
        return self.clips.on_error

    def order(self, generator: torch.Generator | None, world_size: int) -> list[int]:
        """Returns the order of an epoch; see `Shards.order`."""
        return self.shards.order(generator, world_size)

    def keys(self, epoch: int, batches: Sequence[Sequence[int]]) -> Iterator[list[Key]]:
        """Yields the keys of each batch with the encoded videos, in the order of reading."""
        return _ahead(self._read(epoch, batches), _AHEAD)

    def fetch(self, key: Key) -> Sample | Failure:
        epoch, index, video = key
        if isinstance(video, Failure):
            return video
        return self.clips.fetch((epoch, index), video)

    def empty_batch(self) -> UInt8[Tensor, "N V T C H W"]:
        return self.clips.empty_batch()

    def _read(self, epoch: int, batches: Sequence[Sequence[int]]) -> Iterator[list[Key]]:
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
