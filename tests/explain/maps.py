"""Attention maps with known answers."""

import torch

from videoattn.attention.maps import GateMap, PairwiseMap

CLIP = (4, 24, 32)


def gray_frames(clip: tuple[int, int, int] = CLIP, level: int = 128) -> torch.Tensor:
    return torch.full((clip[0], 3, clip[1], clip[2]), level, dtype=torch.uint8)


def one_hot_map(
    cell: tuple[int, int, int] = (1, 2, 3),
    *,
    grid: tuple[int, int, int] = (2, 3, 4),
    query: tuple[int, int, int] = (0, 1, 1),
    grid_q: tuple[int, int, int] = (4, 6, 8),
    weight: float = 1.0,
    normalized: bool = True,
) -> PairwiseMap:
    """Returns a map whose one query gives all its weight to one key cell."""
    weights = torch.zeros(1, 1, *grid)
    weights[0, 0, *cell] = weight
    return PairwiseMap(
        kind="pairwise",
        rows=weights[:, None],
        queries=torch.tensor([query]),
        grid_q=grid_q,
        grid_k=grid,
        normalized=normalized,
        received=weights[:, 0],
    )


def hot_spot(*shape: int, at: tuple[int, ...], low: float = 0.2, high: float = 0.8) -> torch.Tensor:
    """Returns weights that are `low` everywhere except at one entry."""
    weights = torch.full(shape, low)
    weights[at] = high
    return weights


def one_box(
    box: tuple[float, float, float, float] = (6.0, 8.0, 18.0, 24.0), *, left_out: int | None = None
) -> GateMap:
    """Returns the same box (y0, x0, y1, x1) for each frame of CLIP, except one that has none."""
    boxes = torch.tensor([[box] * CLIP[0]])
    if left_out is not None:
        boxes[0, left_out] = 0
    return GateMap("box", boxes)
