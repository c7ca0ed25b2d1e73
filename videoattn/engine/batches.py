"""The interface of a data pipeline: an iterable of batches, and a conversion to video."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from videoattn.types import Batch, Video

ToVideo = Callable[[UInt8[Tensor, "N T C H W"]], Video]
"""Moves decoded clips to the device and normalizes them for the network."""


@runtime_checkable
class Batches(Protocol):
    """The batches of one rank, in an order that is a pure function of the epoch."""

    def __len__(self) -> int:
        """Returns the number of batches in an epoch, equal on all ranks when training."""

    def epoch(self, epoch: int, skip_batches: int = 0) -> Iterator[Batch]:
        """Iterates over the batches of `epoch`, without the first `skip_batches`."""
