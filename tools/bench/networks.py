"""The networks of the benchmarks, ours and those of other libraries, and their training steps."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from videoattn.attention import insert_attention
from videoattn.engine.precision import autocast
from videoattn.recipe.config import ModelConfig
from videoattn.recipe.model import make_model

POSITIONS = ((2, 1), (2, 3), (3, 1), (3, 3), (3, 5))
"""(stage, block), each after which the non-local paper inserts one of five blocks in an R50."""

Step = Callable[[], None]


def ours(name: str) -> nn.Module:
    """Returns our network: "i3d_r50_nl" (five non-local blocks), slow_r50, tsn_r50 or tsm_r50."""
    if name.startswith("ts"):
        options = {"shift_div": 8} if name == "tsm_r50" else {}
        return make_model(ModelConfig("tsn_r50", options=options), 400)
    attention = "non_local" if name.endswith("_nl") else None
    return make_model(name.removesuffix("_nl"), 400, attention=attention)


def theirs(name: str) -> nn.Module:
    """Returns pytorchvideo's network; for "..._nl" with its own non-local blocks, for "tsn_r50"
    torchvision's ResNet, for "tsm_r50" the same with mmaction2's shift.

    Raises:
        ImportError: If pytorchvideo is not installed.
    """
    if name.startswith("ts"):
        return Tsn(shift=name == "tsm_r50")
    from pytorchvideo.layers.nonlocal_net import create_nonlocal
    from pytorchvideo.models import hub

    model: nn.Module = getattr(hub, name.removesuffix("_nl"))(pretrained=False)
    blocks: Any = model.blocks
    blocks[-1].pool = nn.AdaptiveAvgPool3d(1)  # its pool needs 8 frames
    if name.endswith("_nl"):

        def block(channels: int) -> nn.Module:
            made: nn.Module = create_nonlocal(
                dim_in=channels, dim_inner=channels // 2, pool_size=(1, 2, 2), norm=nn.BatchNorm3d
            )
            return made

        # pytorchvideo's blocks are stem, layer1, pool, layer2, ...
        insert_attention(model, block, [f"blocks.{a + 1}.res_blocks.{b}" for a, b in POSITIONS])
    return model


class Tsn(nn.Module):
    """A TSN or TSM as in mmaction2: a 2-D network of images (N T, C, H, W). Before the first
    convolution of each block, the shift takes an eighth of the channels from the next frame, and
    another eighth from the previous frame."""

    def __init__(self, *, shift: bool) -> None:
        import torchvision  # here: a mismatched build can only be imported after videoattn

        super().__init__()
        self.net = torchvision.models.resnet50(num_classes=400)
        stages = (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4)
        for stage in stages if shift else ():
            for block in stage:
                block.conv1.register_forward_pre_hook(self._shift)

    def forward(self, x: Tensor) -> Tensor:
        self.num_frames = x.shape[2]
        logits: Tensor = self.net(x.transpose(1, 2).flatten(0, 1))
        return logits.unflatten(0, (-1, self.num_frames)).mean(1)

    def _shift(self, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        x = inputs[0].unflatten(0, (-1, self.num_frames))
        fold = x.shape[2] // 8
        y = torch.zeros_like(x)
        y[:, :-1, :fold] = x[:, 1:, :fold]
        y[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        y[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return y.flatten(0, 1)


def training_step(
    model: nn.Module, clip: Tensor, dtype: torch.dtype, *, compile: str | None = None
) -> Step:
    """Returns a function that takes an SGD step on a clip; `compile` is a mode of torch.compile."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-4, momentum=0.9)
    run: Callable[[Tensor], Tensor] = model
    if compile is not None:
        run = torch.compile(model, mode=compile)
    return partial(train_once, run, optimizer, clip, dtype)


def train_once(
    run: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    clip: Tensor,
    dtype: torch.dtype,
) -> None:
    """Takes an optimizer step on clips (N, C, T, H, W) with arbitrary labels."""
    labels = torch.arange(len(clip), device=clip.device) % 400
    optimizer.zero_grad(set_to_none=True)
    with autocast(dtype, clip.device):
        logits = run(clip)
    nn.functional.cross_entropy(logits.float(), labels).backward()
    optimizer.step()


def seconds(step: Step, device: torch.device) -> float:
    """Returns the time of one step, in seconds."""
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def in_turns(
    steps: Mapping[str, Step], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Returns the seconds of each side's steps. The sides take turns; the first turn, which
    allocates memory and tunes kernels, is left out."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            taken = seconds(step, device)
            if turn:
                times[name].append(taken)
    return times


def against(times: Sequence[float], own: Sequence[float]) -> tuple[str, ...]:
    """Returns the median, least and largest time, and the median of the ratios to our times."""
    ratio = statistics.median(a / b for a, b in zip(times, own, strict=True))
    stats = (statistics.median(times), min(times), max(times))
    return *(f"{x:.3f}" for x in stats), f"{ratio:.2f}"


def machine() -> str:
    """Returns the load, the number of threads and torch's version, for the note below a table."""
    load = f"load {os.getloadavg()[0]:.1f}, " if hasattr(os, "getloadavg") else ""
    return f"{load}{torch.get_num_threads()} threads, torch {torch.__version__}"
