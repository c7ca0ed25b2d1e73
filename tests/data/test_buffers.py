"""The memory of a batch is reused after its last view is freed, and not before."""

from pathlib import Path

import pytest
import torch

from tests.data.test_loader import loader
from videoattn.data.buffers import BufferPool


def batch(pool: BufferPool, value: int, shape: tuple[int, ...] = (2, 3)) -> torch.Tensor:
    stacked, slot = pool.stack([torch.full(shape[1:], value, dtype=torch.uint8)] * shape[0])
    return pool.hold(stacked, slot)


def test_a_buffer_is_in_use_until_the_last_view_is_freed() -> None:
    pool = BufferPool(0)
    first = batch(pool, 1)
    address = first.data_ptr()
    view = first[1:].movedim(0, 1).numpy()
    del first
    second = batch(pool, 2)
    assert second.data_ptr() != address
    assert (view == 1).all()
    del view
    third = batch(pool, 3)
    assert third.data_ptr() == address
    assert (second == 2).all()


def test_batches_beyond_the_buffers_get_new_memory() -> None:
    pool = BufferPool(0)
    held = [batch(pool, value) for value in range(12)]
    assert len({tensor.data_ptr() for tensor in held}) == 12
    assert [int(tensor[0, 0]) for tensor in held] == list(range(12))


def test_batches_of_other_sizes() -> None:
    pool = BufferPool(0)
    for value, shape in enumerate([(4, 3), (2, 3), (5, 3), (2, 100), (2, 3)]):
        made = batch(pool, value, shape)
        assert made.shape == shape
        assert (made == value).all()


def test_batches_that_were_never_received_are_reclaimed() -> None:
    pool = BufferPool(0)
    held = batch(pool, 1)
    clips = [torch.zeros(3, dtype=torch.uint8)]
    lost = [pool.stack(clips)[1] for _ in range(8)]
    assert None in lost
    assert pool.stack(clips)[1] is None
    pool.reclaim()
    assert pool.stack(clips)[1] is not None
    assert (held == 1).all()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loaders_reuse_their_buffers(num_workers: int, thirteen: Path) -> None:
    batches = loader(thirteen, num_workers=num_workers, batch_size=1)
    addresses = set()
    for epoch in range(3):
        for loaded in batches.epoch(epoch):
            addresses.add(loaded.frames.data_ptr())
    assert len(addresses) <= 6


def test_an_epoch_left_early_keeps_its_batches(thirteen: Path) -> None:
    batches = loader(thirteen, num_workers=2, batch_size=1)
    for _ in range(4):
        held = next(batches.epoch(0)).frames
        kept = held.clone()
        list(batches.epoch(1))
        assert torch.equal(held, kept)
