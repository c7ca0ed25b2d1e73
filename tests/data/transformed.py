"""Transforms on clips that are there, by the way of frames that a decoder hands over."""

import numpy as np
import torch

from videoattn.data.decode.cut import Clips
from videoattn.data.transforms import Box, Transform, resize


def transformed(
    transform: Transform, clips: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Clips (V, T, C, H, W) of frames of their own, to (V * boxes, T, C, h, w)."""
    places = np.arange(clips.shape[0] * clips.shape[1]).reshape(clips.shape[:2])
    made = Clips(transform, places, generator)
    for slot, image in enumerate(clips.flatten(0, 1).movedim(1, -1).numpy()):
        made.put(slot, image)
    return made.finish()


def crop_resize(clips: torch.Tensor, box: Box, size: tuple[int, int]) -> torch.Tensor:
    """The box of every frame, cut and resized: (V, T, C, H, W) to (V, T, C, h, w)."""
    cut = clips[..., box.y0 : box.y1, box.x0 : box.x1]
    return resize(cut.flatten(0, 1), size).unflatten(0, cut.shape[:2])
