"""Scores the maps of one clip: removal in their order, baselines, and blocks without their keys.

Baselines are maps that know nothing of the network, or only a part of what a map says.

| baseline | map                                                                      |
| smooth   | a random field with the autocorrelation of a map: blobs of the same size |
| center   | nearness to the middle of the clip                                       |
| motion   | mean absolute difference to the frame before                             |
| frame    | each frame's mean of a map, spread evenly: only its timing               |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from videoattn.attention.maps import GateMap, PairwiseMap, to_input
from videoattn.attention.record import record_attention, recordable_blocks
from videoattn.explain.choose import summarize
from videoattn.explain.faithful.knockout import (
    KEYS,
    answers_without,
    blocks_that_attend,
    row_order,
    without_keys,
)
from videoattn.explain.faithful.removal import (
    Hider,
    descending,
    removal_curves,
    remove_groups,
    time_deletion,
)
from videoattn.explain.faithful.statistics import spearman
from videoattn.explain.post_hoc import METHODS
from videoattn.explain.truth import cells
from videoattn.types import Grid, Video

Field = Float[Tensor, "t h w"]
"""The weight of each position of a map of one clip."""
MOST_CELLS = 4096
COARSE: Grid = (8, 14, 14)
"""The largest grid to which a map with more than `MOST_CELLS` is averaged."""
SIGNED = ("cam", "hires_cam", "integrated_gradients", "occlusion")
"""Methods whose maps are signed: negative weights mark places that lower the score."""
NUM_RANDOM = 10
LEAST_CELLS = 10
"""A map with fewer cells has no top tenth."""
FRAMES_ONLY = ", frames only"


def field_of(
    found: PairwiseMap | GateMap, clip: Grid, *, most_cells: int = MOST_CELLS
) -> Field | None:
    """Returns the field of a map of one clip (T, H, W); None if it has no positions or lacks rows.

    The field of a pairwise map is the mean weight that each key position receives; of a mask, its
    mean over channels; of poolings, their mean. Fields with more than `most_cells` are averaged.
    """
    if isinstance(found, PairwiseMap):
        if not found.is_whole or not all(found.grid_q):
            return None
        field = summarize(found).received.view(found.grid_k)
    elif found.kind == "channel":
        return None
    elif found.kind == "box":
        field = to_input(found, clip)[0]
    elif found.kind == "temporal":
        field = found.weights[0, :, None, None]
    else:
        field = found.weights[0] if found.weights.ndim == 4 else found.weights[0].mean(0)
    field = field.float().cpu()
    sizes = field.shape[0], field.shape[1], field.shape[2]
    if prod(sizes) <= most_cells:
        return field
    t, y, x = (min(pair) for pair in zip(sizes, COARSE, strict=True))
    return cells(field, (t, y, x)).float()


def make_fields(
    model: nn.Module,
    video: Video,
    target: int,
    methods: Sequence[str],
    *,
    recorded: bool = True,
    most_cells: int = MOST_CELLS,
) -> dict[str, Field]:
    """Returns the fields of a clip by name: of `methods` for a class, and of attention maps.

    Args:
        recorded: Whether to include attention maps.
        most_cells: Fields with more are averaged to a coarser grid.

    Raises:
        ValueError: If a method does not apply to the network.
    """
    fields: dict[str, Field] = {}
    clip = video.shape[2], video.shape[3], video.shape[4]
    if recorded and recordable_blocks(model):
        with torch.no_grad(), record_attention(model, queries=(), factors="instead") as maps:
            model(video)
        found = {name: field_of(one, clip, most_cells=most_cells) for name, one in maps.items()}
        fields = {name: field for name, field in found.items() if field is not None}
    for name in methods:
        one = METHODS[name](model, video, torch.tensor([target], device=video.device))
        field = field_of(one, clip, most_cells=most_cells)
        assert field is not None
        fields[name] = field
    return fields


def score_maps(
    hider: Hider, fields: Mapping[str, Field], fills: Sequence[str], generator: torch.Generator
) -> dict[str, Any]:
    """Returns curves and groups, as JSON values, of maps on the hider's grid and of baselines."""
    every = dict(fields)
    every |= {name + FRAMES_ONLY: frame_map(field) for name, field in fields.items()}
    every |= {"center": center_map(hider.grid), "motion": motion_map(hider.video, hider.grid)}
    every["smooth"] = smooth_map(_typical(list(fields.values())), generator)
    record: dict[str, Any] = {"time": {}, "fills": {}}
    frozen = replace(hider, fill="freeze")
    for name, field in every.items():
        if FRAMES_ONLY not in name:  # its frames have the same order as those of its map
            record["time"][name] = _plain(time_deletion(frozen, field, generator).p)
    random = [torch.rand(hider.grid, generator=generator) for _ in range(NUM_RANDOM)]
    for fill in fills:
        hider = replace(hider, fill=fill)
        rows = {
            name: _curves(hider, field, generator) | _groups(hider, field, generator)
            for name, field in every.items()
        }
        curves = [_curves(hider, field, generator) for field in random]
        mean = {key: torch.tensor([c[key] for c in curves]).mean(0) for key in curves[0]}
        rows["random"] = {key: _plain(curve) for key, curve in mean.items()}
        rows["random"] |= _groups(hider, random[0], generator)
        record["fills"][fill] = rows
    return record


