"""A network whose map is known exactly: y = w · x + b."""

import torch
from torch import Tensor, nn

from videoattn.explain.faithful.removal import Hider
from videoattn.types import Grid


class Linear(nn.Module):
    """Logits (N, 2): y = w · x + 0.3, and -y."""

    def __init__(self, size: Grid, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(3, *size, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        y = (x * self.weight).sum((1, 2, 3, 4)) + 0.3
        return torch.stack([y, -y], dim=1)


def linear_case(grid: Grid, pixels: int = 2) -> tuple[Hider, Tensor]:
    """Returns a hider whose cells have `pixels` pixels an axis, and the exact map (T', H', W')."""
    size = (grid[0] * pixels, grid[1] * pixels, grid[2] * pixels)
    model = Linear(size).eval()
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(1, 3, *size, generator=generator, dtype=torch.float64)
    shown = video - video.mean((2, 3, 4), keepdim=True)
    exact = (model.weight * shown[0]).sum(0).detach()
    for axis in range(3):
        exact = exact.unflatten(axis, (grid[axis], pixels)).sum(axis + 1)
    return Hider(model, video, grid, 0, batch_size=64), exact
