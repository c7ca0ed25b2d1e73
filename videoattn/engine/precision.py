"""Which arithmetic a run uses: bfloat16 where the hardware has it, float32 elsewhere."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from videoattn.types import Video

Precision = Literal["auto", "float32", "bfloat16"]


def resolve_precision(name: Precision, device: torch.device) -> torch.dtype:
    """What `name` means on `device`: torch.float32 or torch.bfloat16.

    Raises:
        ValueError: for a name other than auto, float32 and bfloat16.
    """
    if name == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    if name == "float32":
        return torch.float32
    if name == "bfloat16":
        return torch.bfloat16
    raise ValueError(f"precision: '{name}' is not one of auto, float32, bfloat16")


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware, so that it is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Without one of these instruction sets bfloat16 is emulated, and slower than float32.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """A context in which convolutions and products run in `dtype`; float32 turns it off."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def unsafe_convolutions(model: nn.Module, video: Video) -> list[str]:
    """The 3-D convolutions that `model` runs on `video` whose bfloat16 gradient is wrong on a CPU.

    oneDNN (torch 2.13) gives a garbage weight gradient, and no error, where the input has fewer
    frames than the kernel but more than one, and time is padded by the convolution itself. A model
    of somebody else's that has one must train in float32; ours pad beforehand.
    """
    watch = _Watch()
    was_training = model.training
    model.eval()
    with torch.no_grad(), watch:
        model(video)
    model.train(was_training)
    return watch.found


class _Watch(TorchFunctionMode):
    """Sees each convolution as it is called, after whatever padding its module does itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is nn.functional.conv3d:
            self._see(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _see(self, *args: object, **kwargs: object) -> None:
        names = ("input", "weight", "bias", "stride", "padding")
        given = dict(zip(names, args, strict=False)) | kwargs
        video, weight, padding = given["input"], given["weight"], given.get("padding", 0)
        assert isinstance(video, Tensor)
        assert isinstance(weight, Tensor)
        in_time = padding[0] if isinstance(padding, tuple | list) else padding
        num_frames, kernel = video.shape[2], weight.shape[2]
        if in_time not in (0, "valid") and 1 < num_frames < kernel:
            self.found.append(f"a kernel of {tuple(weight.shape[2:])} over {num_frames} frames")
