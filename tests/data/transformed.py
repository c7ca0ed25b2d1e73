"""Applies transforms to given clips, as a dataset applies them to decoded frames."""

import numpy as np
import torch

from videoattn.data.transforms import Box, Transform, ViewMaker, resize


def transformed(
    transform: Transform, clips: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Maps clips (V, T, C, H, W) that share no frame to views (V * boxes, T, C, h, w)."""
    positions = np.arange(clips.shape[0] * clips.shape[1]).reshape(clips.shape[:2])
    return views_of(transform, clips.flatten(0, 1), positions, generator)


def views_of(
    transform: Transform,
    frames: torch.Tensor,
    positions: np.ndarray,
    generator: torch.Generator,
    *,
    mirrored: bool = False,
) -> torch.Tensor:
    """Makes the views of clips whose frames are at these positions."""
    maker = ViewMaker(transform, len(positions), generator)
    box = maker(*frames.shape[-2:])
    kept = frames[..., box.y0 : box.y1, box.x0 : box.x1]
    return maker.views(kept, positions, mirrored=mirrored)


def crop_resize(clips: torch.Tensor, box: Box, size: tuple[int, int]) -> torch.Tensor:
    """Crops and resizes every frame: (V, T, C, H, W) to (V, T, C, h, w)."""
    cut = clips[..., box.y0 : box.y1, box.x0 : box.x1]
    return resize(cut.flatten(0, 1), size).unflatten(0, cut.shape[:2])
