"""A 3-D convolution that is right in low precision on a CPU, for clips shorter than its kernel.

Where temporal padding makes up frames and T < k_t, oneDNN's bfloat16 `conv3d` reads memory that
nobody wrote: the weight gradient is garbage (NaN, 1e37) for 1 < T < k_t, and the output itself for
T = 1 and three input channels, which is a stem's case (seen with torch 2.13.0, oneDNN 3.12; float32
is right). Padding T explicitly first, and convolving without temporal padding, is the same function
and right.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` that pads short clips itself, where the CPU kernel's own padding is unsafe."""

    def forward(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        frames, height, width = self.padding
        if (
            x.device.type == "cpu"
            and (x.dtype in _LOW or torch.is_autocast_enabled("cpu"))
            and _meets_bug(self, x.shape[2])  # last: an export in float32 is not tied to a length
        ):
            x = F.pad(x, (0, 0, 0, 0, frames, frames))
            return F.conv3d(
                x, self.weight, self.bias, self.stride, (0, height, width), self.dilation,
                self.groups,
            )  # fmt: skip
        return super().forward(x)


_LOW = (torch.bfloat16, torch.float16)


def _meets_bug(conv: nn.Conv3d, num_frames: int) -> bool:
    return num_frames < conv.kernel_size[0] and conv.padding[0] != 0


def unsafe_convolutions(model: nn.Module, video: Tensor) -> list[str]:
    """Names of the foreign convolutions that cannot be trained in bfloat16 on a CPU on such clips.

    video: any (N, C, T, H, W) of the shape to train on; it is run once, on the CPU, in float32.
    """
    suspects = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv3d)
        and not isinstance(module, Conv3d)
        and module.kernel_size[0] > 1
    }
    if not suspects:
        return []
    found: list[str] = []

    def check(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(conv, nn.Conv3d)
        if _meets_bug(conv, inputs[0].shape[2]) and suspects[conv] not in found:
            found.append(suspects[conv])

    handles = [module.register_forward_pre_hook(check) for module in suspects]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(video)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return found
