"""Loads batches in an order that depends only on (seed, epoch), not on workers and ranks.

Step s of a run on W ranks takes positions s*B*W to (s+1)*B*W of the order; rank r takes every W-th
of them, from r on. Each rank has batches of B samples. Together the ranks take the same samples as
one process with batches of B*W.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from videoattn.data.buffers import BufferPool
from videoattn.data.classes import balanced_order, check_balance
from videoattn.data.dataset import ClipDataset, Sample
from videoattn.data.decode import DecodeError
from videoattn.data.lists import Label
from videoattn.data.workers import WorkerDiedError, WorkerMonitor, in_threads
from videoattn.types import Batch, Failure

_SKIP = "; on_error=skip continues without it"

_THREADS = 2  # decode in the main process; on two cores 1.2 - 1.3 times as fast as one thread


@dataclass(eq=False, repr=False)
class ClipLoader:
    """A loader of batches that can resume inside an epoch without decoding earlier batches.

    The last, smaller batch is kept. When shuffling (training), every rank takes the same number of
    steps: a remainder of fewer samples than ranks is left out, so that no rank gets an empty batch.
    Without shuffling (evaluation) every sample is counted once, and ranks may have unequal numbers
    of batches. Batches are in pinned memory if there is a GPU.

    A file fails if it crashes a worker, or takes longer than `timeout_seconds` to decode. With
    on_error="skip", the workers restart and continue without the file; the other samples do not
    change. If a worker is killed from outside, the epoch always ends with a WorkerDiedError. If the
    iterator of an epoch is dropped, the workers end at once.

    Args:
        num_workers: Processes that decode, each in one thread. 0 decodes in this process, in two
            threads if it may use two cores.
        timeout_seconds: Time limit to decode one video; 0 for none.
        balance: Exponent of `balanced_order`, 0 to 1, which draws the videos by class.
    """

    dataset: ClipDataset
    _: KW_ONLY
    batch_size: int
    shuffle: bool
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    timeout_seconds: float = 0.0
    balance: float = 0.0

    def __post_init__(self) -> None:
        check_balance(self.dataset.samples.labels, self.balance)
        if self.batch_size < 1:
            raise ValueError(f"batch_size: got {self.batch_size}; need at least 1")
        if self.num_workers < 0:
            raise ValueError(f"num_workers: got {self.num_workers}; need 0 (this process) or more")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: got {self.rank}; need 0 to {self.world_size - 1}")
        if self.shuffle and len(self.dataset) < self.world_size:
            raise ValueError(
                f"{len(self.dataset)} samples cannot train on {self.world_size} processes; "
                "use at most one process per sample"
            )
        self._batch_keys = _BatchKeys()
        self._monitor = WorkerMonitor(self.num_workers, timeout_seconds=self.timeout_seconds)
        self._lost: dict[int, str] = {}  # samples that crashed a worker, and how
        self._loader: DataLoader[Any] | None = None
        self._pool = BufferPool(self.num_workers)

    def __len__(self) -> int:
        return len(self.batches(0))

    def epoch(self, epoch: int, skip_batches: int = 0) -> Iterator[Batch]:
        """Yields the epoch's batches from number `skip_batches` on.

        Raises:
            DecodeError: If a file of a batch fails and the dataset's on_error is "raise".
            WorkerDiedError: If a worker died; the message names the file.
        """
        batches, done = self.batches(epoch), skip_batches
        try:
            while done < len(batches):
                try:
                    for loaded in self._start(epoch, batches[done:]):
                        batch = self._finish(loaded)
                        yield batch
                        del loaded, batch  # so that their buffer is free while the next one loads
                        done += 1
                except (RuntimeError, OSError, EOFError):  # raised by torch for workers that died
                    if not self._replace_dead_workers():
                        raise
        except BaseException:  # GeneratorExit if the iterator is dropped
            self._stop()
            raise

    def order(self, epoch: int) -> list[int]:
        """Returns all ranks' samples in the epoch's order; for repetitions see `balanced_order`."""
        if not self.shuffle:
            return self.dataset.order(None, self.world_size)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        if self.balance:
            order = balanced_order(self.dataset.samples.labels, self.balance, generator).tolist()
        else:
            order = self.dataset.order(generator, self.world_size)
        remainder = len(order) % (self.batch_size * self.world_size)
        return order[:-remainder] if 0 < remainder < self.world_size else order

    def batches(self, epoch: int) -> list[list[int]]:
        """Returns the indices of each of this rank's batches."""
        mine = self.order(epoch)[self.rank :: self.world_size]
        return [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]

    def _replace_dead_workers(self) -> bool:
        """Returns whether a worker has died; if so, ends all workers and records the lost samples.

        Raises:
            WorkerDiedError: If the cause is not a file, or if `on_error` is "raise".
        """
        deaths = self._monitor.crashed(self.dataset.samples.path)
        if deaths:
            self._stop()  # the workers' queues may be broken
        for death in deaths:
            if death.index is None:
                raise death
            if self.dataset.on_error == "raise":
                raise WorkerDiedError(death.path, death.reason + _SKIP, death.index)
            self._lost[death.index] = death.reason
        return bool(deaths)

    def _stop(self) -> None:
        """Ends all workers and their epoch immediately. The next epoch starts new workers."""
        self._monitor.stop()
        self._loader = None
        self._batch_keys.keys = ()
        self._pool = BufferPool(self.num_workers)

    def _start(self, epoch: int, batches: list[list[int]]) -> "Iterator[_Loaded]":
        self._batch_keys.keys = self.dataset.keys(epoch, batches)
        self._pool.reclaim()
        if self._loader is not None:
            return iter(self._loader)
        num_threads = 0 if self.num_workers else min(_THREADS, num_cores())
        loader: DataLoader[Any] = DataLoader(
            _SampleFetcher(self.dataset, self._monitor, self._lost, num_threads),
            batch_sampler=self._batch_keys,
            num_workers=self.num_workers,
            collate_fn=partial(_collate, self._pool),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_leave_signals_to_parent,
            # Its own generator: iterating must not advance the global random state.
            generator=torch.Generator(),
        )
        self._loader = loader
        with self._monitor.starting():
            return iter(loader)

    def _finish(self, loaded: "_Loaded") -> Batch:
        if loaded.failures and self.dataset.on_error == "raise":
            raise DecodeError(loaded.failures[0].path, loaded.failures[0].reason + _SKIP)
        if loaded.frames is None:
            frames = self.dataset.empty_batch()
        else:
            frames = self._pool.hold(loaded.frames, loaded.buffer).movedim(-1, -3)
        labels = self.dataset.samples.target(loaded.labels)
        indices = torch.tensor(loaded.indices, dtype=torch.int64)
        return Batch(frames, labels, indices, loaded.failures)


