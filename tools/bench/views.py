"""Times the forward pass of the views of a video: ours, and pytorchvideo's.

`videoattn test` folds batch norms into convolutions; the note gives the time that this takes. Our
passes are those of `videoattn test`, which on a CPU have few views; the other sides' have 16.
"""

import time
from functools import partial
from typing import Annotated

import networks
import torch
import typer
from common import print_table
from torch import Tensor, nn

from videoattn.engine.batches import passes
from videoattn.engine.parallel import resolve_device
from videoattn.engine.precision import autocast
from videoattn.models.norms import fold_batch_norms


def views(
    network: Annotated[
        str, typer.Argument(help="i3d_r50_nl (five non-local blocks), i3d_r50, slow_r50, tsm_r50.")
    ] = "i3d_r50_nl",
    count: Annotated[int, typer.Option(min=1, help="Views of the video.")] = 30,
    num_frames: Annotated[int, typer.Option(min=1, help="Frames of a view.")] = 8,
    size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each side.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Time the forward pass of the views of a video, without gradients."""
    place = resolve_device(device)
    clip = torch.randn(count, 3, num_frames, size, size, device=place)
    last = clip.to(memory_format=torch.channels_last_3d)
    plain, peer = (make(network).to(place).eval() for make in (networks.ours, networks.theirs))
    started = time.perf_counter()
    folded = fold_batch_norms(plain, last[:1])
    spent = time.perf_counter() - started
    low, own = torch.bfloat16, passes(last, 16)
    steps = {
        "videoattn, bfloat16, folded": partial(_forward, folded, own, low),
        "videoattn, bfloat16": partial(_forward, plain, own, low),
        "theirs, bfloat16": partial(_forward, peer, clip.split(16), low),
        "theirs, float32": partial(_forward, peer, clip.split(16), torch.float32),
    }
    times = networks.in_turns(steps, rounds, place)
    first = next(iter(times.values()))
    print_table(
        ("side", "median seconds", "min", "max", "of ours"),
        [(name, *networks.against(values, first)) for name, values in times.items()],
        note=f"{network}, {count} views of {num_frames}x{size}x{size} on {place}, {rounds} rounds "
        f"in turns, {networks.machine()}. Folding took {spent:.1f} s.",
    )


def _forward(model: nn.Module, parts: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    with torch.no_grad(), autocast(dtype, parts[0].device):
        for part in parts:
            model(part)


if __name__ == "__main__":
    typer.run(views)
