"""Memory of batches: used again when nobody holds them, and never before."""

from pathlib import Path

import pytest
import torch

from tests.data.test_loader import loader
from videoattn.data.blocks import Blocks


def filled(blocks: Blocks, value: int, shape: tuple[int, ...] = (2, 3)) -> torch.Tensor:
    parcel, memory = blocks.pack(shape)
    memory[:] = value
    return blocks.open(parcel)


def test_a_block_is_lent_until_nobody_holds_a_part_of_it() -> None:
    blocks = Blocks(0)
    blocks.start()
    first = filled(blocks, 1)
    place = first.data_ptr()
    part = first[1:].movedim(0, 1).numpy()
    del first
    second = filled(blocks, 2)
    assert second.data_ptr() != place
    assert (part == 1).all()
    del part
    third = filled(blocks, 3)
    assert third.data_ptr() == place
    assert (second == 2).all()


def test_more_than_the_blocks_are_memory_of_their_own() -> None:
    blocks = Blocks(0)
    blocks.start()
    held = [filled(blocks, value) for value in range(12)]
    assert len({tensor.data_ptr() for tensor in held}) == 12
    assert [int(tensor[0, 0]) for tensor in held] == list(range(12))


def test_a_block_that_is_too_small_is_made_anew() -> None:
    blocks = Blocks(0)
    blocks.start()
    filled(blocks, 1)
    large = filled(blocks, 2, (4, 100))
    assert large.shape == (4, 100)
    assert (large == 2).all()


def test_what_was_never_opened_is_free_in_the_next_epoch_and_told_again() -> None:
    blocks = Blocks(0)
    blocks.start()
    held = filled(blocks, 1)
    lost = [blocks.pack((2, 3))[0] for _ in range(3)]
    assert [parcel.block for parcel in lost] == [1, 2, 3]
    blocks.start()
    parcel, memory = blocks.pack((2, 3))
    assert parcel.block == 1
    assert parcel.memory is not None  # the trainer has not seen this block
    memory[:] = 5
    assert (blocks.open(parcel) == 5).all()
    assert (held == 1).all()
    again, _ = blocks.pack((2, 3))
    assert (again.block, again.memory) == (1, None)


def test_what_is_dropped_is_free_at_once() -> None:
    blocks = Blocks(0)
    blocks.start()
    for _ in range(20):
        parcel, _ = blocks.pack((2, 3))
        assert parcel.block == 0
        blocks.drop(parcel)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_that_are_held_stay_as_they_are(num_workers: int, thirteen: Path) -> None:
    batches = loader(thirteen, num_workers=num_workers, batch_size=1)
    held = [batch.frames for epoch in range(3) for batch in batches.epoch(epoch)]
    fresh = [
        batch.frames.clone()
        for epoch in range(3)
        for batch in loader(thirteen, batch_size=1).epoch(epoch)
    ]
    assert len(held) == 39
    assert all(torch.equal(a, b) for a, b in zip(held, fresh, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_memory_is_used_again(num_workers: int, thirteen: Path) -> None:
    batches = loader(thirteen, num_workers=num_workers, batch_size=1)
    places = set()
    for epoch in range(3):
        for batch in batches.epoch(epoch):
            places.add(batch.frames.data_ptr())
    assert len(places) <= 8
