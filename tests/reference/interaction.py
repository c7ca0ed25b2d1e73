"""Interaction-aware attention by its formulas, clip by clip and row by row. Slow and plain."""

import math

import numpy as np
import torch
from torch import Tensor

from videoattn.attention.blocks.pyramid import PyramidPooling


def pooled_maximum(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Pools (C, T, H, W) to a coarser grid; every size is a multiple of the grid's."""
    out = torch.empty(x.shape[0], *grid, dtype=x.dtype)
    steps = [size // cells for size, cells in zip(x.shape[1:], grid, strict=True)]
    for t in range(grid[0]):
        for i in range(grid[1]):
            for j in range(grid[2]):
                spans = [slice(k * s, (k + 1) * s) for k, s in zip((t, i, j), steps, strict=True)]
                out[:, t, i, j] = x[:, spans[0], spans[1], spans[2]].flatten(1).max(1).values
    return out


def pyramid(module: PyramidPooling, levels: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Returns M (N, D, C), the fused softmax rows (N, D, P) and each level's, without bias."""
    grid = tuple(levels[-1].shape[2:])
    pooled, fused, every = [], [], [[] for _ in levels]
    for n in range(len(levels[0])):
        scores = []
        for index, level in enumerate(levels):
            x = pooled_maximum(level[n], grid).flatten(1).T  # (P, C)
            y = module.scores[index].weight @ x.T
            scores.append(y)
            every[index].append(y.exp() / y.exp().sum(1, keepdim=True))
        f = scores[0].clone()
        for y in scores[1:]:
            f = torch.maximum(f, y) if module.fusion == "max" else f + y
        f = f / len(levels) if module.fusion == "mean" else f
        a = f.exp() / f.exp().sum(1, keepdim=True)
        rows = a / a.square().sum(1, keepdim=True).sqrt() if module.pool_with == "l2" else a
        if module.center == "channel_mean":
            x = x - x.mean(1, keepdim=True)
        pooled.append(rows @ x)
        fused.append(a)
    return torch.stack(pooled), torch.stack(fused), [torch.stack(rows) for rows in every]


def literal_interaction(rows: np.ndarray, x: np.ndarray) -> float:
    """Eq. 6 as it is printed, with X Xᵀ and both elementwise products."""
    d = len(rows)
    first = (rows @ (x @ x.T) @ rows.T) * np.eye(d)
    second = (rows @ rows.T) * (np.ones((d, d)) - np.eye(d))
    return float(-first.sum() + np.square(second).sum())


def literal_diversity(fused: np.ndarray, levels: list[np.ndarray]) -> float:
    total = 0.0
    for own in levels:
        for m in range(fused.shape[0]):
            for k in range(fused.shape[1]):
                total += 1 - abs(fused[m, k] - own[m, k]) ** 2
    return math.sqrt(total)
