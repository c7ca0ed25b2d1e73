"""Draws the textured objects and backgrounds of synthetic clips."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 112  # height and width of a clip in pixels
_PATCH = 48  # pixels of an object's image: never shrunk more than twice, so that it does not alias
_OVERSAMPLING = 4


def object_picture(rng: np.random.Generator, texture: int | None = None) -> Tensor:
    """Draws a random textured shape with a dark outline: premultiplied RGBA, (4, P, P).

    Args:
        texture: 0 stripes, 1 checks, 2 dots, 3 rings, 4 sectors; random by default.
    """
    y, x = _axes()
    tall = y / rng.uniform(0.65, 0.9)  # longer than wide, so that the outline reveals a turn
    edge = torch.hypot(x, tall) / _outline(torch.atan2(tall, x), rng)  # 1 on the outline
    first, second = _two_colors(rng)
    mixed = torch.where(
        _texture(x, y, rng, texture)[None], first[:, None, None], second[:, None, None]
    )
    # With an off-center spot, no object looks the same after part of a turn.
    spot = torch.hypot(x - 0.45, y) < 0.24
    mixed = torch.where(spot, torch.ones(3, 1, 1) if rng.random() < 0.5 else mixed * 0.15, mixed)
    mixed = torch.where(edge > 0.86, mixed * 0.12, mixed)
    return _patch(mixed, edge < 1)


def glyph_picture(shape: int, rgb: Tensor) -> Tensor:
    """Draws a shape of one color: premultiplied RGBA, (4, P, P).

    Args:
        shape: Index of the shape in `SHAPES`.
        rgb: The color, (3,), 0 to 1.
    """
    y, x = _axes()
    far = torch.maximum(x.abs(), y.abs())
    inside = (
        torch.hypot(x, y) < 0.8,
        far < 0.7,
        (y < 0.65) & (x.abs() < 0.55 * (y + 0.85)),
        (torch.minimum(x.abs(), y.abs()) < 0.28) & (far < 0.85),
        x.abs() + y.abs() < 0.95,
        (torch.hypot(x, y) < 0.85) & (torch.hypot(x, y) > 0.42),
        (far < 0.98) & (far > 0.8),
    )[shape]
    return _patch(rgb[:, None, None].expand(-1, *x.shape), inside)


SHAPES = ("disc", "square", "triangle", "cross", "diamond", "ring", "frame")


def _axes() -> tuple[Tensor, Tensor]:
    """Returns the coordinates y and x of an oversampled image, each (S, S), from -1 to 1."""
    size = _PATCH * _OVERSAMPLING
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return y, x


def _patch(colors: Tensor, inside: Tensor) -> Tensor:
    """Downsamples an image (3, S, S) and its mask (S, S) to a patch of premultiplied RGBA."""
    alpha = inside.float()
    return F.avg_pool2d(torch.cat((colors * alpha, alpha[None])), _OVERSAMPLING)


def _outline(angle: Tensor, rng: np.random.Generator) -> Tensor:
    """Returns the distance of the shape's edge from its center, at most 0.95, at each angle."""
    corners = int(rng.integers(3, 7))
    if rng.random() < 0.5:  # a polygon with cut corners
        within = torch.remainder(angle, 2 * np.pi / corners) - np.pi / corners
        return (0.95 * np.cos(np.pi / corners) * 1.25 / torch.cos(within)).clamp(max=0.95)
    depth = rng.uniform(0.1, 0.25)  # a star or a flower
    return 0.95 * (1 + depth * torch.cos(corners * angle)) / (1 + depth)


def _texture(x: Tensor, y: Tensor, rng: np.random.Generator, kind: int | None) -> Tensor:
    """Draws a boolean pattern: stripes, checks, dots, rings or sectors."""
    turns = rng.uniform(1.0, 1.8)
    waves = torch.sin(np.pi * turns * x), torch.sin(np.pi * turns * y)
    match int(rng.integers(5)) if kind is None else kind:
        case 0:
            return waves[0] > 0
        case 1:
            return waves[0] * waves[1] > 0
        case 2:
            return waves[0].abs() + waves[1].abs() > 1.2
        case 3:
            return torch.sin(2 * np.pi * turns * torch.hypot(x - 0.3, y)) > 0
        case _:
            return torch.sin(int(rng.integers(1, 4)) * torch.atan2(y, x)) > 0


