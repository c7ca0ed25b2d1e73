"""A 3-D convolution that is correct in low precision on a CPU for clips and maps smaller than its
kernel.

With temporal padding and T < k_t, oneDNN's bfloat16 `conv3d` reads uninitialized memory. The weight
gradient is garbage (NaN, 1e37) for 1 < T < k_t, and so is the output for T = 1 and three input
channels, as in a stem (observed with torch 2.13.0, oneDNN 3.12; float32 is correct). The weight
gradient is also wrong for maps smaller than the padding, such as a kernel of 7x7 on 2x2 positions.
Padding explicitly and convolving without padding computes the same function correctly.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """An `nn.Conv3d` that pads explicitly where the padding of the CPU kernel is unsafe: for clips
    of few frames, and maps of few rows."""

    def forward(self, x: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        if x.device.type != "cpu" or not (x.dtype in _LOW or torch.is_autocast_enabled("cpu")):
            return super().forward(x)  # so that a float32 export does not depend on the grid
        frames, height, width = self.padding
        before = [
            frames if meets_short_clip_bug(self, x.shape[2]) else 0,
            height if x.shape[3] < height else 0,
        ]
        if not any(before):
            return super().forward(x)
        x = F.pad(x, (0, 0, before[1], before[1], before[0], before[0]))
        padding = (frames - before[0], height - before[1], width)
        return F.conv3d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


_LOW = (torch.bfloat16, torch.float16)


def meets_short_clip_bug(conv: nn.Conv3d, num_frames: int) -> bool:
    """Returns whether a clip of this many frames triggers the bug above in bfloat16."""
    return num_frames < conv.kernel_size[0] and conv.padding[0] != 0