def smooth_map(found: Field, generator: torch.Generator) -> Field:
    """Returns a random field with the mean and the circular autocorrelation of a map: its Fourier
    amplitudes with the phases of noise."""
    noise = torch.randn(found.shape, generator=generator, dtype=found.dtype)
    amplitudes, phases = torch.fft.rfftn(found).abs(), torch.fft.rfftn(noise).angle()
    phases[0, 0, 0] = 0.0 if found.sum() >= 0 else torch.pi
    return torch.fft.irfftn(torch.polar(amplitudes, phases), s=found.shape)


def center_map(grid: Grid) -> Field:
    """Returns minus the squared distance to the middle of the clip; all axes run from -1 to 1."""
    t, y, x = ((2 * torch.arange(size) + 1) / size - 1 for size in grid)
    return -(t[:, None, None] ** 2 + y[:, None] ** 2 + x**2)


def motion_map(video: Video, grid: Grid) -> Field:
    """Returns the mean absolute difference to the previous frame on a grid; 0 in the first."""
    change = torch.zeros_like(video[0, 0])
    change[1:] = video[0].diff(dim=1).abs().mean(0)
    return cells(change.cpu(), grid)


def frame_map(found: Field) -> Field:
    """Returns each frame's mean of a map, at all positions of the frame."""
    return found.mean((1, 2), keepdim=True).expand_as(found)


def shuffle_test(
    video: Video,
    fields: Mapping[str, Field],
    make: Callable[[Video], Mapping[str, Field]],
    generator: torch.Generator,
) -> dict[str, float]:
    """Returns, for each map, its rank correlation with the map of the clip whose frames are
    permuted, after the permutation is undone.

    Args:
        fields: The maps, on their own grids.
        make: Returns the maps of a clip.
    """
    num_frames = video.shape[2]
    order = torch.randperm(num_frames, generator=generator)
    found = make(video[:, :, order])
    back = order.argsort()
    similar = {}
    for name, field in fields.items():
        long = found[name].repeat_interleave(num_frames, 0)[:: len(found[name])]
        grid = len(field), field.shape[1], field.shape[2]
        similar[name] = round(spearman(cells(long[back], grid), field.double()), 4)
    return similar


def score_blocks(hider: Hider, generator: torch.Generator) -> dict[str, Any]:
    """Returns, for each block, the decrease of the class's score without some keys (`KEYS`), the
    values of `row_order`, and the class that is predicted without the block ("answer_off")."""
    rows: dict[str, Any] = {}
    model, whole = hider.model, torch.zeros(1, hider.num_cells, dtype=torch.bool)
    before = float(hider(whole).y)
    attending, answers = blocks_that_attend(model), answers_without(model, hider.video)
    for name, block in recordable_blocks(model).items():
        row: dict[str, Any] = {}
        if name in attending:
            for which in KEYS:
                with without_keys(block, which, generator):
                    row[which] = before - float(hider(whole).y)
            row |= row_order(model, block, hider.video, generator)
        if name in answers:
            row["answer_off"] = answers[name]
        rows[name] = row
    return {name: row for name, row in rows.items() if row}


def cost_of(
    model: nn.Module,
    video: Video,
    found: PairwiseMap | GateMap,
    label: int,
    probabilities: Callable[[Tensor], Tensor],
) -> str:
    """Returns "; hiding its top tenth costs 31 points, random 6", or "" for fewer than ten cells.

    A point is 0.01 of the class's probability. Random is the mean of ten random tenths.
    """
    field = field_of(found, (video.shape[2], video.shape[3], video.shape[4]))
    if field is None or field.numel() < LEAST_CELLS:
        return ""
    grid = len(field), field.shape[1], field.shape[2]
    generator = torch.Generator().manual_seed(0)
    orders = [descending(field, generator)]
    orders += [torch.randperm(field.numel(), generator=generator) for _ in range(NUM_RANDOM)]
    masks = torch.zeros(len(orders) + 1, field.numel(), dtype=torch.bool)
    for mask, order in zip(masks[1:], orders, strict=True):
        mask[order[: max(round(field.numel() / 10), 1)]] = True
    p = Hider(model, video, grid, label, probabilities=probabilities)(masks).p
    top, random = (f"{100 * float(cost):.0f}" for cost in (p[0] - p[1], p[0] - p[2:].mean()))
    points = "point" if top == "1" else "points"
    return f"; hiding its top tenth costs {top} {points}, random {random}"


def _curves(hider: Hider, field: Field, generator: torch.Generator) -> dict[str, list[float]]:
    curves = removal_curves(hider, descending(field, generator))
    return {
        "deletion": _plain(curves.deletion.p),
        "insertion": _plain(curves.insertion.p),
        "deletion_y": _plain(curves.deletion.y),
        "insertion_y": _plain(curves.insertion.y),
    }


def _groups(hider: Hider, field: Field, generator: torch.Generator) -> dict[str, list[float]]:
    groups = remove_groups(hider, field, descending(field, generator))
    return {key: value.double().tolist() for key, value in groups._asdict().items()}


def _typical(fields: list[Field]) -> Field:
    """Returns a field with the mean power spectrum of the standardized fields."""
    powers = torch.zeros(1)
    for field in fields:
        centered = field - field.mean()
        spectrum = torch.fft.fftn(centered / centered.norm().clamp_min(1e-12)).abs()
        powers = powers + spectrum.square()
    return torch.fft.ifftn(powers.sqrt()).real


def _plain(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.double().tolist()]
