"""`videoattn bench attention`: time and memory of every system at three places of a network.

Each measurement has a process of its own, so that its peak is its own. Pairwise systems stand
beside themselves with the whole map built, in the same run.
"""

import inspect
import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from videoattn.attention.systems import SYSTEMS
from videoattn.engine.parallel import resolve_device
from videoattn.recipe.run import out

SITES: dict[str, tuple[int, tuple[int, int, int]]] = {
    "I3D res3": (512, (4, 28, 28)),
    "TSN res4": (1024, (8, 14, 14)),
    "I3D res3, neither time nor keys pooled": (512, (16, 28, 28)),
}
GROWTH = (4, 8, 12)
"""Frames of 512 x 28 x 28 at which memory is compared."""
WHOLE_KEYS = 16 * 28 * 28
"""From so many positions on keys are not pooled, where a system pools them: the hardest case."""


class Cost(NamedTuple):
    """seconds: forward and backward, the median. peak: bytes beyond weights and inputs."""

    seconds: float
    peak: int


def bench_attention(
    names: Sequence[str] = (), *, batch_size: int = 1, num_rounds: int = 3, device: str = "auto"
) -> None:
    """Prints a table for each site, and how memory grows with the frames.

    Raises:
        ValueError: a name that is no system, or that is a whole network (hard_crop).
    """
    blocks = [name for name, system in SYSTEMS.items() if system.kind != "network"]
    for name in names:
        if name not in blocks:
            raise ValueError(f"{name!r} cannot be timed alone; choose from {', '.join(blocks)}")
    place = resolve_device(device)
    for site, (channels, grid) in SITES.items():
        table = Table("", "seconds", "peak MiB", "parameters", "MACs", "explicit: seconds", "MiB")
        for name in names or blocks:
            table.add_row(*_row(name, channels, grid, batch_size, num_rounds, place))
        size = "x".join(map(str, grid))
        table.title = f"{site}: {channels} channels, {size} positions"
        table.caption = (
            f"forward and backward, float32, batch {batch_size}, median of {num_rounds} on "
            f"{place}, {torch.get_num_threads()} threads; peak: beyond weights and inputs"
        )
        out.print(table)
    out.print(_growth(names or blocks, batch_size, place))


def _row(
    name: str, channels: int, grid: tuple[int, int, int], batch_size: int, num_rounds: int,
    device: torch.device,
) -> list[str]:  # fmt: skip
    parameters, macs = count(name, channels, grid)
    own = measure(name, channels, grid, batch_size, num_rounds, device)
    cells = [name, f"{own.seconds:.3f}", _mib(own.peak), f"{parameters:,}", f"{macs / 1e9:.2f} G"]
    if not uses_attend(name, channels):
        return [*cells, "", ""]
    explicit = measure(name, channels, grid, batch_size, num_rounds, device, explicit=True)
    return [
        *cells,
        f"{explicit.seconds:.3f} ({explicit.seconds / own.seconds:.1f}x)",
        f"{_mib(explicit.peak)} ({explicit.peak / max(own.peak, 1):.1f}x)",
    ]


def _growth(names: Sequence[str], batch_size: int, device: torch.device) -> Table:
    table = Table("peak MiB at 512 x 28 x 28 and T =", *map(str, GROWTH), "last / first")
    for name in names:
        peaks = [measure(name, 512, (t, 28, 28), batch_size, 1, device).peak for t in GROWTH]
        table.add_row(name, *map(_mib, peaks), f"{peaks[-1] / max(peaks[0], 1):.1f}")
    linear = GROWTH[-1] / GROWTH[0]
    table.caption = f"linear growth is {linear:.1f}, quadratic {linear**2:.1f}"
    return table


def measure(
    name: str, channels: int, grid: tuple[int, int, int], batch_size: int, num_rounds: int,
    device: torch.device, *, explicit: bool = False,
) -> Cost:  # fmt: skip
    """Time and peak memory, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    arguments = (name, channels, grid, batch_size, num_rounds, str(device), explicit)
    with context.Pool(1) as pool:
        return pool.apply(_measure_here, arguments)


def _measure_here(
    name: str, channels: int, grid: tuple[int, int, int], batch_size: int, num_rounds: int,
    device: str, explicit: bool,
) -> Cost:  # fmt: skip
    torch.manual_seed(0)
    small, inputs = at_site(name, channels, (1, 7, 7), 1, device)
    _pass(small, inputs)  # libraries load their code and tune themselves
    module, inputs = at_site(name, channels, grid, batch_size, device)
    for part in module.modules():
        if explicit and hasattr(part, "path"):
            part.path = "explicit"  # type: ignore[assignment]
    before = _reset_peak(device)
    times = [_pass(module, inputs) for _ in range(num_rounds)]
    return Cost(statistics.median(times), _peak(device) - before)


def _pass(module: nn.Module, inputs: list[Tensor]) -> float:
    started = time.perf_counter()
    module(*inputs).sum().backward()
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    for x in [*module.parameters(), *inputs]:
        x.grad = None
    return seconds


def at_site(
    name: str, channels: int, grid: tuple[int, int, int], batch_size: int, device: str
) -> tuple[nn.Module, list[Tensor]]:
    """The system's module for features of so many channels, and inputs for its forward."""
    kind, make = SYSTEMS[name].kind, SYSTEMS[name].make
    if math.prod(grid) >= WHOLE_KEYS and "key_pool" in inspect.signature(make).parameters:
        make = partial(make, key_pool=None)
    layout = torch.channels_last_3d
    x, y = (
        torch.randn(batch_size, channels, *grid, device=device).to(memory_format=layout)
        for _ in range(2)
    )
    if kind == "join":
        module, inputs = make(channels, [channels]), [x, y]
    elif kind == "head":
        module, inputs = make(channels, [channels], 400), [x.mean((2, 3, 4)), y]
    elif kind == "mask":
        module, inputs = make(channels), [x, y]
    elif kind == "replace":
        module, inputs = make(channels, channels, 1), [x]
    else:
        module, inputs = make(channels), [x]
    module = module.to(device, memory_format=layout)  # type: ignore[call-overload]
    return module, [tensor.requires_grad_() for tensor in inputs]


def count(name: str, channels: int, grid: tuple[int, int, int]) -> tuple[int, int]:
    """Parameters, and multiply-adds of one sample's forward pass; shapes only."""
    with torch.device("meta"):
        module, inputs = at_site(name, channels, grid, 1, "meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*inputs)
    return sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2


def uses_attend(name: str, channels: int) -> bool:
    """Whether the system's mathematics goes through `attend`, which has an explicit path too."""
    module, _ = at_site(name, channels, (2, 2, 2), 1, "meta")
    return any(hasattr(part, "path") for part in module.modules())


def _reset_peak(device: str) -> int:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with suppress(OSError):  # Linux: from here on; elsewhere what imports took hides small peaks
        Path("/proc/self/clear_refs").write_text("5")
    return _peak(device)


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"
