"""Clips, maps and archives for the tests of pages."""

from collections.abc import Mapping
from typing import Any

import torch

from videoattn.attention.archive import MapArchive
from videoattn.attention.maps import Factors, GateMap, PairwiseMap
from videoattn.types import Grid

CLIP: Grid = (8, 56, 64)  # of the network's input
GRID: Grid = (4, 7, 8)


def frames(count: int = CLIP[0], height: int = 112, width: int = 128) -> torch.Tensor:
    """Returns a square that moves right over a gradient."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    clip = torch.stack([y * 120 // height, x * 120 // width, (x + y) % 97]).repeat(count, 1, 1, 1)
    for number in range(count):
        left = number * (width - 20) // max(count, 1)
        clip[number, :, height // 3 : height // 3 + 20, left : left + 20] = 230
    return clip.to(torch.uint8)


def random_map(
    seed: int = 0,
    *,
    heads: int = 1,
    width: int = 16,
    grid_q: Grid = GRID,
    grid_k: Grid = GRID,
    rule: str = "softmax",
    sharp: float = 2.0,
    special: tuple[str, ...] = (),
    exact: bool = False,
) -> PairwiseMap:
    """Returns a map that is recorded as factors; special queries are keys, too.

    Args:
        exact: The factors are float16 numbers, so that the page makes the same rows up to rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [g[0] * g[1] * g[2] + len(special) for g in (grid_q, grid_k)]
    q, k = (torch.randn(1, heads, n, width, generator=generator) for n in sizes)
    if exact:
        q, k = q.half().float(), k.half().float()
    return PairwiseMap(
        kind="pairwise",
        rows=torch.zeros(1, heads, 0, *grid_k),
        queries=torch.zeros(0, 3, dtype=torch.long),
        grid_q=grid_q,
        grid_k=grid_k,
        normalized=rule == "softmax",
        special={name: sizes[0] - len(special) + i for i, name in enumerate(special)},
        factors=Factors(q, k, rule, sharp * width**-0.5),  # type: ignore[arg-type]
    )


def archive(
    maps: Mapping[str, PairwiseMap | GateMap],
    clip: torch.Tensor | None = None,
    **about: Any,
) -> MapArchive:
    clip = frames() if clip is None else clip
    facts = {
        "video": "push.mp4",
        "run": "mine",
        "network": "i3d_r18",
        "numbers": [4 * number for number in range(len(clip))],
        "fps": 25.0,
        "input": [len(clip), CLIP[1], CLIP[2]],
        "classes": [("PushUps", 0.75), ("Punch", 0.2), ("JumpingJack", 0.05)],
        "truth": "PushUps",
        "queries": [
            (min(3, len(clip) - 1), 20, 30, "adds most to the score", "it adds most to the score"),
            (min(5, len(clip) - 1), 40, 10, "most motion", "most moves there"),
        ],
    }
    return MapArchive(dict(maps), clip, facts | about)


def fields() -> dict[str, GateMap]:
    """Returns a map of every kind without a query."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.rand(1, *shape, generator=generator)

    boxes = torch.tensor([[[7.0, 8.0, 28.0, 40.0]] * 8])
    boxes[0, 2] = 0
    return {
        "hires_cam/PushUps": GateMap("cam", noise(4, 7, 8) - 0.5, identity_value=0.0),
        "hires_cam/Punch": GateMap("cam", 1e-4 * (noise(4, 7, 8) - 0.5), identity_value=0.0),
        "layer1.gate": GateMap("spatial", noise(4, 7, 8), identity_value=1.0),
        "layer2.gate": GateMap("temporal", noise(4), identity_value=1.0),
        "layer3.gate": GateMap("channel", noise(24), identity_value=1.0),
        "layer3.mask": GateMap("mask", noise(6, 4, 7, 8)),
        "fc": GateMap(
            "pooling", noise(3, 4, 7, 8).flatten(2).softmax(-1).view(1, 3, 4, 7, 8), True
        ),
        "hard_crop": GateMap("box", boxes),
    }
