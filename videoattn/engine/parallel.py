"""Runs the same code in one process, or in several that torchrun starts.

The training loop calls `Parallel` for everything that depends on the number of processes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from videoattn.engine.compiled import Compile, Compiled, compiled

T = TypeVar("T")

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Parallel:
    """The rank of this process, the number of processes, and the device that it computes on."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def sum(self, values: Sequence[int | float]) -> list[float]:
        """Returns the sum of each value over the ranks in float64, the same bits on all ranks."""
        # On the CPU, through gloo, so that a few numbers do not wait for the GPU's queue.
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def gather(self, value: T) -> list[T]:
        """Returns the value of every rank, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return [value for value in values if value is not None]

    def from_main(self, make: Callable[[], T]) -> T:
        """Calls `make` on the main rank, and returns its result on every rank.

        Raises:
            ValueError: On every rank, if `make` raises a ValueError or an OSError on the main rank.
        """
        own: tuple[list[T], ValueError | OSError | None] = [], None
        if self.is_main:
            try:
                own = [make()], None
            except (ValueError, OSError) as error:
                own = [], error
        results, error_of_main = self.gather(own)[0]
        if error_of_main is not None:
            raise error_of_main
        return results[0]

    def barrier(self) -> None:
        """Waits until all ranks have called it."""
        self.sum([0.0])

    def wrap(self, model: nn.Module, compile: Compile = "off") -> nn.Module:
        """Returns the model, in wrappers that compile it or average its gradients, where needed.

        DistributedDataParallel handles the parameters that require gradients when it is created:
        wrap the model again after freezing or unfreezing some.
        """
        model = compiled(model, compile, self.device)
        if self.world_size == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def unwrap(self, model: nn.Module) -> nn.Module:
        """Returns the model that `wrap` wrapped. It does not communicate and is not compiled."""
        while isinstance(model, DistributedDataParallel | Compiled):
            model = model.module
        return model

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns the state dict of the unwrapped model. Call it on every rank."""
        return self.unwrap(model).state_dict()

    def accumulate(self, model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Returns a context for one of several passes; only the last one averages gradients."""
        if last or not isinstance(model, DistributedDataParallel):
            return nullcontext()
        return model.no_sync()

    def sum_gradients(self, model: nn.Module, *, averaged: bool) -> None:
        """Replaces the gradients by their sum over the ranks.

        Args:
            averaged: Whether DDP has averaged them already. If not, a missing gradient is 0.
        """
        if self.world_size == 1:
            return
        for parameter in model.parameters():
            if averaged and parameter.grad is not None:
                parameter.grad.mul_(self.world_size)
            elif not averaged and parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def clip_grad_norm(self, model: nn.Module, max_norm: float | None) -> Tensor:
        """Clips the total gradient norm, unless `max_norm` is None; returns the unclipped norm."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
        return norm

    def average_buffers(self, model: nn.Module) -> None:
        """Averages floating-point buffers (running statistics) over the ranks, for modules in
        training mode. Those of other modules have not changed since the last average."""
        if self.world_size == 1:
            return
        for module in model.modules():
            for buffer in module.buffers(recurse=False):
                if module.training and buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer.div_(self.world_size)


@contextmanager
def init_parallel(
    device: str = "auto", *, timeout_seconds: int | float = 1800
) -> Iterator[Parallel]:
    """Joins the process group of torchrun's environment, and leaves it at the end of the `with`.

    Args:
        device: auto (a GPU, if available), cpu, cuda, or cuda:N.
        timeout_seconds: Time limit for the other processes, here and in each exchange.

    Raises:
        ValueError: If the environment is incomplete, or the device does not exist.
        ConnectionError: If the group does not form in time. It never falls back to one process.
    """
    _set_tf32()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Parallel(device=resolve_device(device))
        return
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {world_size}, but the environment lacks {', '.join(missing)}; start "
            "the processes with torchrun, or unset WORLD_SIZE to run one"
        )
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    chosen = resolve_device(device, local_rank=local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    try:
        store, *_ = next(rendezvous("env://", timeout=timeout))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":  # one machine
            # torchrun keeps its store when it restarts the processes. Without a prefix, new
            # processes would read the addresses of the previous ones.
            store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout
        )
    except RuntimeError as error:
        raise ConnectionError(
            f"rank {rank} of {world_size} could not join the group at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within "
            f"{timeout_seconds:g} s: {error}"
        ) from error
    try:
        yield Parallel(rank, world_size, chosen)
    finally:
        dist.destroy_process_group()


def _set_tf32() -> None:
    """Allows TF32 (a mantissa of 10 bits) in float32 convolutions on a GPU, but not in matrix
    products. These are PyTorch's defaults."""
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False


def resolve_device(name: str = "auto", *, local_rank: int = 0) -> torch.device:
    """Returns the device of this process for a name: auto, cpu, cuda, or cuda:N.

    Raises:
        ValueError: If the name is unknown, or the GPU does not exist.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if num_gpus else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda" and not (name.startswith("cuda:") and name[5:].isdigit()):
        raise ValueError(f"device: got {name!r}; choose from auto, cpu, cuda, cuda:N")
    index = local_rank if name == "cuda" else int(name[5:])
    if index >= num_gpus:
        raise ValueError(
            f"device: got GPU {index}; torch {torch.__version__} finds {num_gpus} GPUs; use "
            "cpu, or start at most as many processes as there are GPUs"
        )
    return torch.device("cuda", index)
