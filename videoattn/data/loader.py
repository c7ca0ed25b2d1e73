"""Batches in an order that is a pure function of (seed, epoch), whatever the workers and ranks.

Step s of a run on W ranks takes positions s*B*W .. (s+1)*B*W of the order, rank r every W-th of
them from r on: each rank has batches of B, and the ranks together see what one process with
batches of B*W sees.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch.utils.data import DataLoader, Dataset, Sampler

from videoattn.data.blocks import Blocks, Parcel
from videoattn.data.dataset import ClipDataset, Sample
from videoattn.data.decode import DecodeError
from videoattn.data.decode.cut import Memory
from videoattn.data.shards.streaming import ShardDataset
from videoattn.data.workers import Watch, WorkerDiedError
from videoattn.types import Batch, Failure

AnyDataset = ClipDataset | ShardDataset

_SKIP = "; data.on_error=skip goes on without it"

_THREADS = 2  # that decode in the trainer's process, on two cores: 1.2 - 1.3 times as fast as one


class _Parts(NamedTuple):
    """A batch on its way to the trainer, as little of it as can be."""

    frames: Parcel | None  # of N samples, or more whose ends are empty; None if there is no sample
    labels: list[int]
    indices: list[int]
    failures: tuple[Failure, ...]


class ClipLoader:
    """Yields batches; `skip_batches` resumes inside an epoch without decoding what was consumed.

    The last, smaller batch is kept. When shuffling (training), every rank takes the same number of
    steps: a remainder of fewer samples than ranks, which would leave a rank without any, is left
    out. Without shuffling (evaluation) every sample is counted once, and ranks may have unequal
    numbers of batches.

    num_workers: processes that decode, each in one thread; 0 is this process, in two threads where
    it may use two cores.

    Where a file makes a worker process crash, or keeps it for more than `timeout_seconds` (0: no
    limit), the file has failed: with on_error="skip" the workers are started again and go on
    without it, to the same bits. A worker that is killed from outside always ends the epoch.
    """

    def __init__(
        self,
        dataset: AnyDataset,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        timeout_seconds: float = 0.0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; need at least 1")
        if num_workers < 0:
            raise ValueError(f"num_workers: got {num_workers}; need 0 (this process) or more")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: got {rank}; need 0 - {world_size - 1} of {world_size}")
        if shuffle and len(dataset) < world_size:
            raise ValueError(
                f"{len(dataset)} samples cannot train on {world_size} processes; "
                "use at most one process per sample"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self._plan = _Plan()
        self._watch = Watch(num_workers, timeout_seconds=timeout_seconds)
        self._lost: dict[int, str] = {}  # samples that cost a worker, and why
        self._loader: DataLoader[_Parts] | None = None
        self._blocks = Blocks(num_workers)
        num_threads = 1 if num_workers else min(_THREADS, _num_cores())
        self._do_all = _one_by_one if num_threads == 1 else _InThreads(num_threads)

    def __len__(self) -> int:
        return self.num_batches()

    def num_batches(self, epoch: int = 0) -> int:
        return len(self.batches(epoch))

    def epoch(self, epoch: int, skip_batches: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `skip_batches` on.

        Raises: DecodeError at the batch of a file that fails, when the data set says "raise";
        WorkerDiedError, which names the file, when a worker died.
        """
        batches = self.batches(epoch)
        done = skip_batches
        while True:
            try:
                for parts in self._start(self.dataset.keys(epoch, batches[done:])):
                    batch = self._batch(parts)
                    if batch.failures and self.dataset.on_error == "raise":
                        raise DecodeError(batch.failures[0].path, batch.failures[0].reason + _SKIP)
                    yield batch
                    done += 1
                return
            except (RuntimeError, OSError, EOFError):  # what torch says of workers that died
                deaths = self._watch.deaths(self.dataset.samples.path)
                if not deaths:
                    raise
            # Their queues may be as dead as they are: all workers end here, and new ones begin.
            self._loader = None
            self._watch.forget()
            self._blocks = Blocks(self.num_workers)
            for death in deaths:
                if death.index is None:
                    raise death
                if self.dataset.on_error == "raise":
                    raise WorkerDiedError(death.path, death.reason + _SKIP, death.index)
                self._lost[death.index] = death.reason

    def _start(self, keys: Iterable[list[Any]]) -> Iterator[_Parts]:
        self._plan.keys = keys
        self._blocks.start()
        if self._loader is not None:
            return iter(self._loader)
        self._loader = DataLoader(
            _Fetch(self.dataset, self._watch, self._lost, self._blocks, self._do_all),
            batch_sampler=self._plan,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            persistent_workers=self.num_workers > 0,
            # A generator of its own: iterating must not advance the global random state.
            generator=torch.Generator(),
        )
        with self._watch.starting():
            return iter(self._loader)

    def _batch(self, parts: _Parts) -> Batch:
        if parts.frames is None:
            frames = self.dataset.no_clips()
        else:
            frames = self._blocks.open(parts.frames)[: len(parts.labels)].movedim(-1, -3)
        labels, indices = torch.tensor([parts.labels, parts.indices], dtype=torch.int64)
        return Batch(frames, labels, indices, parts.failures)

    def order(self, epoch: int) -> list[int]:
        """Every rank's samples, in the order in which they are seen."""
        if not self.shuffle:
            return self.dataset.order(None, self.world_size)
        generator = torch.Generator()
        generator.manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = self.dataset.order(generator, self.world_size)
        remainder = len(order) % (self.batch_size * self.world_size)
        return order[:-remainder] if 0 < remainder < self.world_size else order

    def batches(self, epoch: int) -> list[list[int]]:
        """The indices of each of this rank's batches."""
        mine = self.order(epoch)[self.rank :: self.world_size]
        return [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]


