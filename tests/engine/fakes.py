"""Tiny models and in-memory data, used in place of real ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from videoattn.engine.checkpoint import CheckpointMeta
from videoattn.engine.state import RunSettings
from videoattn.engine.step import OptimSettings
from videoattn.types import Batch, Failure, ModelInfo

NUM_CLASSES = 4


class TinyNet(nn.Module):
    """One convolution, dropout, and a classifier: (N, 3, T, H, W) -> (N, K)."""

    info = ModelInfo("fc")

    def __init__(self, *, dropout: float = 0.0, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 8, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().amax(dim=(2, 3, 4))
        return self.fc(self.dropout(x))


class PoisonedNet(TinyNet):
    """Returns NaN for a clip without contrast; if `in_gradient`, the logits are finite and the
    gradient is not."""

    def __init__(self, *, in_gradient: bool = False) -> None:
        super().__init__()
        self.in_gradient = in_gradient

    def forward(self, x: Tensor) -> Tensor:
        if self.in_gradient:
            return super().forward(x) + (0.0 * self.fc.bias.sum()).abs().sqrt()
        contrast = x.std(dim=(1, 2, 3, 4))[:, None]
        return super().forward(x) * contrast / contrast


def tiny_net(*, dropout: float = 0.0, seed: int = 0, num_classes: int = NUM_CLASSES) -> TinyNet:
    torch.manual_seed(seed)
    return TinyNet(dropout=dropout, num_classes=num_classes)


def to_video(frames: Tensor) -> Tensor:
    video = frames.float().div(127.5).sub(1.0).transpose(1, 2)
    return video.contiguous(memory_format=torch.channels_last_3d)


def clip(index: int, *, num_views: int = 1) -> Tensor:
    """Returns noise (V, T, C, H, W) that depends on the index only."""
    generator = torch.Generator().manual_seed(1000 + index)
    shape = (num_views, 3, 3, 6, 6)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@dataclass
class FakeBatches:
    """`num_samples` clips, sharded over ranks and shuffled by epoch as in the real loader."""

    num_samples: int = 8
    batch_size: int = 4
    num_views: int = 1
    rank: int = 0
    world_size: int = 1
    shuffle: bool = True
    failing: tuple[int, ...] = ()
    blank: tuple[int, ...] = ()  # clips of one gray, for which PoisonedNet divides by zero
    unlabeled: tuple[int, ...] = ()
    stop_at: tuple[int, int] | None = None  # (epoch, batch) where a crash is simulated

    def __len__(self) -> int:
        return -(-self.num_samples // (self.batch_size * self.world_size))

    def epoch(self, epoch: int, skip_batches: int = 0) -> Iterator[Batch]:
        order = torch.arange(self.num_samples)
        if self.shuffle:
            generator = torch.Generator().manual_seed(epoch)
            order = torch.randperm(self.num_samples, generator=generator)
        per_step = self.batch_size * self.world_size
        for number in range(skip_batches, len(self)):
            if self.stop_at == (epoch, number):
                raise KeyboardInterrupt
            own = order[number * per_step : (number + 1) * per_step][self.rank :: self.world_size]
            yield self.batch(own.tolist())

    def batch(self, indices: list[int]) -> Batch:
        good = [index for index in indices if index not in self.failing]
        frames = [
            clip(index, num_views=self.num_views) * (index not in self.blank) for index in good
        ]
        labels = [-1 if index in self.unlabeled else index % NUM_CLASSES for index in good]
        return Batch(
            torch.stack(frames) if frames else clip(0)[:0, None].expand(0, 1, 3, 3, 6, 6),
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(good, dtype=torch.int64),
            tuple(Failure(index, f"{index}.mp4", "broken") for index in set(indices) - set(good)),
        )


def about() -> CheckpointMeta:
    return {
        "config": {"model": {"name": "tiny"}},
        "class_names": [f"class {number}" for number in range(NUM_CLASSES)],
        "preprocessing": {"mean": [0.5, 0.5, 0.5]},
    }


def run_in(
    folder: Path, *, log_every_steps: int = 1, save_every_steps: int | None = None
) -> RunSettings:
    return RunSettings(
        folder=folder,
        meta=about(),
        describe=lambda index: f"clips/{index}.mp4",
        log_every_steps=log_every_steps,
        save_every_steps=save_every_steps,
    )


def optim_settings(*, lr: float = 0.05, accumulate_steps: int = 1) -> OptimSettings:
    return OptimSettings(
        lr_at=lambda step: lr * 0.97**step,
        accumulate_steps=accumulate_steps,
        clip_norm=5.0,
        precision="float32",
    )


def norms(model: nn.Module) -> dict[str, Tensor]:
    """Returns two auxiliary losses of a TinyNet."""
    assert isinstance(model.fc, nn.Linear)
    assert isinstance(model.conv, nn.Conv3d)
    return {"wide": model.fc.weight.square().sum(), "deep": model.conv.weight.abs().mean()}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
