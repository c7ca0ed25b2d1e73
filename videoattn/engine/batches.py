"""What the engine asks of whoever gives it data: an iterable of batches, and a converter."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from videoattn.types import Batch, Video

ToVideo = Callable[[UInt8[Tensor, "N T C H W"]], Video]
"""Moves decoded clips to the device and normalises them: what the network sees."""


@runtime_checkable
class Batches(Protocol):
    """One rank's batches of an epoch, whose order is a pure function of the epoch."""

    def __len__(self) -> int:
        """How many batches an epoch has, the same on every rank of a training run."""

    def epoch(self, epoch: int, skip_batches: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, without the first `skip_batches`."""
