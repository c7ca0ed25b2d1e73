"""Chooses the arithmetic of a run: bfloat16 if the hardware has it, float32 otherwise."""

from typing import Literal, get_args

import torch

from videoattn.errors import one_of

Precision = Literal["auto", "float32", "bfloat16"]


def resolve_precision(name: Precision, device: torch.device) -> torch.dtype:
    """Returns torch.float32 or torch.bfloat16.

    Raises:
        ValueError: If the name is not auto, float32 or bfloat16.
    """
    one_of("precision", name, get_args(Precision))
    is_low = has_bfloat16(device) if name == "auto" else name == "bfloat16"
    return torch.bfloat16 if is_low else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Returns whether the device multiplies bfloat16 in hardware, and so faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Without one of these instruction sets bfloat16 is emulated, and slower than float32.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Returns a context in which convolutions and products run in `dtype`; float32 disables it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
