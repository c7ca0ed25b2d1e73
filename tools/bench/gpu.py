"""Measures on a GPU what training and testing cost: ours against pytorchvideo with autocast.

One command of at most `--minutes`, without a network: training steps and 30-view tests with and
without torch.compile, peak memory, attention blocks, and the share of the time that training from
files waits for data. Measurements for which no time is left are named. `--device cpu` runs
everything in tiny sizes, as a check of the script. From a copy of the repository that is not
installed: PYTHONPATH=. python tools/bench/gpu.py
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import attention
import networks
import torch
import typer
from common import print_table
from torch import nn

from videoattn.data.synthetic import write_demo_clips
from videoattn.engine.precision import autocast
from videoattn.models.norms import fold_batch_norms
from videoattn.recipe.experiment import train

NETWORK = "i3d_r50_nl"
BLOCKS = ("non_local", "cgnl", "stand_alone", "cbam", "squeeze_excite", "sagan")
Run = Callable[[], None]


class Bench:
    """The sizes of the measurements, and the time that is left for them."""

    def __init__(self, device: str, minutes: float) -> None:
        self.device = torch.device(device)
        self.tiny = self.device.type == "cpu"
        self.ends = time.monotonic() + 60 * minutes
        self.batch_sizes = (1, 2) if self.tiny else (8, 16, 32, 64)
        self.size, self.frames, self.views = (32, 4, 2) if self.tiny else (224, 8, 30)
        self.rounds = 1 if self.tiny else 10
        self.left_out: list[str] = []

    def measure(self, name: str, share: float, make: Callable[[], Run]) -> tuple[str, str]:
        """Returns the median milliseconds of a function and its peak memory in GiB, or "-" if fewer
        than `share` minutes are left."""
        if time.monotonic() + 60 * share > self.ends:
            self.left_out.append(name)
            return "-", "-"
        try:
            if not self.tiny:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(self.device)
            run = make()
            times = [networks.seconds(run, self.device) for _ in range(self.rounds + 3)]
        except torch.OutOfMemoryError:
            return "out of memory", "-"
        except ImportError as error:
            self.left_out.append(f"{name}: {error}")
            return "-", "-"
        peak = 0 if self.tiny else torch.cuda.max_memory_allocated(self.device)
        return f"{1e3 * statistics.median(times[3:]):.1f}", f"{peak / 2**30:.1f}"

    def clip(self, number: int) -> torch.Tensor:
        shape = (number, 3, self.frames, self.size, self.size)
        return torch.randn(shape, device=self.device).to(memory_format=torch.channels_last_3d)


def bench_gpu(
    device: Annotated[str, typer.Option(help="cuda, cuda:N, or cpu (tiny sizes).")] = "cuda",
    minutes: Annotated[float, typer.Option(min=0.1, help="Most time for all tables.")] = 8.0,
) -> None:
    """Measure training steps, 30-view tests, attention blocks and data loading on a GPU."""
    if device != "cpu" and not torch.cuda.is_available():
        raise typer.BadParameter("there is no GPU; --device cpu checks the script in tiny sizes")
    bench = Bench(device, minutes)
    card = "a CPU" if bench.tiny else torch.cuda.get_device_name(bench.device)
    print(f"{card}, {networks.machine()}; bfloat16, {NETWORK}, {bench.frames} frames\n")
    _print_files(bench)
    _print_blocks(bench)
    columns = ("side", "clips", "ms", "GiB", "clips/s")
    print_table(columns, _views(bench), note=f"Forward of {bench.views} views, without gradients.")
    print_table(columns, _steps(bench), note="Training step, SGD.")
    print("\n".join(f"left out: {name}" for name in bench.left_out))


def _sides(number: int) -> Iterator[tuple[str, Callable[[], nn.Module], str | None, float]]:
    """Yields the name, the network, the torch.compile mode and the minutes of each side."""
    yield f"ours, {number}", lambda: networks.ours(NETWORK), None, 0.3
    yield f"pytorchvideo, {number}", lambda: networks.theirs(NETWORK), None, 0.3
    yield f"ours, compiled, {number}", lambda: networks.ours(NETWORK), "default", 1.5
    yield f"ours, CUDA graphs, {number}", lambda: networks.ours(NETWORK), "reduce-overhead", 1.5


def _steps(bench: Bench) -> Iterator[tuple[str, ...]]:
    sides = [(number, side) for number in bench.batch_sizes for side in _sides(number)]
    sides.sort(key=lambda one: one[1][2] is not None)  # the most important ones first
    for number, (name, make, mode, share) in sides:

        def step(make=make, number=number, mode=mode) -> Run:  # type: ignore[no-untyped-def]
            model = make().to(bench.device)
            return networks.training_step(model, bench.clip(number), torch.bfloat16, compile=mode)

        yield _row(name.rpartition(",")[0], number, bench.measure(name, share, step))


def _views(bench: Bench) -> Iterator[tuple[str, ...]]:
    def test(model: nn.Module, *, fold: bool = False, compile: bool = False) -> Run:
        clip = bench.clip(bench.views)
        model = model.to(bench.device).eval()
        network = fold_batch_norms(model, clip[:1]) if fold else model
        run: Callable[[torch.Tensor], torch.Tensor] = network
        if compile:
            run = torch.compile(network)

        def forward() -> None:
            with torch.no_grad(), autocast(torch.bfloat16, bench.device):
                run(clip)

        return forward

    sides: dict[str, tuple[float, Callable[[], Run]]] = {
        "ours": (0.2, lambda: test(networks.ours(NETWORK))),
        "ours, folded": (0.2, lambda: test(networks.ours(NETWORK), fold=True)),
        "pytorchvideo": (0.2, lambda: test(networks.theirs(NETWORK))),
        "ours, folded and compiled": (
            1.0,
            lambda: test(networks.ours(NETWORK), fold=True, compile=True),
        ),
    }
    for name, (share, make) in sides.items():
        yield _row(name, bench.views, bench.measure(f"{name}, views", share, make))


def _row(name: str, number: int, measured: tuple[str, str]) -> tuple[str, ...]:
    milliseconds, peak = measured
    is_number = milliseconds[0].isdigit()
    rate = f"{1e3 * number / float(milliseconds):.1f}" if is_number else "-"
    return name, str(number), milliseconds, peak, rate


def _print_blocks(bench: Bench) -> None:
    site = attention.Site(32, (2, 4, 4)) if bench.tiny else attention.SITES["I3D res3"]
    site = site._replace(batch_size=bench.batch_sizes[0])
    rows = []
    for name in BLOCKS:
        cost = attention.measure_here(name, site, bench.rounds, str(bench.device), False)
        rows.append((f"`{name}`", f"{1e3 * cost.seconds:.1f}", f"{cost.peak / 2**20:,.0f}"))
    grid = "x".join(map(str, site.grid))
    note = f"Blocks in float32, {site.batch_size} clips of {site.channels} channels, {grid}."
    print_table(("block", "ms", "peak MiB"), rows, note=note)


def _print_files(bench: Bench) -> None:
    """Trains from files for two epochs, and prints the share of time that the GPU has work."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder, "clips")
        write_demo_clips(clips, num_train_per_class=2 if bench.tiny else 64, num_test_per_class=1)
        size = [f"clip.{key}={bench.size}" for key in ("height", "width")]
        size += [f"clip.num_frames={bench.frames}", "clip.frame_stride=1"]
        small = ["model.options.width=8"] if bench.tiny else []
        for workers in (0, 2, 8)[: 1 if bench.tiny else 3]:
            words = ["name=gpu", f"data.root={clips}", f"data.num_workers={workers}"]
            words += ["model.name=i3d_r18", "train.num_epochs=2", "train.batch_size=8"]
            words += ["train.validate_every=0", "augment.flip=false", *size, *small]
            started = time.perf_counter()
            run = train({}, *words, device=str(bench.device), folder=Path(folder, str(workers)))
            taken = time.perf_counter() - started
            waited = 100 * run.wait_share
            rate = run.state.num_seen / taken
            rows.append((workers, f"{rate:.1f}", f"{waited:.0f} %", f"{100 - waited:.0f} %"))
    columns = ("loader processes", "clips/s", "waiting for data", "busy")
    note = "Two epochs of an i3d_r18 on the demo's clips of 64 pixels, batch 8, start included."
    print_table(columns, rows, note=note)


if __name__ == "__main__":
    typer.run(bench_gpu)
