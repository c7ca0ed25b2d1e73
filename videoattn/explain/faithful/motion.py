"""Compares maps with known motion: clips whose generator knows where the object is."""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from videoattn.attention.maps import PairwiseMap
from videoattn.explain.truth import cells, mass, pointing, pointing_chance
from videoattn.types import Grid

Mask = Float[Tensor, "T H W"]
ON_OBJECT = 0.5
"""A query lies on the object if the object covers at least this share of its cell."""


def place_scores(
    field: Float[Tensor, "t h w"], mask: Mask, distractors: Float[Tensor, "D T H W"]
) -> dict[str, float]:
    """Returns pointing and mass on the object and on distractors, each with its chance."""
    others = distractors.sum(0)
    grid = (field.shape[0], field.shape[1], field.shape[2])
    on_object, area = float(mass(field, mask)), float(mask.double().mean())
    return {
        "pointing": float(pointing(field, mask)),
        "pointing_chance": float(pointing_chance(mask, grid)),
        "mass": on_object,
        "area": area,
        "lift": on_object / area,
        "distractors": float(mass(field, others)),
        "distractors_area": float(others.double().mean()),
    }


def time_scores(field: Float[Tensor, "t h w"], moving: Float[Tensor, " T"]) -> dict[str, float]:
    """Returns the mass in the frames in which the object moves (1 there, else 0), and chance."""
    mask = moving[:, None, None]
    return {"time": float(mass(field, mask)), "time_chance": float(moving.double().mean())}


def rival_scores(field: Float[Tensor, "t h w"], mask: Mask, rival: Mask) -> dict[str, float]:
    """Returns the mass on the object as a share of that on the object and a second one, and the
    share of their areas, which is chance."""
    ours, theirs = float(mass(field, mask)), float(mass(field, rival))
    areas = float(mask.double().sum()), float(rival.double().sum())
    return {
        "right_object": ours / (ours + theirs) if ours + theirs else 0.5,
        "right_object_chance": areas[0] / sum(areas),
    }


def tracking(found: PairwiseMap, mask: Mask) -> dict[str, float] | None:
    """Follows the object with a query on it in each frame (T' of the queries).

    Returns, of the weight of rows in other frames: the share on the object there ("tracking") and
    on the place where the object was in the query's frame ("staying"), each with the share of the
    area, which is chance. None if no query lies on the object.
    """
    on_queries, on_keys = cells(mask, found.grid_q), cells(mask, found.grid_k)
    queries, frames = _queries_on(on_queries, found.grid_q, found.grid_k[0])
    if not len(queries) or found.grid_k[0] < 2 or not found.is_whole:
        return None
    rows = found.select(queries).weights[0].double().clamp(min=0)
    sums = {"tracking": 0.0, "tracking_chance": 0.0, "staying": 0.0, "staying_chance": 0.0}
    for row, frame in zip(rows, frames, strict=True):
        other = torch.arange(len(on_keys)) != frame
        shares = row[other] / row[other].sum().clamp_min(1e-12)
        for name, place in (("tracking", on_keys[other]), ("staying", on_keys[frame][None])):
            sums[name] += float((shares * place).sum()) / len(rows)
            sums[f"{name}_chance"] += float(place.mean()) / len(rows)
    return sums


def _queries_on(
    covered: Float[Tensor, "t h w"], grid: Grid, key_frames: int
) -> tuple[Tensor, list[int]]:
    """Returns the query in each frame whose cell the object covers most, and its frame of keys."""
    best = covered.flatten(1).max(1)
    frames = (best.values >= ON_OBJECT).nonzero().flatten()
    numbers = frames * prod(grid[1:]) + best.indices[frames]
    return numbers, [int(frame) * key_frames // grid[0] for frame in frames]
