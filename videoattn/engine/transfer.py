"""Copies batches to a GPU and logits from it while the GPU computes. On a CPU nothing is copied."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from videoattn.types import Batch

T = TypeVar("T")


def one_ahead(items: Iterator[T], device: torch.device) -> Iterator[T]:
    """Yields the items. For a GPU, it yields each one after the next one was made."""
    if device.type == "cuda":
        made = list(islice(items, 1))
        for item in items:
            made.append(item)
            yield made.pop(0)
        yield from made
    else:
        yield from items


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields the batches with their frames on the device. A GPU gets each batch on a stream of its
    own, while it computes the batch before."""
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
    """Starts copying tensors to the CPU; the result waits for the copies and returns them."""
    copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
    done = [
        torch.cuda.current_stream(x.device).record_event() for x in tensors.values() if x.is_cuda
    ]

    def wait() -> dict[str, Tensor]:
        for event in done:
            event.synchronize()
        return copies

    return wait
