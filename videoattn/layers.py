"""A 3-D convolution that is correct in low precision on a CPU for clips shorter than its kernel.

With temporal padding and T < k_t, oneDNN's bfloat16 `conv3d` reads uninitialized memory. The weight
gradient is garbage (NaN, 1e37) for 1 < T < k_t, and so is the output for T = 1 and three input
channels, as in a stem (observed with torch 2.13.0, oneDNN 3.12; float32 is correct). Padding T
explicitly and convolving without temporal padding computes the same function correctly.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """An `nn.Conv3d` that pads short clips explicitly if the CPU kernel's padding is unsafe."""

    def forward(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        frames, height, width = self.padding
        if (
            x.device.type == "cpu"
            and (x.dtype in _LOW or torch.is_autocast_enabled("cpu"))
            # Last, so that a float32 export does not depend on the number of frames.
            and meets_short_clip_bug(self, x.shape[2])
        ):
            x = F.pad(x, (0, 0, 0, 0, frames, frames))
            padding = (0, height, width)
            return F.conv3d(
                x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
            )
        return super().forward(x)


_LOW = (torch.bfloat16, torch.float16)


def meets_short_clip_bug(conv: nn.Conv3d, num_frames: int) -> bool:
    """Returns whether a clip of this many frames triggers the bug above in bfloat16."""
    return num_frames < conv.kernel_size[0] and conv.padding[0] != 0
