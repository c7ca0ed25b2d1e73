"""Generates the demo's dataset: H.264 clips of eight motions that no single frame reveals.

A textured object moves left, right, up or down, turns either way, grows or shrinks. Behind it a
camera pans across a textured background, and smaller objects rest or drift. Four pairs of classes
are each other's time reversal, so that both classes of a pair have the same frames. Every state
(position, size, angle) has the same distribution in all classes: if a state does not change in a
clip, its value is drawn as if the motion were stopped at a random moment.

Coordinates are (x, y) from -1 to 1 with y pointing down, as in `grid_sample`.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videoattn.errors import one_of
from videoattn.files import file_url
from videoattn.types import Frames

Split = Literal["train", "test"]

SIZE = 112  # height and width in pixels
MIN_FRAMES, MAX_FRAMES = 24, 32
FRAME_RATES = (12, 15, 24, 25, 30)

MOTIONS: dict[str, tuple[str, int]] = {
    "grows": ("size", 1),
    "moves_down": ("y", 1),
    "moves_left": ("x", -1),
    "moves_right": ("x", 1),
    "moves_up": ("y", -1),
    "shrinks": ("size", -1),
    "turns_clockwise": ("angle", 1),
    "turns_counter_clockwise": ("angle", -1),
}
"""Class name -> (state that changes, sign of the change), sorted like class folders."""

# Smallest and largest change of a state in a clip. Size is the logarithm of the radius.
TRAVEL = {"x": (0.6, 1.0), "y": (0.6, 1.0), "size": (0.45, 0.75), "angle": (1.8, 3.0)}

_Drawn = tuple[dict[str, Tensor], np.random.Generator]
_PATCH = 48  # pixels of an object's image: never shrunk more than twice, so that it does not alias
_OVERSAMPLING = 4


class DemoClip(NamedTuple):
    """A clip before it is encoded."""

    frames: Frames
    frame_rate: int  # frames per second


def write_demo_clips(
    root: Path,
    *,
    seed: int = 0,
    num_train_per_class: int = 60,
    num_test_per_class: int = 20,
    num_threads: int = 2,
    on_clip: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Writes `root/{train,test}/<class>/<number>.mp4`. The same seed writes the same frames.

    Args:
        on_clip: Called with each finished path, in order, for example to show progress.

    Raises:
        ValueError: If a count is below 1.
    """
    counts: dict[Split, int] = {"train": num_train_per_class, "test": num_test_per_class}
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f"num_{split}_per_class: got {count}; need at least 1")
    jobs = [
        (root / split / name / f"{number:04d}.mp4", split, name, number)
        for split, count in counts.items()
        for name in MOTIONS
        for number in range(count)
    ]

    def write(job: tuple[Path, Split, str, int]) -> Path:
        path, split, name, number = job
        path.parent.mkdir(parents=True, exist_ok=True)
        encode_clip(path, demo_clip(name, seed=seed, split=split, number=number))
        return path

    with ThreadPoolExecutor(num_threads) as pool:
        for path in pool.map(write, jobs):
            if on_clip is not None:
                on_clip(path)
    return [path for path, *_ in jobs]


def demo_clip(motion: str, *, seed: int, split: Split, number: int) -> DemoClip:
    """Returns a clip as a pure function of the arguments.

    Raises:
        ValueError: If the motion is unknown.
    """
    one_of("motion", motion, MOTIONS)
    states, rng = _draw_object(motion, seed, split, number)
    picture = _background(len(states["x"]), rng)
    for _ in range(int(rng.integers(2, 5))):
        _paint(picture, _object_picture(rng), _drift(len(picture), rng))
    _paint(picture, _object_picture(rng), states)
    picture.mul_(255).round_().clamp_(0, 255)
    frames = picture.to(torch.uint8, memory_format=torch.channels_last)
    return DemoClip(frames, int(rng.choice(FRAME_RATES)))


