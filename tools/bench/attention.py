"""Measures time, peak memory, parameters and MACs of the attention systems.

Each measurement runs in its own process, so that its peak memory is its own. Pairwise systems are
also measured with `path = "explicit"`, which builds the whole map.
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
from typing import Annotated, NamedTuple

import torch
import typer
from common import print_table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from videoattn.attention.systems import SYSTEMS
from videoattn.engine.parallel import resolve_device
from videoattn.errors import one_of

BLOCKS = [name for name, system in SYSTEMS.items() if system.kind != "network"]
COLUMNS = (
    *("system", "seconds", "peak MiB", "parameters", "MACs"),
    *("explicit: seconds", "explicit: peak MiB"),
)
GROWTH_FRAMES = (4, 8, 16, 32)  # 3,136 to 25,088 positions
UNPOOLED_POSITIONS = 16 * 28 * 28
"""Keys are not pooled on grids of at least this many positions: the most expensive case."""


class Site(NamedTuple):
    """A position in a network, with the size of its features."""

    channels: int
    grid: tuple[int, int, int]
    batch_size: int = 1


class Cost(NamedTuple):
    """Median seconds of a forward and backward pass, and peak bytes besides weights and inputs."""

    seconds: float
    peak: int


SITES = {
    "I3D res3": Site(512, (4, 28, 28)),
    "TSN res4": Site(1024, (8, 14, 14)),
    "I3D res3, neither time nor keys pooled": Site(512, (16, 28, 28)),
}


def bench_attention(
    systems: Annotated[
        list[str] | None, typer.Argument(help="Names from `videoattn list attention`; default all.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per step.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each system.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Measure time, peak memory, parameters and MACs of attention systems."""
    names = [one_of("system", name, BLOCKS) for name in systems or BLOCKS]
    place = str(resolve_device(device))
    for title, site in SITES.items():
        site = site._replace(batch_size=batch_size)
        print(f"**{title}: {site.channels} channels, {'x'.join(map(str, site.grid))} positions**\n")
        print_table(
            COLUMNS,
            (_row(name, site, rounds, place) for name in names),
            note=f"Forward and backward in float32, batch {batch_size}, median of {rounds} on "
            f"{place}, {torch.get_num_threads()} threads. Peak: in addition to weights and inputs.",
        )
    _print_growth(names, batch_size, place)


def _row(name: str, site: Site, rounds: int, device: str) -> list[str]:
    parameters, macs = count(name, site)
    own = measure(name, site, rounds, device)
    cells = [f"`{name}`", f"{own.seconds:.3f}", _mib(own.peak), f"{parameters:,}"]
    cells.append(f"{macs / 1e9:.2f} G")
    if not has_explicit_path(name, site.channels):
        return [*cells, "", ""]
    explicit = measure(name, site, rounds, device, explicit=True)
    cells.append(f"{explicit.seconds:.3f} ({explicit.seconds / own.seconds:.1f}x)")
    return [*cells, f"{_mib(explicit.peak)} ({_ratio(explicit.peak, own.peak)})"]


def _print_growth(names: Sequence[str], batch_size: int, device: str) -> None:
    rows = []
    for name in names:
        sites = [Site(512, (frames, 28, 28), batch_size) for frames in GROWTH_FRAMES]
        peaks = [measure(name, site, 1, device).peak for site in sites]
        rows.append((f"`{name}`", *map(_mib, peaks), _ratio(peaks[-1], peaks[0])))
    linear = GROWTH_FRAMES[-1] / GROWTH_FRAMES[0]
    print("**Peak MiB on 512 channels, T x 28 x 28 positions**\n")
    print_table(
        ("system", *(f"T = {frames}" for frames in GROWTH_FRAMES), "last / first"),
        rows,
        note=f"Linear growth is {linear:.1f}, quadratic growth {linear**2:.1f}.",
    )


def measure(name: str, site: Site, rounds: int, device: str, *, explicit: bool = False) -> Cost:
    """Returns the time and the peak memory of a system, measured in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_here, (name, site, rounds, device, explicit))


def measure_here(name: str, site: Site, rounds: int, device: str, explicit: bool) -> Cost:
    """Returns the time and the peak memory of a system, measured in this process."""
    torch.manual_seed(0)
    path = "explicit" if explicit else "auto"
    warm_up = make_block(name, Site(site.channels, (1, 7, 7)), device, path=path)
    _pass(*warm_up)  # libraries load their code and choose kernels
    module, inputs = make_block(name, site, device, path=path)
    before = _reset_peak(device)
    times = [_pass(module, inputs) for _ in range(rounds)]
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


def make_block(
    name: str, site: Site, device: str, *, path: str = "auto"
) -> tuple[nn.Module, list[Tensor]]:
    """Returns the module of a system at a site, and random inputs for its forward pass."""
    channels, kind, make = site.channels, SYSTEMS[name].kind, SYSTEMS[name].make
    pools_keys = "key_pool" in inspect.signature(make).parameters
    if pools_keys and math.prod(site.grid) >= UNPOOLED_POSITIONS:
        make = partial(make, key_pool=None)
    layout = torch.channels_last_3d
    x, y = (
        torch.randn(site.batch_size, channels, *site.grid, device=device).to(memory_format=layout)
        for _ in range(2)
    )
    if kind in ("layers", "pyramid"):
        module, inputs = make(channels, [channels]), [x, y]
    elif kind == "head":
        module, inputs = make(channels, [channels], 400), [x.mean((2, 3, 4)), y]
    elif kind == "mask":
        module, inputs = make(channels), [x, y]
    elif kind == "convolution":
        module, inputs = make(channels, channels, 1), [x]
    else:
        module, inputs = make(channels), [x]
    for part in module.modules():
        if hasattr(part, "path"):
            part.path = path  # type: ignore[assignment]
    module = module.to(device, memory_format=layout)  # type: ignore[call-overload]
    return module, [tensor.requires_grad_() for tensor in inputs]


def count(name: str, site: Site) -> tuple[int, int]:
    """Returns the number of parameters, and the multiply-adds of a forward pass of one sample."""
    with torch.device("meta"):
        module, inputs = make_block(name, site._replace(batch_size=1), "meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*inputs)
    return sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2


def has_explicit_path(name: str, channels: int) -> bool:
    """Returns whether the system computes its map with `attend`, on a selectable path."""
    with torch.device("meta"):
        module, _ = make_block(name, Site(channels, (2, 2, 2)), "meta")
    return any(hasattr(part, "path") for part in module.modules())


def _reset_peak(device: str) -> int:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with suppress(OSError):  # Linux only; elsewhere, memory used by imports hides small peaks
        Path("/proc/self/clear_refs").write_text("5")
    return _peak(device)


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":  # ru_maxrss starts at the parent's peak, and cannot be reset
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _ratio(peak: int, base: int) -> str:
    """Returns the ratio of two peaks, or "-" if the base is noise (below 1 MiB)."""
    return f"{peak / base:.1f}x" if base >= 2**20 else "-"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"


if __name__ == "__main__":
    typer.run(bench_attention)
