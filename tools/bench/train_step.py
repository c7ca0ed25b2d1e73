"""Times a training step of our networks, and of other libraries' in float32 and bfloat16.

Our step is the one that `videoattn train` runs: precision auto, channels-last memory. The other
sides have PyTorch's default memory layout, and autocast for bfloat16. The sides take turns.
"""

from typing import Annotated

import networks
import torch
import typer
from common import print_table

from videoattn.engine.parallel import resolve_device
from videoattn.engine.precision import resolve_precision


def train_step(
    network: Annotated[
        str, typer.Argument(help="i3d_r50_nl (five non-local blocks), i3d_r50, slow_r50, tsm_r50.")
    ] = "i3d_r50_nl",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per step.")] = 2,
    frames: Annotated[str, typer.Option(help="Frames per clip, as in 8 or 4,8,16,32.")] = "8",
    size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 224,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each side.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Time a training step of our network and of pytorchvideo's (for tsm_r50, of torchvision's)."""
    place = resolve_device(device)
    rows = []
    for num_frames in map(int, frames.split(",")):
        shape = (batch_size, 3, num_frames, size, size)
        times = _times(network, shape, rounds, place)
        own = times["videoattn"]
        rows += [(num_frames, name, *networks.against(x, own)) for name, x in times.items()]
    print_table(
        ("frames", "side", "median seconds per step", "min", "max", "of ours"),
        rows,
        note=f"{network}, batch {batch_size}, {size}x{size}, SGD step on {place}, {rounds} rounds "
        f"in turns, {networks.machine()}. The last column is the median of the rounds' ratios.",
    )


def _times(
    network: str, shape: tuple[int, ...], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    clip, model = torch.randn(shape, device=device), networks.ours(network).to(device)
    layout, dtype = torch.channels_last_3d, resolve_precision("auto", device)
    own = networks.training_step(model, clip.to(memory_format=layout), dtype)
    steps = {"videoattn": own}
    for other in (torch.float32, torch.bfloat16):
        name = f"theirs, {str(other).removeprefix('torch.')}"
        steps[name] = networks.training_step(networks.theirs(network).to(device), clip, other)
    return networks.in_turns(steps, rounds, device)


if __name__ == "__main__":
    typer.run(train_step)