_Task = Callable[[], Sample | Failure]


class _Plan(Sampler[list[Any]]):
    """The batches of the epoch to come: workers live through all epochs, so keys name theirs."""

    def __init__(self) -> None:
        self.keys: Iterable[list[Any]] = []

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.keys)


def _as_it_is(parts: Any) -> Any:
    """`_Fetch` joins samples itself."""
    return parts


class _Fetch(Dataset[_Parts]):
    """Makes batches. Failures go to the main process, which raises: an error from a worker loses
    its type."""

    def __init__(
        self,
        dataset: AnyDataset,
        watch: Watch,
        lost: Mapping[int, str],
        blocks: Blocks,
        do_all: Callable[[list[_Task]], list[Sample | Failure]],
    ) -> None:
        self._dataset = dataset
        self._watch = watch
        self._lost = lost
        self._blocks = blocks
        self._do_all = do_all

    def __getitems__(self, keys: Sequence[Any]) -> _Parts:
        room = _Room(self._blocks, len(keys))
        items = self._do_all(
            [partial(self._fetch, key, partial(room.place, i)) for i, key in enumerate(keys)]
        )
        samples = {i: item for i, item in enumerate(items) if isinstance(item, Sample)}
        return _Parts(
            room.close_up(list(samples)),
            [sample.label for sample in samples.values()],
            [sample.index for sample in samples.values()],
            tuple(item for item in items if isinstance(item, Failure)),
        )

    def _fetch(self, key: Any, memory: Memory) -> Sample | Failure:
        index = key[1]
        if index in self._lost:
            return Failure(index, str(self._dataset.samples.path(index)), self._lost[index])
        with self._watch.reading(index):
            return self._dataset.fetch(key, memory)


def _one_by_one(tasks: list[_Task]) -> list[Sample | Failure]:
    return [task() for task in tasks]


class _InThreads:
    """Does tasks side by side, in threads in which torch starts no others."""

    def __init__(self, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads, "clips", torch.set_num_threads, (1,))

    def __call__(self, tasks: list[_Task]) -> list[Sample | Failure]:
        running = [self._pool.submit(task) for task in tasks]
        wait(running)  # an error of one leaves none at work
        return [task.result() for task in running]


def _num_cores() -> int:
    """Of those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Room:
    """Memory for a batch of up to `num_samples`: frames are resized to where they stay.

    It is channels-last, in which a batch becomes a channels_last_3d video by view.
    """

    def __init__(self, blocks: Blocks, num_samples: int) -> None:
        self._blocks = blocks
        self._num_samples = num_samples
        self._whole: UInt8[np.ndarray, "N V T H W C"] | None = None
        self._parcel: Parcel | None = None
        self._begins = threading.Lock()

    def place(self, number: int, shape: tuple[int, ...]) -> UInt8[np.ndarray, "V T H W C"]:
        """Where sample `number` of the batch goes."""
        with self._begins:
            if self._whole is None:
                self._parcel, self._whole = self._blocks.pack((self._num_samples, *shape))
        if self._whole.shape[1:] != shape:
            one, other = sorted((self._whole.shape[1:], shape))
            raise ValueError(
                "clips of a batch differ in their shapes (views, frames, height, width, channels): "
                f"{one} and {other}; use batches of one video"
            )
        return self._whole[number]

    def close_up(self, numbers: list[int]) -> Parcel | None:
        """Those samples, side by side from the first place on; None, and no memory, for none."""
        if self._parcel is None or self._whole is None:
            return None
        if not numbers:
            self._blocks.drop(self._parcel)
            return None
        for place, number in enumerate(numbers):
            if place != number:
                self._whole[place] = self._whole[number]
        return self._parcel
