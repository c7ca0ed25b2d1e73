"""Times the paths of softmax attention. `attend` chooses one by dtype, device and size."""

import statistics
import time
from typing import Annotated, NamedTuple

import torch
import typer
from common import print_table
from torch import Tensor

from videoattn.attention.functional import MOST_AT_ONCE, Path, attend
from videoattn.engine.parallel import resolve_device
from videoattn.engine.precision import autocast


class Size(NamedTuple):
    """The numbers of clips, queries, keys and channels of an attention map."""

    clips: int
    queries: int
    keys: int
    channels: int


SIZES = (
    Size(2, 784, 196, 512),
    Size(2, 1568, 392, 512),
    Size(2, 1568, 1568, 512),
    Size(2, 3136, 784, 256),
    Size(2, 6272, 1568, 256),
    Size(1, 6272, 6272, 256),
    Size(1, 12544, 3136, 256),
)
PATHS: tuple[Path, ...] = ("fused", "explicit", "chunked")


def attention_paths(
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each path.")] = 7,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Time forward and backward of softmax attention by each path, in float32 and bfloat16."""
    place = resolve_device(device)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for size in SIZES:
            times = _times(size, dtype, place, rounds)
            entries = size.clips * size.queries * size.keys
            rows.append(
                (
                    str(dtype).removeprefix("torch."),
                    *size,
                    f"{entries / MOST_AT_ONCE:.2f}",
                    *(f"{1e3 * times[path]:.1f}" for path in PATHS),
                    f"{times['fused'] / times['chunked']:.2f}",
                )
            )
    print_table(
        (
            *("dtype", "clips", "queries", "keys", "channels", "entries / limit"),
            *(f"{path}, ms" for path in PATHS),
            "fused / chunked",
        ),
        rows,
        note=f"Forward and backward under autocast on {place}, {torch.get_num_threads()} threads, "
        f"medians of {rounds} rounds in turns. The limit is {MOST_AT_ONCE:,} entries.",
    )


def _times(size: Size, dtype: torch.dtype, device: torch.device, rounds: int) -> dict[Path, float]:
    def tensor(positions: int) -> Tensor:
        shape = (size.clips, positions, size.channels)
        return torch.randn(shape, dtype=dtype, device=device, requires_grad=True)

    q, k, v = tensor(size.queries), tensor(size.keys), tensor(size.keys)
    times: dict[Path, list[float]] = {path: [] for path in PATHS}
    for turn in range(rounds + 1):
        for path in PATHS:
            started = time.perf_counter()
            with autocast(dtype, device):
                y = attend(q, k, v, scale=size.channels**-0.5, path=path)
            y.sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first turn allocates memory
                times[path].append(time.perf_counter() - started)
    return {path: statistics.median(values) for path, values in times.items()}


if __name__ == "__main__":
    typer.run(attention_paths)