def object_centers(motion: str, *, seed: int, split: Split, number: int) -> Tensor:
    """Returns the center of the object in each frame of a clip, (T, 2): x and y in pixels."""
    states, _ = _draw_object(motion, seed, split, number)
    return (torch.stack((states["x"], states["y"]), dim=1) + 1) * (SIZE / 2)


def draw_states(motion: str, *, num_frames: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Draws the object's states in each frame: center "x" and "y", log "size", "angle" in radians.

    A motion and its opposite, drawn with the same generator, are each other's time reversal.
    """
    changing, sign = MOTIONS[motion]
    progress = torch.linspace(-0.5, 0.5, num_frames)
    middle = {
        "x": rng.uniform(-0.3, 0.3),
        "y": rng.uniform(-0.3, 0.3),
        "size": np.log(0.5) + rng.uniform(-0.2, 0.2),
        "angle": rng.uniform(-np.pi, np.pi),
    }
    states = {}
    for name, (least, most) in TRAVEL.items():
        travel = rng.uniform(least, most)
        resting = rng.uniform(-0.5, 0.5)  # as at a random moment of this motion
        moment = sign * progress if name == changing else torch.full((num_frames,), resting)
        states[name] = middle[name] + travel * moment
    return states


def encode_clip(path: Path, clip: DemoClip) -> None:
    """Writes an H.264 file. The same frames give the same bytes."""
    with av.open(file_url(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(clip.frame_rate))
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.thread_count = 1
        # Without mbtree=0, x264 165 writes other bytes in every call, even with one thread.
        stream.options = {
            "crf": "16",
            "preset": "veryfast",
            "g": "12",
            "flags": "+bitexact",
            "x264-params": "mbtree=0",
        }
        for image in clip.frames.permute(0, 2, 3, 1).numpy():
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _draw_object(motion: str, seed: int, split: Split, number: int) -> _Drawn:
    """Draws the states of a clip's object, and returns the generator that draws the rest."""
    key = [seed, ("train", "test").index(split), list(MOTIONS).index(motion), number]
    rng = np.random.default_rng(key)
    num_frames = int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1))
    return draw_states(motion, num_frames=num_frames, rng=rng), rng


