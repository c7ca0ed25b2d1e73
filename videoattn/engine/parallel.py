"""One process or many: started by torchrun or not, the same code.

    torchrun --nproc-per-node 2 -m videoattn.cli.app train ...

A world size that was asked for is formed or is an error; it is never quietly 1.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Parallel:
    """This process's place among `world_size`, and the device that it computes on."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and shows."""
        return self.rank == 0

    def sum(self, values: Sequence[int | float]) -> list[float]:
        """Each value summed over the processes, in float64; the same bits on every one."""
        # On the CPU, by gloo: a GPU's queue need not be emptied for a handful of numbers.
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """The tensor summed over the processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return [value for value in values if value is not None]

    def barrier(self) -> None:
        """Waits until every process is here."""
        self.sum([0.0])

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` whose gradients are averaged over the processes; itself when there is one."""
        if self.world_size == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def average_buffers(self, model: nn.Module) -> None:
        """Running statistics, which each process's own clips moved, become their mean. Those of
        modules in evaluation mode did not move, and do not."""
        if self.world_size == 1:
            return
        for module in model.modules():
            for buffer in module.buffers(recurse=False):
                if module.training and buffer.is_floating_point():
                    self.all_reduce_(buffer).div_(self.world_size)

    def sum_gradients(self, model: nn.Module) -> None:
        """Gradients become their sum over the processes; one that a process lacks counts as 0."""
        for parameter in model.parameters():
            if self.world_size > 1 and parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self.all_reduce_(parameter.grad)


@contextmanager
def distributed(device: str = "auto", *, timeout_seconds: int | float = 1800) -> Iterator[Parallel]:
    """Joins the group that torchrun's environment describes, and leaves it at the end.

    `device` is auto (a GPU where there is one), cpu, cuda or cuda:N.

    Raises:
        ValueError: for an incomplete environment, or a device that is not there.
        RuntimeError: when the group cannot form in time.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Parallel(device=resolve_device(device))
        return
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {world_size} but {', '.join(missing)} not set: start the processes "
            "with torchrun, or unset WORLD_SIZE to run one"
        )
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    chosen = resolve_device(device, local_rank=local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {rank} of {world_size} could not join its group at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within "
            f"{timeout_seconds:g} s: {error}"
        ) from error
    try:
        yield Parallel(rank, world_size, local_rank, chosen)
    finally:
        dist.destroy_process_group()


def resolve_device(name: str = "auto", *, local_rank: int = 0) -> torch.device:
    """The device that `name` (auto, cpu, cuda, cuda:N) means for this process.

    Raises:
        ValueError: for another name, and for a GPU that is not there.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if num_gpus else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda" and not (name.startswith("cuda:") and name[5:].isdigit()):
        raise ValueError(f"device: '{name}' is not one of auto, cpu, cuda, cuda:N")
    index = local_rank if name == "cuda" else int(name[5:])
    if not num_gpus:
        raise ValueError(
            f"device: GPU {index} asked for, but torch {torch.__version__} sees none; "
            "use --device cpu"
        )
    if index >= num_gpus:
        raise ValueError(
            f"device: GPU {index} asked for, {num_gpus} visible; use --device cpu, "
            "or start at most as many processes as there are GPUs"
        )
    return torch.device("cuda", index)
