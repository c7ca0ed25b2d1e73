"""Draws clips of diagnostic tasks, with the ground truth of where a network has to look.

- match: a glyph in a white frame, the cue; a gap without glyphs; then a glyph in each quadrant.
  The class is the quadrant of the glyph that equals the cue.
- match_unmarked: the same, but the cue has no white frame.
- cue: the clips of match; the class is the identity of the cue. Networks without attention learn
  it; their weights can initialize the training on match.
- track: equal dots on paths that cross. One is marked in the first two frames; in the last two, the
  quadrants are colored. The class is the color under the marked dot.
- order: flashes of a red disc and a cyan diamond, at least 8 frames apart, with other glyphs
  between them. The class is the first of the two.
- still: a textured object that does not move. The class is its texture.

Clips have 16 frames by default. A glyph is one of n identities: color and shape.
Coordinates are (x, y) from -1 to 1 with y pointing down, as in `synthetic`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from videoattn.data.pictures import (
    SHAPES,
    Canvas,
    background,
    color,
    glyph_picture,
    object_picture,
)
from videoattn.data.synthetic import Split
from videoattn.errors import one_of
from videoattn.types import Frames

NUM_FRAMES, SIDE, FRAME_RATE = 16, 128, 16
COLORS, GLYPHS = 8, 6  # the last of SHAPES is the frame of a cue
MOST_IDENTITIES = COLORS * GLYPHS
QUADRANTS = {
    "bottom_left": (-0.5, 0.5),
    "bottom_right": (0.5, 0.5),
    "top_left": (-0.5, -0.5),
    "top_right": (0.5, -0.5),
}
"""Class -> the center (x, y) of its quadrant."""
REGIONS = {"blue": (0.2, 0.3, 1.0), "green": (0.2, 0.9, 0.3), "red": (1.0, 0.25, 0.2),
           "yellow": (1.0, 0.9, 0.2)}  # fmt: skip
TEXTURES = {"checks": 1, "dots": 2, "rings": 3, "stripes": 0}
EVENTS = {"cyan_diamond_first": 4, "red_disc_first": 0}
"""Class -> the identity whose flash is first."""
TASKS: dict[str, tuple[str, ...]] = {
    "match": tuple(QUADRANTS),
    "match_unmarked": tuple(QUADRANTS),
    "track": tuple(REGIONS),
    "order": tuple(EVENTS),
    "still": tuple(TEXTURES),
    "cue": tuple(f"identity_{number}" for number in range(COLORS)),
}
"""Task -> its classes, sorted like class folders."""
GAPS = {"match": (6, 42), "match_unmarked": (6, 42), "track": (4, 12)}
"""Task -> its frames outside of the gap, and the longest gap."""

CUE, MARKED, COLORED = slice(0, 3), slice(0, 2), slice(-2, None)
FLASH, APART = 2, 8  # frames of a flash; from the first flash to the second

Pixel = tuple[int, int, int]  # (frame, y, x)


class TaskClip(NamedTuple):
    """A clip and its ground truth.

    Args:
        frames: (T, 3, S, S), before they are encoded.
        evidence: Whether a pixel shows what the query must find, (T, S, S).
        distractors: Whether a pixel shows what could be mistaken for it, (T, S, S).
        query: The pixel whose row of attention is compared with the evidence.
        wrong_queries: Pixels of the other glyphs (`match`) or dots (`track`) in the last frame.
    """

    frames: Frames
    evidence: Tensor
    distractors: Tensor
    query: Pixel
    wrong_queries: tuple[Pixel, ...] = ()


def task_clip(
    task: str,
    label: int,
    *,
    number: int,
    split: Split = "train",
    seed: int = 0,
    identities: int = COLORS,
    dots: int = 4,
    gap: int | None = None,
) -> TaskClip:
    """Returns a clip as a pure function of the arguments.

    Args:
        task: A name in `TASKS`.
        label: The index of the class.
        number: The number of the clip in its split.
        identities: `match`, `match_unmarked` and `cue`: the number of different glyphs, 4 to 48.
        dots: `track`: the number of dots, 2, 4 or 8.
        gap: `match` and `match_unmarked`: the number of frames without glyphs, 1 to 42, 10 if
            None. `track`: the number of frames without mark and colors, 1 to 12, 12 if None.

    Raises:
        ValueError: If the task does not exist, or `identities`, `dots` or `gap` is out of range.
    """
    classes = task_classes(task, identities)
    if dots not in (2, 4, 8):
        raise ValueError(f"dots: got {dots}; choose from 2, 4, 8")
    if not 0 <= label < len(classes):
        raise ValueError(f"label: got {label}; need 0 to {len(classes) - 1}")
    key = [seed, list(TASKS).index(task), ("train", "test").index(split), number, label]
    rng = np.random.default_rng(key)
    canvas = Canvas(background(_num_frames(task, gap), rng, SIDE))
    match task:
        case "match" | "match_unmarked":
            chosen = rng.choice(identities, 4, replace=False).tolist()
            queries = _match(canvas, rng, classes[label], chosen, task == "match")
        case "cue":
            queries = _cue(canvas, rng, label, identities)
        case "track":
            queries = _track(canvas, rng, classes[label], dots)
        case "order":
            queries = _order(canvas, rng, classes[label])
        case _:
            queries = _still(canvas, rng, classes[label])
    pixels = canvas.picture.mul(255).round_().clamp_(0, 255).to(torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    query, *wrong = ((t, int((y + 1) * SIDE / 2), int((x + 1) * SIDE / 2)) for t, x, y in queries)
    evidence, distractors = canvas.mask("evidence"), canvas.mask("distractors")
    return TaskClip(pixels, evidence, distractors, query, tuple(wrong))


def task_classes(task: str, identities: int = COLORS) -> tuple[str, ...]:
    """Returns the classes of a task. Those of `cue` are the identities, 4 to 48."""
    classes = TASKS[one_of("task", task, TASKS)]
    if not 4 <= identities <= MOST_IDENTITIES:
        raise ValueError(f"identities: got {identities}; need 4 to {MOST_IDENTITIES}")
    if task != "cue":
        return classes
    digits = len(str(identities - 1))
    return tuple(f"identity_{number:0{digits}}" for number in range(identities))


def _num_frames(task: str, gap: int | None) -> int:
    if gap is None:
        return NUM_FRAMES
    if task not in GAPS:
        raise ValueError(f"gap: {task} has no gap; leave it out")
    shown, longest = GAPS[task]
    if not 1 <= gap <= longest:
        raise ValueError(f"gap: got {gap}; {task} needs 1 to {longest}")
    return shown + gap


def identity_picture(identity: int, brightness: float = 0.95) -> Tensor:
    """Returns the glyph of an identity, (4, P, P): one of 8 colors, and one of 6 shapes.

    The first 8 identities differ in color, the first 24 have 3 shapes of each color.
    """
    hue, row = identity % COLORS, identity // COLORS
    return glyph_picture((hue + row) % GLYPHS, color(hue / COLORS, 0.95, brightness))


_Queries = list[tuple[int, float, float]]  # (frame, x, y): the query, then wrong ones


def _match(
    canvas: Canvas, rng: np.random.Generator, name: str, chosen: list[int], marked: bool
) -> _Queries:
    """Draws identity chosen[0] as the cue and in quadrant `name`, the others in other quadrants."""
    end = len(canvas.picture)
    between, candidates = slice(CUE.stop, end - CUE.stop), slice(end - CUE.stop, end)
    cue = _at(*rng.uniform(-0.5, 0.5, 2), size=rng.uniform(0.26, 0.34))
    canvas.draw("evidence", _glyph(chosen[0], rng), _repeat(cue, CUE), CUE)
    if marked:
        frame = cue | {"size": cue["size"] + np.log(1.4)}
        white = glyph_picture(SHAPES.index("frame"), torch.ones(3))
        canvas.draw("evidence", white, _repeat(frame, CUE), CUE)
    for _ in range(int(rng.integers(2, 4))):
        canvas.draw("distractors", object_picture(rng), _move(rng, between), between)
    others = iter(chosen[1:])
    queries: _Queries = []
    for quadrant, center in QUADRANTS.items():
        x, y = (at + rng.uniform(-0.12, 0.12) for at in center)
        state = _repeat(_at(x, y, size=rng.uniform(0.26, 0.34)), candidates)
        is_match = quadrant == name
        queries.insert(0 if is_match else len(queries), (end - 1, x, y))
        role, identity = ("query", chosen[0]) if is_match else ("distractors", next(others))
        canvas.draw(role, _glyph(identity, rng), state, candidates)
    return queries


def _cue(canvas: Canvas, rng: np.random.Generator, identity: int, identities: int) -> _Queries:
    others = rng.permutation([k for k in range(identities) if k != identity])[:3].tolist()
    return _match(canvas, rng, str(rng.choice(list(QUADRANTS))), [identity, *others], True)


def _track(canvas: Canvas, rng: np.random.Generator, name: str, dots: int) -> _Queries:
    regions = [str(region) for region in rng.permutation(list(REGIONS))]
    for region, (x, y) in zip(regions, QUADRANTS.values(), strict=True):
        rows, columns = (slice(*((0, 64) if at < 0 else (64, 128))) for at in (y, x))
        tint = torch.tensor(REGIONS[region])[:, None, None]
        canvas.picture[COLORED, :, rows, columns].lerp_(tint, 0.6)
    # Equally many dots end in each quadrant; two dots end in different quadrants.
    own = regions.index(name)
    ends = [own, *(quadrant for quadrant in rng.permutation(4).tolist() if quadrant != own)]
    centers = [list(QUADRANTS.values())[end] for end in (ends * 2)[:dots]]
    length = len(canvas.picture)
    paths = [_path(rng, np.array(at) + rng.uniform(-0.3, 0.3, 2), length) for at in centers]
    size = torch.full((length,), np.log(rng.uniform(0.11, 0.14)))
    white, black = (glyph_picture(SHAPES.index("disc"), torch.full((3,), v)) for v in (1.0, 0.0))
    mark = glyph_picture(SHAPES.index("disc"), torch.tensor([1.0, 0.1, 0.9]))
    for index in rng.permutation(dots).tolist():
        role = "distractors" if index else "evidence"
        states = paths[index] | {"size": size, "angle": torch.zeros(length)}
        canvas.draw(role, black, states | {"size": size + np.log(1.25)})
        canvas.draw(role, white, states)
        if not index:
            first = {key: state[MARKED] for key, state in states.items()}
            canvas.draw(role, mark, first | {"size": first["size"] - np.log(1.3)}, MARKED)
    canvas.shown["evidence"][-1] = 0  # the query itself
    return [(length - 1, float(path["x"][-1]), float(path["y"][-1])) for path in paths]


def _order(canvas: Canvas, rng: np.random.Generator, name: str) -> _Queries:
    first = int(rng.integers(0, NUM_FRAMES - FLASH - APART + 1))
    second = int(rng.integers(first + APART, NUM_FRAMES - FLASH + 1))
    between = rng.integers(first + FLASH, second - FLASH + 1, int(rng.integers(1, 4)))
    others = [identity for identity in range(COLORS) if identity not in EVENTS.values()]
    for start in between.tolist():
        _flash(canvas, rng, "distractors", int(rng.choice(others)), start)
    identities = EVENTS[name], sum(EVENTS.values()) - EVENTS[name]
    _flash(canvas, rng, "evidence", identities[0], first)
    return [(second, *_flash(canvas, rng, "query", identities[1], second))]


def _still(canvas: Canvas, rng: np.random.Generator, name: str) -> _Queries:
    x, y = rng.uniform(-0.5, 0.5, 2).tolist()
    state = _at(x, y, size=rng.uniform(0.3, 0.45), angle=rng.uniform(-np.pi, np.pi))
    every = slice(0, NUM_FRAMES)
    canvas.draw("evidence", object_picture(rng, TEXTURES[name]), _repeat(state, every))
    return [(NUM_FRAMES - 1, x, y)]


def _glyph(identity: int, rng: np.random.Generator) -> Tensor:
    return identity_picture(identity, rng.uniform(0.85, 1.0))


def _flash(
    canvas: Canvas, rng: np.random.Generator, role: str, identity: int, start: int
) -> tuple[float, float]:
    x, y = rng.uniform(-0.7, 0.7, 2).tolist()
    frames = slice(start, start + FLASH)
    state = _repeat(_at(x, y, size=rng.uniform(0.19, 0.25)), frames)
    canvas.draw(role, _glyph(identity, rng), state, frames)
    return x, y


def _at(x: float, y: float, *, size: float, angle: float = 0.0) -> dict[str, float]:
    return {"x": x, "y": y, "size": float(np.log(size)), "angle": angle}


def _repeat(state: dict[str, float], frames: slice) -> dict[str, Tensor]:
    return {name: torch.full((frames.stop - frames.start,), x) for name, x in state.items()}


def _move(rng: np.random.Generator, frames: slice) -> dict[str, Tensor]:
    """Draws the states of an object that crosses the frame on a line."""
    progress = torch.linspace(0, 1, frames.stop - frames.start)
    (x0, y0), (x1, y1) = rng.uniform(-1, 1, (2, 2))
    state = _at(0.0, 0.0, size=rng.uniform(0.12, 0.2), angle=rng.uniform(-np.pi, np.pi))
    line = {"x": x0 + (x1 - x0) * progress, "y": y0 + (y1 - y0) * progress}
    return _repeat(state, frames) | line


def _path(rng: np.random.Generator, end: np.ndarray, num_frames: int) -> dict[str, Tensor]:
    """Draws the last frames of a smooth path of 16, from anywhere in the frame to `end` (x, y)."""
    progress = torch.linspace(0, 1, NUM_FRAMES)[-num_frames:]
    path = {}
    for name, last in zip(("x", "y"), end.tolist(), strict=True):
        first = rng.uniform(-0.8, 0.8)
        bends = sum(rng.normal(0, 0.3 / k) * torch.sin(np.pi * k * progress) for k in (1, 2, 3))
        path[name] = (first + (last - first) * progress + bends).clamp(-0.85, 0.85)
    return path