def _drift(num_frames: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Draws a distractor's states: small, anywhere, resting or slower than any moving object."""
    progress = torch.linspace(-0.5, 0.5, num_frames)
    speed = 0.25 if rng.random() < 0.5 else 0.0
    return {
        "x": rng.uniform(-1, 1) + speed * rng.uniform(-1, 1) * progress,
        "y": rng.uniform(-1, 1) + speed * rng.uniform(-1, 1) * progress,
        "size": torch.full((num_frames,), np.log(rng.uniform(0.07, 0.13))),
        "angle": torch.full((num_frames,), rng.uniform(-np.pi, np.pi)),
    }


def _paint(picture: Tensor, patch: Tensor, states: dict[str, Tensor]) -> None:
    """Draws `patch` (RGB times alpha, and alpha) over `picture` (T, 3, H, W), in place."""
    rows, columns = (_reach(states[name], states["size"]) for name in ("y", "x"))
    axis = (torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1
    x = axis[None, None, columns] - states["x"][:, None, None]
    y = axis[None, rows, None] - states["y"][:, None, None]
    scale = torch.exp(-states["size"])[:, None, None]
    cos, sin = (scale * f(states["angle"])[:, None, None] for f in (torch.cos, torch.sin))
    grid = torch.stack((cos * x + sin * y, cos * y - sin * x), dim=-1)  # (T, rows, columns, 2)
    patches = patch.expand(len(picture), -1, -1, -1)
    layer = F.grid_sample(patches, grid, align_corners=False)
    picture[:, :, rows, columns].mul_(1 - layer[:, 3:]).add_(layer[:, :3])


def _reach(center: Tensor, log_size: Tensor) -> slice:
    """Returns the range of pixels along one axis that the object covers in any frame."""
    radius = torch.exp(log_size) * 1.05  # interpolation blurs the edge by half a patch pixel
    first = ((center - radius).min().item() + 1) * SIZE / 2
    last = ((center + radius).max().item() + 1) * SIZE / 2
    return slice(min(max(int(first), 0), SIZE - 1), min(max(int(last) + 1, 1), SIZE))


def _object_picture(rng: np.random.Generator) -> Tensor:
    """Draws a random shape with a random texture of two colors and a dark outline: (4, P, P)."""
    size = _PATCH * _OVERSAMPLING
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    tall = y / rng.uniform(0.65, 0.9)  # longer than wide, so that the outline reveals a turn
    edge = torch.hypot(x, tall) / _outline(torch.atan2(tall, x), rng)  # 1 on the outline
    first, second = _two_colors(rng)
    mixed = torch.where(_texture(x, y, rng)[None], first[:, None, None], second[:, None, None])
    # With an off-center spot, no object looks the same after part of a turn.
    spot = torch.hypot(x - 0.45, y) < 0.24
    mixed = torch.where(spot, torch.ones(3, 1, 1) if rng.random() < 0.5 else mixed * 0.15, mixed)
    mixed = torch.where(edge > 0.86, mixed * 0.12, mixed)
    inside = (edge < 1).float()
    return F.avg_pool2d(torch.cat((mixed * inside, inside[None])), _OVERSAMPLING)


def _outline(angle: Tensor, rng: np.random.Generator) -> Tensor:
    """Returns the distance of the shape's edge from its center, at most 0.95, at each angle."""
    corners = int(rng.integers(3, 7))
    if rng.random() < 0.5:  # a polygon with cut corners
        within = torch.remainder(angle, 2 * np.pi / corners) - np.pi / corners
        return (0.95 * np.cos(np.pi / corners) * 1.25 / torch.cos(within)).clamp(max=0.95)
    depth = rng.uniform(0.1, 0.25)  # a star or a flower
    return 0.95 * (1 + depth * torch.cos(corners * angle)) / (1 + depth)


def _texture(x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
    """Draws a boolean pattern: stripes, checks, dots, rings or sectors."""
    turns = rng.uniform(1.0, 1.8)
    waves = torch.sin(np.pi * turns * x), torch.sin(np.pi * turns * y)
    match int(rng.integers(5)):
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
    return _color(hue, 0.85, rng.uniform(0.8, 1)), _color(other, 0.75, rng.uniform(0.55, 1))


def _color(hue: float, saturation: float, value: float) -> Tensor:
    """Returns RGB for a hue in turns, from the cosine palette, which is smoother than HSV."""
    wheel = 0.5 + 0.5 * torch.cos(2 * np.pi * (hue - torch.tensor([0.0, 1 / 3, 2 / 3])))
    return value * (1 - saturation * (1 - wheel))


def _background(num_frames: int, rng: np.random.Generator) -> Tensor:
    """Draws three muted colors mixed by noise, under a panning camera: (T, 3, H, W)."""
    dim, light, third = (_color(rng.random(), 0.45, rng.uniform(*v)) for v in _BRIGHTNESS)
    amount, other = (_noise(rng) for _ in range(2))
    canvas = torch.lerp(dim[:, None, None], light[:, None, None], amount)
    canvas = torch.lerp(canvas, third[:, None, None].expand_as(canvas), (other > 0.6) * 0.6)

    progress = torch.linspace(-0.5, 0.5, num_frames)
    pan = []
    for _ in range(2):
        sway = torch.sin(2 * np.pi * (rng.uniform(0.5, 1) * progress + rng.random()))
        pan.append(rng.uniform(-0.3, 0.3) * progress + 0.06 * sway)
    axis = (torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1
    x = (axis[None, None, :] * 0.7 + pan[0][:, None, None]).expand(-1, SIZE, -1)
    y = (axis[None, :, None] * 0.7 + pan[1][:, None, None]).expand(-1, -1, SIZE)
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
