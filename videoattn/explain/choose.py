"""Queries for a clip when nobody names one: the positions that receive the most attention."""

import torch

from videoattn.attention.record import PairwiseMap, Query
from videoattn.explain.geometry import cell_centre

SPACE_APART = 0.25  # of the shorter side of the frame
TIME_APART = 0.5  # of the clip


def choose_queries(
    attention_map: PairwiseMap,
    clip: tuple[int, int, int],
    *,
    count: int = 3,
    sample: int = 0,
) -> list[Query]:
    """The (frame, y, x) of a clip of (T, H, W) that receive the most attention, most first.

    Greedy non-maximum suppression: two of them are a quarter of the frame or half of the clip
    apart (or lie on the ellipse between), so that their pictures differ; a small grid may hold
    fewer than `count`. Each is the pixel at its key cell's centre.

    Raises:
        ValueError: the map was recorded without what its positions receive; no such sample.
    """
    if attention_map.received is None:
        raise ValueError(
            "attention map: what each position receives was not recorded; use "
            "record_attention(model, received=True), or name a query"
        )
    if not 0 <= sample < len(attention_map.received):
        raise ValueError(
            f"sample {sample} is not in the attention map; it holds "
            f"{len(attention_map.received)}, counted from 0: choose one of those"
        )
    received = attention_map.received[sample].flatten()
    frames, height, width = attention_map.grid_k
    shorter = min(clip[1], clip[2])
    chosen: list[Query] = []
    for index in torch.argsort(received, descending=True, stable=True).tolist():
        cell = (index // (height * width), index // width % height, index % width)
        centre = cell_centre(cell, (frames, height, width), clip)
        candidate = (centre.frame, int(centre.y), int(centre.x))
        if all(_apart(candidate, other, clip[0], shorter) for other in chosen):
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


def _apart(a: Query, b: Query, num_frames: int, shorter: int) -> bool:
    time = (a[0] - b[0]) / (TIME_APART * num_frames)
    y, x = ((a[axis] - b[axis]) / (SPACE_APART * shorter) for axis in (1, 2))
    return time**2 + y**2 + x**2 >= 1
