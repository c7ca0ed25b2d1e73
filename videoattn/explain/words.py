"""Writes the sentences of sheets and pages: where a query looks, and the resolution of the map.

`explorer/words.js` writes the same sentences; tests compare them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from videoattn.attention.maps import PairwiseMap
from videoattn.explain.geometry import cells_of_frames, frame_shares
from videoattn.explain.render import number_text
from videoattn.types import Grid

SINK = 0.1
"""A place is called a sink if at least this fraction of all queries look at it most."""
READABLE = 49
"""A map with fewer places over a frame is too coarse to show shapes."""


def shares_of_frames(weights: Tensor, num_frames: int) -> tuple[list[float], list[str]]:
    """Returns each frame's share of the weight, as a number and as text."""
    shares = frame_shares(weights, num_frames)
    return shares, [_percent(share) for share in shares]


def grid_note(grid: tuple[int, ...], clip: tuple[int, ...]) -> str:
    """Returns a sentence about the part of a clip (T, H, W) that each place of a grid covers."""
    frames, places = clip[0] / grid[0], grid[1] * grid[2]
    amount = "all of the frame" if places == 1 else f"{100 / places:.2g} % of the frame"
    text = f"{grid[1]} \u00d7 {grid[2]} places over the frame, {grid[0]} over time"
    text += f": each covers {amount}" + (f" and {frames:.3g} frames" if frames > 1 else "")
    return f"{text}; too coarse to show shapes" if places < READABLE else text


def describe_row(
    found: PairwiseMap,
    row: int,
    *,
    name: str,
    frame: int,
    numbers: Sequence[str],
    strongest: Tensor | None = None,
) -> str:
    """Returns sentences about where a query of one clip looks.

    Args:
        row: The row of the query.
        name: The map's name.
        frame: The frame of the query in the clip.
        numbers: The number of each frame, as labels show it.
        strongest: For each key, the fraction of queries whose strongest key it is (`summarize`).
    """
    weights = found.weights[0, row]
    t, y, x = found.queries[row].tolist()
    query = (t * found.grid_q[1] + y) * found.grid_q[2] + x
    moments, height, width = weights.shape
    cells = cells_of_frames(len(numbers), moments)
    mass = weights.abs().double().flatten(1).sum(1)
    total = float(mass.sum())
    shares = mass / total if total else torch.full_like(mass, 1 / moments)
    most = int(shares.argmax())
    flat = weights.flatten()
    peak = int(flat.abs().argmax())
    visible = int((flat != 0).sum()) if found.kind == "local" else flat.numel()
    where = f"{_place(peak, height, width)} of {_moment(peak // (height * width), cells, numbers)}"
    value = float(flat[peak])
    if found.normalized:
        verb, amount = "looks mostly at", f"{number_text(value * visible)} times the uniform weight"
    else:
        verb, amount = "responds mostly to", f"a response of {number_text(value)}"
    text = (
        f"Frame {numbers[frame]}, {_place(query, *found.grid_q[1:])} of {name} {verb} "
        f"{_moment(most, cells, numbers)} ({_percent(float(shares[most]))}). Its strongest place, "
        f"{where}, has {amount}."
    )
    if peak == _key_of(query, found.grid_q, found.grid_k):
        text += " That is the query's own place."
    if strongest is not None and float(strongest[peak]) >= SINK:
        text += f" It is a sink: {_percent(float(strongest[peak]))} of all queries look here."
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _place(number: int, height: int, width: int) -> str:
    return f"row {number // width % height + 1}, column {number % width + 1}"


def _moment(moment: int, cells: Sequence[int], numbers: Sequence[str]) -> str:
    covered = [number for number, cell in zip(numbers, cells, strict=True) if cell == moment]
    first, last = covered[0], covered[-1]
    return f"frame {first}" if first == last else f"frames {first} to {last}"


def _key_of(query: int, grid_q: Grid, grid_k: Grid) -> int:
    """Returns the key whose cell holds the center of a query's cell."""
    _, height, width = grid_q
    cell = (query // (height * width), query // width % height, query % width)
    t, y, x = ((2 * at + 1) * k // (2 * q) for at, k, q in zip(cell, grid_k, grid_q, strict=True))
    return (t * grid_k[1] + y) * grid_k[2] + x