class _Loaded(NamedTuple):
    """The batch that a worker sends to the main process, with channels last."""

    frames: UInt8[Tensor, "N V T H W C"] | None  # None without any sample
    buffer: int | None
    labels: list[Label]
    indices: list[int]
    failures: tuple[Failure, ...]


@dataclass(eq=False)
class _BatchKeys:
    """The keys of the next epoch's batches. Keys include the epoch, because workers outlive it."""

    keys: Iterable[list[Any]] = ()

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.keys)


@dataclass(eq=False)
class _SampleFetcher(Dataset[Sample | Failure]):
    """Fetches a batch. Returns failures, because exceptions from workers lose their type."""

    dataset: ClipDataset
    monitor: WorkerMonitor
    lost: dict[int, str]
    num_threads: int  # 0: in this thread

    def __getitems__(self, keys: Sequence[Any]) -> list[Sample | Failure]:
        if not self.num_threads:
            return [self._fetch(key) for key in keys]
        items = in_threads(
            [partial(self._fetch, key) for key in keys],
            num_threads=self.num_threads,
            seconds=self.monitor.timeout_seconds,
        )
        pairs = list(zip(keys, items, strict=True))
        slow = [key[1] % len(self.dataset) for key, item in pairs if item is None]
        self.lost |= dict.fromkeys(slow, self.monitor.too_slow)
        return [self._fetch(key) if item is None else item for key, item in pairs]

    def _fetch(self, key: Any) -> Sample | Failure:
        index = key[1] % len(self.dataset)  # repetitions have larger numbers, see `balanced_order`
        if index in self.lost:
            return Failure(index, str(self.dataset.samples.path(index)), self.lost[index])
        with self.monitor.decoding(index):
            return self.dataset.fetch(key)


def _collate(pool: BufferPool, items: list[Sample | Failure]) -> _Loaded:
    """Joins samples with channels last, so that a view of the batch is a channels_last_3d video."""
    samples = [item for item in items if isinstance(item, Sample)]
    clips = [sample.frames.movedim(-3, -1) for sample in samples]
    shapes = sorted({tuple(clip.shape) for clip in clips})
    if len(shapes) > 1:
        raise ValueError(
            "clips of a batch differ in their shapes (views, frames, height, width, channels): "
            f"{shapes[0]} and {shapes[1]}; use batches of one video"
        )
    frames, buffer = pool.stack(clips) if clips else (None, None)
    return _Loaded(
        frames,
        buffer,
        [sample.label for sample in samples],
        [sample.index for sample in samples],
        tuple(item for item in items if isinstance(item, Failure)),
    )


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_signals_to_parent(worker: int) -> None:
    """Makes a loader process ignore SIGTERM and SIGUSR1, unless its parent sends SIGTERM.

    A cluster manager sends them to all processes of a job. The parent then finishes its step, for
    which it needs its loader processes.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signals, parent = (signal.SIGTERM, signal.SIGUSR1), os.getppid()

    def wait_for_parent() -> None:
        while True:
            info = signal.sigwaitinfo(signals)
            if info.si_signo == signal.SIGTERM and info.si_pid == parent:
                os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=wait_for_parent, daemon=True).start()
