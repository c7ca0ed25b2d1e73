"""Times training from video files: our loader and network, and other libraries'.

Each side decodes, crops and trains, in turns. Our loader knows the numbers of frames, as after the
first epoch. The other sides load clips as mmaction2 does, with the same number of processes. They
have PyTorch's default memory layout, and autocast to our precision.
"""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import networks
import torch
import typer
from common import print_table
from loader import SETTINGS, compare, find_videos, ours
from loader_sides import READERS, Clips, whole_frame_clips
from torch import Tensor

from videoattn.data.transforms import to_video
from videoattn.engine.parallel import resolve_device
from videoattn.engine.precision import resolve_precision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def from_files(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A folder of videos.")
    ],
    network: Annotated[
        str, typer.Option(help="tsn_r50, tsm_r50, slow_r50, i3d_r50 or i3d_r50_nl.")
    ] = "tsn_r50",
    setting: Annotated[str, typer.Option(help=f"{', '.join(SETTINGS)}.")] = "8 segments",
    workers: Annotated[int, typer.Option(min=0, help="Loader processes of each side.")] = 2,
    seconds: Annotated[float, typer.Option(min=0, help="How long each side is timed.")] = 60.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Time training from video files."""
    samples, sampler, place = find_videos(folder), SETTINGS[setting], resolve_device(device)
    dtype = resolve_precision("auto", place)
    clips = {"videoattn": ours(samples, sampler, num_workers=workers)}
    for name in READERS:
        try:
            clips[name] = whole_frame_clips(name, samples, sampler, num_workers=workers)
        except ImportError as error:
            print(f"missing: {name}: {error}")
    sides: dict[str, Clips] = {}
    for name, batches in clips.items():
        own = name == "videoattn"
        model = (networks.ours if own else networks.theirs)(network).to(place).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        sides[name] = partial(
            _trained, batches, partial(_step, model, optimizer, dtype, place, own)
        )
    rates = compare(sides, seconds, workers)
    del sides, clips
    gc.collect()  # ends the workers
    own_rate = rates["videoattn"]
    print_table(
        ("training from files", "clips per second", "ours to this"),
        [(name, f"{rate:.2f}", f"{own_rate / rate:.2f}") for name, rate in rates.items()],
        note=f"{network}, {setting}, 224x224, batches of 4, {dtype}, {workers} loader processes, "
        f"{len(samples)} videos, 3 turns of {seconds / 3:g} s, on {place}, {networks.machine()}.",
    )


def _trained(batches: Clips, step: Callable[[Tensor], None], epoch: int) -> Iterator[Tensor]:
    for frames in batches(epoch):
        step(frames)
        yield frames


def _step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype,
    device: torch.device, own: bool, frames: Tensor,
) -> None:  # fmt: skip
    clip = to_video(frames, MEAN, STD, device)
    networks.train_once(model, optimizer, clip if own else clip.contiguous(), dtype)


if __name__ == "__main__":
    typer.run(from_files)
