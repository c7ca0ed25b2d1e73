"""Batches and logits on the CPU are not copied, and stay in order."""

import torch

from tests.engine.fakes import FakeBatches
from videoattn.engine.batches import one_ahead, to_device, to_host

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_nothing_is_copied_on_a_cpu() -> None:
    batches = list(FakeBatches().epoch(0))
    assert [x is y for x, y in zip(to_device(iter(batches), CPU), batches, strict=True)] == [
        True
    ] * 2
    logits = {"": torch.ones(2, 3)}
    assert to_host(logits)()[""] is logits[""]


def test_a_gpu_gets_each_item_after_the_next_was_made() -> None:
    made: list[int] = []

    def make() -> object:
        for number in range(3):
            made.append(number)
            yield number

    for device, ahead in ((CPU, 0), (GPU, 1)):
        made.clear()
        for number in one_ahead(make(), device):
            assert len(made) == min(number + 1 + ahead, 3)
        assert made == [0, 1, 2]
    assert list(one_ahead(iter([]), GPU)) == []
