"""Maps that know nothing of the network, or only a part of what a map says.

| baseline | map                                                                      |
| smooth   | a random field with the autocorrelation of a map: blobs of the same size |
| center   | nearness to the middle of the clip                                       |
| motion   | mean absolute difference to the frame before                             |
| frame    | each frame's mean of a map, spread evenly: only its timing               |
"""

import torch
from jaxtyping import Float
from torch import Tensor

from videoattn.explain.truth import cells
from videoattn.types import Grid, Video

Field = Float[Tensor, "t h w"]


def smooth_map(found: Field, generator: torch.Generator) -> Field:
    """Returns a random field with the mean and the circular autocorrelation of a map: its Fourier
    amplitudes with the phases of noise."""
    noise = torch.randn(found.shape, generator=generator, dtype=found.dtype)
    amplitudes, phases = torch.fft.rfftn(found).abs(), torch.fft.rfftn(noise).angle()
    phases[0, 0, 0] = 0.0 if found.sum() >= 0 else torch.pi
    return torch.fft.irfftn(torch.polar(amplitudes, phases), s=found.shape)


def center_map(grid: Grid) -> Field:
    """Returns minus the squared distance to the middle of the clip, in half lengths of each
    axis."""
    t, y, x = ((2 * torch.arange(size) + 1) / size - 1 for size in grid)
    return -(t[:, None, None] ** 2 + y[:, None] ** 2 + x**2)


def motion_map(video: Video, grid: Grid) -> Field:
    """Returns the mean absolute difference to the frame before, 0 in the first frame."""
    change = torch.zeros_like(video[0, 0])
    change[1:] = video[0].diff(dim=1).abs().mean(0)
    return cells(change.cpu(), grid)


def frame_map(found: Field) -> Field:
    """Returns each frame's mean of a map, at all positions of the frame."""
    return found.mean((1, 2), keepdim=True).expand_as(found)