def _two_colors(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draws two saturated colors whose hues differ by at least a quarter of the circle."""
    hue = rng.random()
    other = hue + rng.uniform(0.25, 0.75)
    return color(hue, 0.85, rng.uniform(0.8, 1)), color(other, 0.75, rng.uniform(0.55, 1))


def color(hue: float, saturation: float, value: float) -> Tensor:
    """Returns RGB (3,) for a hue in turns, from a cosine palette, which is smoother than HSV."""
    wheel = 0.5 + 0.5 * torch.cos(2 * np.pi * (hue - torch.tensor([0.0, 1 / 3, 2 / 3])))
    return value * (1 - saturation * (1 - wheel))


def background(num_frames: int, rng: np.random.Generator, size: int = SIZE) -> Tensor:
    """Draws a panning texture of three muted colors, mixed by noise: (T, 3, size, size), 0 to 1."""
    dim, light, third = (color(rng.random(), 0.45, rng.uniform(*v)) for v in _BRIGHTNESS)
    amount, other = (_noise(rng) for _ in range(2))
    canvas = torch.lerp(dim[:, None, None], light[:, None, None], amount)
    canvas = torch.lerp(canvas, third[:, None, None].expand_as(canvas), (other > 0.6) * 0.6)

    progress = torch.linspace(-0.5, 0.5, num_frames)
    pan = []
    for _ in range(2):
        sway = torch.sin(2 * np.pi * (rng.uniform(0.5, 1) * progress + rng.random()))
        pan.append(rng.uniform(-0.3, 0.3) * progress + 0.06 * sway)
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    x = (axis[None, None, :] * 0.7 + pan[0][:, None, None]).expand(-1, size, -1)
    y = (axis[None, :, None] * 0.7 + pan[1][:, None, None]).expand(-1, -1, size)
    grid = torch.stack((x, y), dim=-1)  # at most 0.91, so that it stays on the canvas
    return F.grid_sample(canvas.expand(num_frames, -1, -1, -1), grid, align_corners=False)


_BRIGHTNESS = ((0.15, 0.4), (0.5, 0.8), (0.3, 0.7))


def _noise(rng: np.random.Generator) -> Tensor:
    """Draws bicubic noise in 0 - 1, summed over four scales: (H, W)."""
    total = torch.zeros(1, 1, 160, 160)
    for cells in (4, 9, 20, 45):
        grid = torch.from_numpy(rng.standard_normal((1, 1, cells, cells), dtype=np.float32))
        total += F.interpolate(grid, size=(160, 160), mode="bicubic") * cells**-0.6
    total -= total.min()
    return (total / total.max())[0, 0]


def paint(picture: Tensor, patch: Tensor, states: dict[str, Tensor]) -> Tensor:
    """Draws `patch` (4, P, P), premultiplied RGBA, over `picture` (T, 3, S, S), in place.

    Args:
        states: "x", "y" of the center (-1 to 1), "size" (log half side), "angle" (rad), each (T,).

    Returns:
        The alpha of the object, (T, S, S).
    """
    side = picture.shape[-1]
    rows, columns = (_reach(states[name], states["size"], side) for name in ("y", "x"))
    axis = (torch.arange(side) + 0.5) * (2 / side) - 1
    x = axis[None, None, columns] - states["x"][:, None, None]
    y = axis[None, rows, None] - states["y"][:, None, None]
    scale = torch.exp(-states["size"])[:, None, None]
    cos, sin = (scale * f(states["angle"])[:, None, None] for f in (torch.cos, torch.sin))
    grid = torch.stack((cos * x + sin * y, cos * y - sin * x), dim=-1)  # (T, rows, columns, 2)
    patches = patch.expand(len(picture), -1, -1, -1)
    layer = F.grid_sample(patches, grid, align_corners=False)
    picture[:, :, rows, columns].mul_(1 - layer[:, 3:]).add_(layer[:, :3])
    alpha = torch.zeros_like(picture[:, 0])
    alpha[:, rows, columns] = layer[:, 3]
    return alpha


@dataclass
class Canvas:
    """A picture (T, 3, S, S) that records which pixels show the evidence and the distractors.

    An object covers those that were drawn before it, also in their masks.
    """

    picture: Tensor
    shown: dict[str, Tensor] = field(default_factory=dict)

    def draw(
        self, role: str, patch: Tensor, states: dict[str, Tensor], frames: slice = slice(None)
    ) -> None:
        """Draws an object into some frames.

        Args:
            role: "evidence", "distractors", or another word for objects that are neither.
            states: The states of the object in these frames, as in `paint`.
        """
        alpha = torch.zeros_like(self.picture[:, 0])
        alpha[frames] = paint(self.picture[frames], patch, states)
        for other in self.shown.values():
            other.mul_(1 - alpha)
        before = self.shown.setdefault(role, torch.zeros_like(alpha))
        before.add_(alpha)

    def mask(self, role: str) -> Tensor:
        """Returns the pixels to which objects of the role contribute at least half."""
        return self.shown.get(role, torch.zeros_like(self.picture[:, 0])) >= 0.5


def _reach(center: Tensor, log_size: Tensor, side: int) -> slice:
    """Returns the range of pixels along one axis that the object covers in any frame."""
    radius = torch.exp(log_size) * 1.05  # interpolation blurs the edge by half a patch pixel
    first = ((center - radius).min().item() + 1) * side / 2
    last = ((center + radius).max().item() + 1) * side / 2
    return slice(min(max(int(first), 0), side - 1), min(max(int(last) + 1, 1), side))
