"""The interface of a data pipeline: an iterable of batches, a conversion to video, and passes."""

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


CPU_VALUES = 2**21
"""Most values of a forward pass on a CPU, so that it stays in the caches: a TSM-R50 takes 3.9 s for
16 views of 8x256x256 in one pass, and 2.2 s one by one (two cores of an EPYC, bfloat16)."""


def passes(views: Tensor, max_views: int) -> tuple[Tensor, ...]:
    """Splits views into forward passes of at most `max_views`, and on a CPU `CPU_VALUES` values."""
    if views.device.type == "cpu":
        max_views = min(max_views, max(CPU_VALUES // views[0].numel(), 1))
    return views.split(max_views)
