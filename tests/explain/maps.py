"""Attention maps with known answers."""

import torch

from videoattn.attention.record import AttentionMap

CLIP = (4, 24, 32)


def grey_frames(clip: tuple[int, int, int] = CLIP, level: int = 128) -> torch.Tensor:
    return torch.full((clip[0], 3, clip[1], clip[2]), level, dtype=torch.uint8)


def one_hot_map(
    cell: tuple[int, int, int] = (1, 2, 3),
    *,
    grid: tuple[int, int, int] = (2, 3, 4),
    query: tuple[int, int, int] = (0, 1, 1),
    grid_q: tuple[int, int, int] = (4, 6, 8),
    weight: float = 1.0,
    normalised: bool = True,
) -> AttentionMap:
    """All the attention of one query on one key cell."""
    weights = torch.zeros(1, 1, *grid)
    weights[0, 0, *cell] = weight
    return AttentionMap(
        kind="pairwise",
        weights=weights,
        queries=torch.tensor([query]),
        grid_q=grid_q,
        grid_k=grid,
        normalised=normalised,
        received=weights[:, 0],
    )
