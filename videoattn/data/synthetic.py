"""Generates the demo's dataset: H.264 clips of eight motions that no single frame reveals.

A textured object moves left, right, up or down, turns either way, grows or shrinks. Behind it are
smaller objects that rest or drift, and a panning, textured background. Four pairs of classes
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
from jaxtyping import Float
from torch import Tensor

from videoattn.data.pictures import SIZE, background, object_picture, paint
from videoattn.errors import one_of
from videoattn.files import file_url
from videoattn.types import Frames

Split = Literal["train", "test"]

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

# Smallest and largest change of a state in a clip. Size is the log of the radius, angle in radians.
TRAVEL = {"x": (0.6, 1.0), "y": (0.6, 1.0), "size": (0.45, 0.75), "angle": (1.8, 3.0)}


class DemoClip(NamedTuple):
    """A clip before it is encoded, and the masks of the visible parts of its objects.

    Args:
        frame_rate: Frames per second.
        mask: The share of each pixel that the object covers, 0 to 1, if requested.
        distractors: The same for each distractor, and last for the second object, if there is one.
    """

    frames: Frames
    frame_rate: int
    mask: Float[Tensor, "T H W"] | None = None
    distractors: Float[Tensor, "D T H W"] | None = None


def write_demo_clips(
    root: Path,
    *,
    seed: int = 0,
    num_train_per_class: int = 60,
    num_test_per_class: int = 20,
    num_threads: int = 2,
    on_clip: Callable[[Path], object] = lambda path: None,
) -> list[Path]:
    """Writes `root/{train,test}/<class>/<number>.mp4`, and returns the paths.

    Args:
        seed: The same seed writes the same frames.
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
        encode_clip(path, demo_clip(name, seed=seed, split=split, number=number))
        return path

    with ThreadPoolExecutor(num_threads) as pool:
        for path in pool.map(write, jobs):
            on_clip(path)
    return [path for path, *_ in jobs]


def demo_clip(
    motion: str | tuple[str, str],
    *,
    seed: int,
    split: Split,
    number: int,
    with_mask: bool = False,
    motion_window: tuple[float, float] = (0.0, 1.0),
    second: str | None = None,
) -> DemoClip:
    """Returns a clip as a pure function of the arguments.

    Args:
        motion: One motion, or two that change different states.
        with_mask: Also return the masks. The frames are the same.
        motion_window: Start and end of the motion, as fractions of the clip.
        second: The motion of another object, of half the size, which the first one covers.

    Raises:
        ValueError: If a motion is unknown.
    """
    first = (motion,) if isinstance(motion, str) else motion
    for name in (*first, second) if second else first:
        one_of("motion", name, MOTIONS)
    states, rng = _draw_object(motion, seed, split, number, motion_window)
    picture = background(len(states["x"]), rng)
    objects = []
    for _ in range(int(rng.integers(2, 5))):
        objects.append((object_picture(rng), _drift(len(picture), rng)))
    last = object_picture(rng), states
    if second:
        other = np.random.default_rng([seed, 9, list(MOTIONS).index(second), number])
        moving = draw_states(second, num_frames=len(picture), rng=other)
        moving["size"] = moving["size"] + np.log(0.5)
        objects.append((object_picture(other), moving))
    masks: list[Tensor] = []
    for patch, moves in (*objects, last):
        alpha = paint(picture, patch, moves)
        masks = [mask * (1 - alpha) for mask in masks] + [alpha] if with_mask else []
    picture.mul_(255).round_().clamp_(0, 255)
    frames = picture.to(torch.uint8, memory_format=torch.channels_last)
    clip = DemoClip(frames, int(rng.choice(FRAME_RATES)))
    if with_mask:
        clip = clip._replace(mask=masks[-1], distractors=torch.stack(masks[:-1]))
    return clip


def object_centers(motion: str, *, seed: int, split: Split, number: int) -> Tensor:
    """Returns the center of the object in each frame of a clip, (T, 2): x and y in pixels."""
    states, _ = _draw_object(motion, seed, split, number)
    return (torch.stack((states["x"], states["y"]), dim=1) + 1) * (SIZE / 2)


def draw_states(
    motion: str | tuple[str, str],
    *,
    num_frames: int,
    rng: np.random.Generator,
    window: tuple[float, float] = (0.0, 1.0),
) -> dict[str, Tensor]:
    """Draws the object's states, each (T,): center "x" and "y", log "size", and "angle" in radians.

    A motion and its opposite, drawn with the same generator, are each other's time reversal.

    Args:
        window: Start and end of the motion, as fractions of the clip.
    """
    signs = dict(MOTIONS[name] for name in ((motion,) if isinstance(motion, str) else motion))
    progress = torch.linspace(-0.5, 0.5, num_frames)
    if window != (0.0, 1.0):
        start, end = window
        progress = ((progress + 0.5 - start) / (end - start)).clamp(0, 1) - 0.5
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
        still = torch.full((num_frames,), resting)
        moment = signs[name] * progress if name in signs else still
        states[name] = middle[name] + travel * moment
    return states


def encode_clip(path: Path, clip: DemoClip) -> None:
    """Writes an H.264 file, and creates its folder. The same frames give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(file_url(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(clip.frame_rate))
        stream.height, stream.width = clip.frames.shape[2:]
        stream.pix_fmt = "yuv420p"
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


def _draw_object(
    motion: str | tuple[str, str],
    seed: int,
    split: Split,
    number: int,
    window: tuple[float, float] = (0.0, 1.0),
) -> tuple[dict[str, Tensor], np.random.Generator]:
    """Draws the states of a clip's object, and returns the generator that draws the rest."""
    first, *second = (motion,) if isinstance(motion, str) else motion
    order = list(MOTIONS)
    key = [seed, ("train", "test").index(split), order.index(first), number]
    key += [order.index(name) for name in second]
    rng = np.random.default_rng(key)
    num_frames = int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1))
    return draw_states(motion, num_frames=num_frames, rng=rng, window=window), rng


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
