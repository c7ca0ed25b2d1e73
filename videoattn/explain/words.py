"""Describes maps in sentences. `explorer/words.js` writes the same ones; tests compare them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from videoattn.attention.maps import GateMap, PairwiseMap, cells
from videoattn.explain.render import cells_of_frames, number_text

SINK = 0.1
"""A place is called a sink if at least this fraction of all queries look at it most."""
MOST_WEIGHTINGS = 4  # of a pooling; if it has more, the most peaked ones are drawn
READABLE = 49  # a map with fewer places over a frame is too coarse to show shapes


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def describe_sheet(
    found: PairwiseMap, num_arrows: int, num_frames: int
) -> tuple[str, str, list[str]]:
    """Returns texts for a sheet: what it shows, the label of its colors, the meaning of its marks.

    Args:
        num_arrows, num_frames: Counts of the arrows and the panels of the sheet.
    """
    local = found.kind == "local"
    where = "each position of the window around it" if local else "each position of every frame"
    colors = "attention, times the uniform weight" + " of its window" * local
    legend = ["ring: the query", *["dashed: its window"] * local]
    if num_arrows:
        legend.append(f"arrows: its {num_arrows} strongest key positions; wider is stronger")
    share = "attention" if found.normalized else "summed absolute response"
    legend.append(f"bars: each frame's share of the {share}")
    if num_frames > found.grid_k[0]:
        frames = num_frames / found.grid_k[0]
        legend.append(f"one key position covers {frames:.3g} frames")
    if not found.normalized:
        return f"The response of the ringed pixel to {where}", "response", legend
    return f"The attention of the ringed pixel to {where}", colors, legend


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
    moments = len(weights)
    covers = cells_of_frames(len(numbers), moments)
    mass = weights.abs().double().flatten(1).sum(1)
    total = float(mass.sum())
    shares = mass / total if total else torch.full_like(mass, 1 / moments)
    most = int(shares.argmax())
    flat = weights.flatten()
    peak = int(flat.abs().argmax())
    visible = int((flat != 0).sum()) if found.kind == "local" else flat.numel()
    ((peak_t, peak_y, peak_x),) = cells(torch.tensor([peak]), found.grid_k).tolist()
    where = f"row {peak_y + 1}, column {peak_x + 1} of {_moment(peak_t, covers, numbers)}"
    value = float(flat[peak])
    if found.normalized:
        verb, amount = "looks mostly at", f"{number_text(value * visible)} times the uniform weight"
    else:
        verb, amount = "responds mostly to", f"a response of {number_text(value)}"
    text = (
        f"Frame {numbers[frame]}, row {y + 1}, column {x + 1} of {name} {verb} "
        f"{_moment(most, covers, numbers)} ({percent(float(shares[most]))}). Its strongest place, "
        f"{where}, has {amount}."
    )
    # The key whose cell holds the center of the query's cell.
    sizes = zip((t, y, x), found.grid_k, found.grid_q, strict=True)
    if [peak_t, peak_y, peak_x] == [(2 * at + 1) * k // (2 * q) for at, k, q in sizes]:
        text += " That is the query's own place."
    if strongest is not None and float(strongest[peak]) >= SINK:
        text += f" It is a sink: {percent(float(strongest[peak]))} of all queries look here."
    return text


def _moment(moment: int, covers: Sequence[int], numbers: Sequence[str]) -> str:
    covered = [number for number, cell in zip(numbers, covers, strict=True) if cell == moment]
    first, last = covered[0], covered[-1]
    return f"frame {first}" if first == last else f"frames {first} to {last}"


def describe_gate(gate_map: GateMap) -> str:
    """Returns the meaning of the weights."""
    kind, channels = gate_map.kind, gate_map.weights.shape[1]
    if gate_map.description:
        return gate_map.description
    if kind == "pooling":
        each = "" if channels == 1 else f", in {channels} weightings"
        if channels > MOST_WEIGHTINGS:
            each += f", of which the {MOST_WEIGHTINGS} most peaked are drawn"
        return f"Attention pooling: the weight of each position in the pooled feature{each}"
    if kind == "mask":
        return f"A mask over the features: the mean over {channels} channels at each position"
    if kind == "box":
        return "Hard attention: the box that is cut out of each frame"
    if kind == "cam":
        return "The contribution of each position of each frame to the score of the class"
    each = {
        "spatial": "position of each frame",
        "temporal": "frame",
        "channel": f"of {channels} channels" + ", per frame" * (gate_map.weights.ndim == 3),
    }[kind]
    if gate_map.identity_value is None:
        return f"{kind.capitalize()} attention: the weight of each {each}"
    return f"A {kind} gate: the factor applied to the features of each {each}"


def gate_noun(gate_map: GateMap) -> str:
    """Returns the noun for one weight of the map, such as "gate"."""
    nouns = {"mask": "mask value", "cam": "contribution to the score"}
    default = "weight" if gate_map.identity_value is None else "gate"
    return "strength" if gate_map.description else nouns.get(gate_map.kind, default)


def grid_note(grid: tuple[int, ...], clip: tuple[int, ...], queries: tuple[int, ...] = ()) -> str:
    """Returns a sentence about the part of a clip (T, H, W) that each place of a grid covers.

    Args:
        queries: The grid of the queries, if there are any. It is mentioned if it differs.
    """
    frames, places = clip[0] / grid[0], grid[1] * grid[2]
    amount = "all of the frame" if places == 1 else f"{100 / places:.2g} % of the frame"
    text = f"{grid[1]} \u00d7 {grid[2]} places over the frame, {grid[0]} over time"
    text += f": each covers {amount}" + (f" and {frames:.3g} frames" if frames > 1 else "")
    if queries and tuple(queries) != tuple(grid):
        text += f"; queries have {queries[1]} \u00d7 {queries[2]} places"
        text += "" if queries[0] == grid[0] else f", {queries[0]} over time"
    return f"{text}; too coarse to show shapes" if places < READABLE else text
