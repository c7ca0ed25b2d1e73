"""Defines the interface of a data pipeline, and moves its batches to the device and results back.

Batches are copied to a GPU, and logits from it, while the GPU computes. On a CPU nothing is copied.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from videoattn.types import Batch, Video

T = TypeVar("T")
ToVideo = Callable[[UInt8[Tensor, "N T C H W"]], Video]
"""Moves decoded clips to the device and returns them normalized, as floats (N, C, T, H, W)."""


@runtime_checkable
class Batches(Protocol):
    """The batches of one rank, in an order that is a pure function of the epoch."""

    def __len__(self) -> int:
        """Returns the number of batches in an epoch, equal on all ranks when training."""

    def epoch(self, epoch: int, skip_batches: int = 0) -> Iterator[Batch]:
        """Iterates over the batches of `epoch`, without the first `skip_batches`."""


CPU_VALUES = 2**21
"""Largest number of input values of a forward pass on a CPU, whose data then fits in the caches: a
TSM-R50 takes 3.9 s for 16 views of 8x256x256 at once, 2.2 s one by one (2 EPYC cores, bfloat16)."""


def passes(views: Tensor, max_views: int) -> tuple[Tensor, ...]:
    """Splits views (M, ...) into chunks of at most `max_views` (fewer on a CPU: `CPU_VALUES`)."""
    if views.device.type == "cpu":
        max_views = min(max_views, max(CPU_VALUES // views[0].numel(), 1))
    return views.split(max_views)


def one_ahead(items: Iterator[T], device: torch.device) -> Iterator[T]:
    """Yields the items; for a GPU, yields each item after `items` has produced the next one."""
    if device.type == "cuda":
        made = list(islice(items, 1))
        for item in items:
            made.append(item)
            yield made.pop(0)
        yield from made
    else:
        yield from items


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields the batches with their frames on the device. Copies to a GPU run on a separate stream,
    while the GPU computes the previous batch."""
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)

    def copied(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            frames = batch.frames.to(device, non_blocking=True)
        return batch._replace(frames=frames), copying.record_event()

    for batch, done in one_ahead(map(copied, batches), device):
        stream = torch.cuda.current_stream(device)
        stream.wait_event(done)
        batch.frames.record_stream(stream)  # its memory is reused only after this stream's work
        yield batch


def to_host(tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Starts copying tensors to the CPU; returns a function that waits and returns the copies."""
    copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
    done = [
        torch.cuda.current_stream(x.device).record_event() for x in tensors.values() if x.is_cuda
    ]

    def wait() -> dict[str, Tensor]:
        for event in done:
            event.synchronize()
        return copies

    return wait
