"""`videoattn bench`: how fast, as ratios against a baseline in the same run."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.table import Table
from torch import Tensor, nn

from videoattn.attention import NonLocal, insert_attention
from videoattn.attention.positions import published_positions
from videoattn.engine.parallel import resolve_device
from videoattn.engine.precision import autocast, resolve_precision
from videoattn.models.resnet3d import ResNet3d
from videoattn.recipe.run import out

Step = Callable[[], None]


def bench_train_step(
    *, device: str = "auto", batch_size: int = 2, num_frames: int = 8, size: int = 224,
    num_rounds: int = 5,
) -> float:  # fmt: skip
    """I3D-R50 with five non-local blocks: our training step beside pytorchvideo's, in turns.

    Ours is what `videoattn train` runs: precision auto, channels-last memory. Theirs is
    pytorchvideo's network with its own non-local blocks at the same places, float32, in PyTorch's
    default memory layout. Returns their median time over ours.
    """
    place = resolve_device(device)
    clip = torch.randn(batch_size, 3, num_frames, size, size, device=place)
    labels = torch.arange(batch_size, device=place)
    dtype = resolve_precision("auto", place)
    ours = _step(
        _ours().to(place, memory_format=torch.channels_last_3d),  # type: ignore[call-overload]
        clip.to(memory_format=torch.channels_last_3d), labels, dtype,
    )  # fmt: skip
    theirs = _step(_pytorchvideo().to(place), clip, labels, torch.float32)
    times: dict[str, list[float]] = {"videoattn": [], "pytorchvideo": []}
    for turn in range(num_rounds + 1):
        for name, step in (("videoattn", ours), ("pytorchvideo", theirs)):
            seconds = _time(step, place)
            if turn:  # the first of each allocates and tunes
                times[name].append(seconds)
    table = Table("", "arithmetic", "seconds a step: median", "min", "max")
    for name, arithmetic in (("videoattn", str(dtype)), ("pytorchvideo", "torch.float32")):
        values = (f(times[name]) for f in (statistics.median, min, max))
        table.add_row(name, arithmetic, *(f"{value:.3f}" for value in values))
    ratio = statistics.median(times["pytorchvideo"]) / statistics.median(times["videoattn"])
    table.caption = (
        f"I3D-R50 non-local, batch {batch_size}, {num_frames}x{size}x{size}, SGD step on {place}, "
        f"{torch.get_num_threads()} threads, {num_rounds} rounds in turns; "
        f"pytorchvideo / videoattn: {ratio:.2f}"
    )
    out.print(table)
    return ratio


def _ours() -> nn.Module:
    model = ResNet3d("i3d", depth=50, num_classes=400)
    insert_attention(model, NonLocal, published_positions(model, model.info), name="non_local")
    return model


def _pytorchvideo() -> nn.Module:
    try:
        from pytorchvideo.layers.nonlocal_net import create_nonlocal
        from pytorchvideo.models.hub import i3d_r50
    except ImportError as error:
        raise ImportError(
            "the baseline is pytorchvideo, which is not installed; install the extra: "
            "pip install 'videoattn[pytorchvideo]'"
        ) from error
    model: nn.Module = i3d_r50(pretrained=False)

    def block(channels: int) -> nn.Module:
        made: nn.Module = create_nonlocal(
            dim_in=channels, dim_inner=channels // 2, pool_size=(1, 2, 2), norm=nn.BatchNorm3d
        )
        return made

    # The same places: `published_positions` of our I3D-R50, in pytorchvideo's names.
    after = [f"blocks.{a}.res_blocks.{b}" for a, b in ((3, 1), (3, 3), (4, 1), (4, 3), (4, 5))]
    insert_attention(model, block, after)
    return model


def _step(model: nn.Module, clip: Tensor, labels: Tensor, dtype: torch.dtype) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    model.train()
    return partial(_train_once, model, optimizer, clip, labels, dtype)


def _train_once(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip: Tensor, labels: Tensor,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    optimizer.zero_grad(set_to_none=True)
    with autocast(dtype, clip.device):
        scores = model(clip)
    nn.functional.cross_entropy(scores.float(), labels).backward()
    optimizer.step()


def _time(step: Step, device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
