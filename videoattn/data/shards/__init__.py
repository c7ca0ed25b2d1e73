"""Streams tar shards of a dataset from local paths, URLs and pipes, which webdataset opens.

A folder of shards has a `shards.json` with the classes and the number of samples in each shard.
Sample i of the dataset is the i-th in the order of that list. Its files in the tar are `i.mp4` (the
original video, with its own suffix), `i.cls` (the label, from 0) and `i.json` (path, frames, rate),
where i has eight digits.

The main process reads tar files ahead, and the workers decode. So a batch holds the same samples
for any number of workers, and a shard is read once. Resuming inside an epoch does not open the
shards that were consumed.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from videoattn.data.dataset import ClipDataset, Sample
from videoattn.data.decode.source import DecodeError, VideoBytes
from videoattn.data.lists import Samples
from videoattn.data.shards import table
from videoattn.errors import first_few
from videoattn.types import Failure

BUFFER = 256
"""A shuffled epoch moves a sample by at most this many positions in the order of the shards, so
that at most this many encoded videos are in memory."""

_AHEAD = 4  # batches


@dataclass(frozen=True)
class Shards:
    """The shards of one split.

    Args:
        counts: The number of samples in each shard.
        names: The number that names each shard's first sample; later samples count up from it.
    """

    urls: tuple[str, ...]
    counts: Int64[np.ndarray, " S"]
    names: Int64[np.ndarray, " S"]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Returns the number of samples."""
        return int(self.counts.sum())

    @property
    def firsts(self) -> Int64[np.ndarray, " S"]:
        """The index in the dataset of each shard's first sample."""
        return np.cumsum(self.counts) - self.counts

    def samples(self) -> Samples:
        """Returns the names of all samples. Labels are -1: reading a sample reveals its label."""
        tars = zip(map(table.tar_name, self.urls), self.names.tolist(), self.counts, strict=True)
        paths = [
            f"{tar}/{table.sample_name(number)}"
            for tar, first, count in tars
            for number in range(first, first + int(count))
        ]
        labels = np.full(len(paths), -1)
        return Samples(Path(), paths=paths, labels=labels, class_names=self.class_names)

    def order(self, generator: torch.Generator | None, world_size: int) -> list[int]:
        """Returns the order of all samples; rank r takes positions r, r + world_size, ...

        Each rank reads a contiguous range of samples; the lengths differ by one at most. A shard is
        read by one rank, or by several if their ranges meet in it. With a generator, the order of
        the shards is random, and each sample comes up to BUFFER positions after it is read.
        """
        which = np.arange(len(self.urls))
        if generator is not None:
            which = torch.randperm(len(which), generator=generator).numpy()
        stream = np.concatenate([self.firsts[s] + np.arange(self.counts[s]) for s in which])
        order = np.empty_like(stream)
        for rank, part in enumerate(np.array_split(stream, world_size)):
            if generator is not None:
                drawn = torch.rand(len(part), generator=generator, dtype=torch.float64).numpy()
                part = part[np.argsort(np.arange(len(part)) + BUFFER * drawn, kind="stable")]
            order[rank::world_size] = part
        numbers: list[int] = order.tolist()
        return numbers

    def read(self, wanted: Sequence[int]) -> Iterator[VideoBytes | Failure]:
        """Yields the wanted samples, without repeats, in the given order.

        A shard is opened at most once, and read up to its last wanted sample. Samples that cannot
        be read become failures.
        """
        numbers = np.array(wanted, np.int64)
        shard_of = np.searchsorted(self.firsts, numbers, side="right") - 1
        last = np.zeros(len(self.urls), np.int64)
        np.maximum.at(last, shard_of, numbers)
        is_wanted = np.zeros(len(self), bool)
        is_wanted[numbers] = True
        arriving = (
            found
            for shard in dict.fromkeys(shard_of.tolist())
            for found in self._shard(shard, int(last[shard]))
        )
        held: dict[int, VideoBytes | Failure] = {}
        for index in wanted:
            while index not in held:
                number, video = next(arriving)
                if is_wanted[number]:
                    held[number] = video
            yield held.pop(index)

    def _shard(self, shard: int, last: int) -> Iterator[tuple[int, VideoBytes | Failure]]:
        """Yields the samples of a shard up to number `last`, and failures after an error."""
        index = first = int(self.firsts[shard])
        url, good, problem = self.urls[shard], "none", "it ends there"
        try:
            for video in table.read_shard(url, int(self.names[shard]), len(self.class_names)):
                yield index, video
                index, good = index + 1, video.name
                if index > last:
                    return
        except DecodeError as error:
            problem = error.reason
        reason = (
            f"the shard gives {index - first} of its {self.counts[shard]} samples ({problem}); "
            f"the last good one: {good}"
        )
        for lost in range(index, last + 1):
            yield lost, Failure(lost, url, reason)


def open_shards(root: str, split: str) -> Shards:
    """Opens the shards in the folder `root/split/`, or the tar files that `split` lists.

    Args:
        split: A folder that holds a shards.json, local or a URL; or tar files, such as
            `train/{000000..000011}.tar`, `https://host/train/{000000..000011}.tar` or
            `pipe:aws s3 cp s3://bucket/train/{000000..000011}.tar -`. Their shards.json
            is read by the same path or command, with that name in place of the tar file.

    Raises:
        ValueError: If the shards are not found, or shards.json does not list them.
        ImportError: If webdataset is not installed.
    """
    complete = split.startswith(("/", "pipe:", "file:")) or "://" in split
    inside = root if split == "." else f"{root.rstrip('/')}/{split}"
    where = (split if complete else inside).rstrip("/")
    listed = table.TAR.search(where) is not None
    if where.startswith("pipe:") and not listed:
        raise ValueError(
            f"{split!r} names no tar file; name one or more, as in "
            "pipe:cat train/{000000..000011}.tar"
        )
    urls = table.expanded(where) if listed else []
    source = table.TAR.sub(table.TABLE, urls[0]) if urls else f"{where}/{table.TABLE}"
    class_names, ranges = table.read_table(source)
    wanted = [table.tar_name(url) for url in urls] or list(ranges)
    if unknown := [name for name in wanted if name not in ranges]:
        raise ValueError(
            f"{source} does not list {first_few(unknown)}; it lists {len(ranges)} shards, "
            f"{min(ranges)} to {max(ranges)}"
        )
    return Shards(
        tuple(urls or [f"{where}/{name}" for name in wanted]),
        counts=np.array([ranges[name][1] for name in wanted], np.int64),
        names=np.array([ranges[name][0] for name in wanted], np.int64),
        class_names=class_names,
    )


class ShardDataset(ClipDataset):
    """A dataset of samples in shards. Its keys hold the encoded videos, in the order of reading.

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
        videos = self.shards.read([index for batch in batches for index in batch])
        keys = ([(epoch, index, next(videos)) for index in batch] for batch in batches)
        return _ahead(keys, _AHEAD)

    def fetch(self, key: tuple[Any, ...]) -> Sample | Failure:
        """Returns a sample. If the key holds no video, reads the shard for this sample only."""
        epoch, index, *found = key
        video = found[0] if found else next(self.shards.read([index]))
        return video if isinstance(video, Failure) else self.sample(epoch, index, video)


def _ahead(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """Yields the items. A thread reads up to `depth` items ahead, until the generator ends."""
    pool = ThreadPool(1)
    try:
        read = partial(pool.apply_async, next, (items, None))
        ready = deque(read() for _ in range(depth))
        while (item := ready.popleft().get()) is not None:
            ready.append(read())
            yield item
    finally:
        pool.terminate()  # without waiting for the thread, which may wait for a network
