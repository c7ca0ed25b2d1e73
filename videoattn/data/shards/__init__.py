"""Streams tar shards of a dataset from local paths, URLs and pipes, which webdataset opens.

A folder of shards has a `shards.json` with the classes and the number of samples in each shard.
Sample i of the dataset is the i-th in the order of that list. Its files in the tar are `i.mp4` (the
original video, with its own suffix), `i.cls` (the label, from 0) and `i.json` (path, frames, rate),
where i has eight digits.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from videoattn.data.decode.source import DecodeError, VideoBytes
from videoattn.data.lists import VIDEO_SUFFIXES, Samples
from videoattn.data.shards import table
from videoattn.errors import first_few
from videoattn.types import Failure

BUFFER = 256
"""A shuffled epoch moves a sample by at most this many positions in the order of the shards, so
that at most this many encoded videos are in memory."""

_TAR = re.compile(r"[^/\s]+\.tar")
_VIDEO = frozenset(suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES)


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
        tars = map(tar_name, self.urls)
        paths = [
            f"{tar}/{number:08d}"
            for tar, first, count in zip(tars, self.names.tolist(), self.counts, strict=True)
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
            for video in read_shard(url, int(self.names[shard]), len(self.class_names)):
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
    listed = _TAR.search(where) is not None
    if where.startswith("pipe:") and not listed:
        raise ValueError(
            f"{split!r} names no tar file; name one or more, as in "
            "pipe:cat train/{000000..000011}.tar"
        )
    urls = table.expanded(where) if listed else []
    source = _TAR.sub(table.TABLE, urls[0]) if urls else f"{where}/{table.TABLE}"
    class_names, names, counts = table.read_table(source)
    wanted = [tar_name(url) for url in urls] or list(names)
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(
            f"{source} does not list {first_few(unknown)}; it lists {len(names)} shards, "
            f"{min(names)} to {max(names)}"
        )
    return Shards(
        tuple(urls or [f"{where}/{name}" for name in wanted]),
        np.array([counts[name] for name in wanted], np.int64),
        np.array([names[name] for name in wanted], np.int64),
        class_names,
    )


def read_shard(url: str, first: int, num_classes: int) -> Iterator[VideoBytes]:
    """Yields every sample of a shard; their names are numbers from `first` on.

    Raises:
        DecodeError: If the shard is truncated, or holds other files.
    """
    tariterators, stream = table.import_webdataset().tariterators, None
    try:
        stream = table.import_webdataset().gopen(url, "rb")
        files = table.tar_files(stream, url)
        for number, sample in enumerate(tariterators.group_by_keys(files), start=first):
            yield _encoded(url, sample, key(number), num_classes)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DecodeError(url, table.reason(error)) from error
    finally:
        if stream is not None:
            with suppress(OSError):  # from a command that is stopped early
                stream.close()


def key(number: int) -> str:
    """Returns the name of a sample."""
    return f"{number:08d}"


def tar_name(url: str) -> str:
    """Returns the name of the shard's file in a path, a URL or a command."""
    return _TAR.findall(url)[-1]


def _encoded(url: str, sample: dict[str, Any], name: str, num_classes: int) -> VideoBytes:
    """Returns the video of a sample; raises a ValueError if `write_shards` would not write it."""
    suffixes = [suffix for suffix in sample if suffix in _VIDEO]
    if sample["__key__"] != name or len(suffixes) != 1 or not {"cls", "json"} <= set(sample):
        files = ", ".join(suffix for suffix in sample if not suffix.startswith("__"))
        raise ValueError(
            f"got sample {sample['__key__']} with {files}; need {name} with a video, cls and json"
        )
    label = int(sample["cls"])
    if not 0 <= label < num_classes:
        raise ValueError(f"{name}: got label {label}; need 0 to {num_classes - 1}")
    try:
        about = json.loads(sample["json"])
        path, num_frames, fps = about["path"], int(about["num_frames"]), float(about["fps"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name}.json is damaged ({error!r})") from error
    if num_frames < 0 or not 0 <= fps < np.inf:
        raise ValueError(
            f"{name}.json: got num_frames {num_frames}, fps {fps}; need 0 or more, and a finite fps"
        )
    return VideoBytes(
        f"{tar_name(url)}/{name} ({path})", sample[suffixes[0]], label, num_frames, fps
    )
