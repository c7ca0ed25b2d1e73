"""Times a training step of our I3D-R50 with five non-local blocks and of pytorchvideo's.

Our step is the one that `videoattn train` runs: precision auto, channels-last memory. The other
side is pytorchvideo's network with its own non-local blocks at the same positions, in float32 and
PyTorch's default memory layout. The two sides take turns.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from common import print_table
from torch import Tensor, nn

from videoattn.attention import NonLocal, insert_attention
from videoattn.engine.parallel import resolve_device
from videoattn.engine.precision import autocast, resolve_precision
from videoattn.models.resnet3d import ResNet3d

POSITIONS = ((2, 1), (2, 3), (3, 1), (3, 3), (3, 5))
"""The stages and blocks after which the non-local paper inserts its five blocks in an R50."""

Step = Callable[[], None]


def train_step(
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per step.")] = 2,
    num_frames: Annotated[int, typer.Option(min=1, help="Frames per clip.")] = 8,
    size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 224,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each side.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Time a training step of our I3D-R50 with five non-local blocks and of pytorchvideo's."""
    place = resolve_device(device)
    dtype = resolve_precision("auto", place)
    clip = torch.randn(batch_size, 3, num_frames, size, size, device=place)
    labels = torch.arange(batch_size, device=place)
    layout = torch.channels_last_3d
    steps = {
        "videoattn": _step(
            _videoattn().to(place, memory_format=layout),  # type: ignore[call-overload]
            clip.to(memory_format=layout),
            labels,
            dtype,
        ),
        "pytorchvideo": _step(_pytorchvideo().to(place), clip, labels, torch.float32),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            seconds = _time(step, place)
            if turn:  # the first turn allocates memory and tunes kernels
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    dtypes = {"videoattn": dtype, "pytorchvideo": torch.float32}
    print_table(
        ("side", "precision", "median seconds per step", "min", "max"),
        [
            (name, dtypes[name], *(f"{x:.3f}" for x in (medians[name], min(values), max(values))))
            for name, values in times.items()
        ],
        note=f"I3D-R50 with non-local blocks, batch {batch_size}, {num_frames}x{size}x{size}, SGD "
        f"step on {place}, {torch.get_num_threads()} threads, {rounds} rounds. pytorchvideo / "
        f"videoattn: {medians['pytorchvideo'] / medians['videoattn']:.2f}",
    )


def _videoattn() -> nn.Module:
    model = ResNet3d("i3d", depth=50, num_classes=400)
    insert_attention(model, NonLocal, [f"layer{a}.{b}" for a, b in POSITIONS], name="non_local")
    return model


def _pytorchvideo() -> nn.Module:
    from pytorchvideo.layers.nonlocal_net import create_nonlocal
    from pytorchvideo.models.hub import i3d_r50

    def block(channels: int) -> nn.Module:
        made: nn.Module = create_nonlocal(
            dim_in=channels, dim_inner=channels // 2, pool_size=(1, 2, 2), norm=nn.BatchNorm3d
        )
        return made

    model: nn.Module = i3d_r50(pretrained=False)
    # pytorchvideo's blocks are stem, layer1, pool, layer2, ...
    insert_attention(model, block, [f"blocks.{a + 1}.res_blocks.{b}" for a, b in POSITIONS])
    return model


def _step(model: nn.Module, clip: Tensor, labels: Tensor, dtype: torch.dtype) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    return partial(_train_once, model.train(), optimizer, clip, labels, dtype)


def _train_once(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    with autocast(dtype, clip.device):
        logits = model(clip)
    nn.functional.cross_entropy(logits.float(), labels).backward()
    optimizer.step()


def _time(step: Step, device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(train_step)
