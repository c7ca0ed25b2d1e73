"""Stand-alone self-attention by its definition: one position, head and neighbor at a time."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from videoattn.attention.blocks.stand_alone import StandAloneAttention


def stand_alone(
    layer: StandAloneAttention, x: Tensor, dropped: Collection[tuple[int, int, int]] = ()
) -> Tensor:
    """Returns the output that `layer` must have for x (N, C, T, H, W), from its weights, without
    the keys at some positions."""
    k_t, k_h, k_w = layer.window
    q, k, v = (
        torch.einsum("nithw,oi->nthwo", x, conv.weight[:, :, 0, 0, 0]).unflatten(
            -1, (layer.heads, -1)
        )
        for conv in (layer.query, layer.key, layer.value)
    )
    n, frames, height, width, heads, d = q.shape
    outputs = []
    for t in range(frames):
        for y in range(height):
            for z in range(width):
                logits, values = [], []
                for a in range(-(k_t // 2), k_t // 2 + 1):
                    for b in range(-(k_h // 2), k_h // 2 + 1):
                        for c in range(-(k_w // 2), k_w // 2 + 1):
                            at = (t + a, y + b, z + c)
                            sizes = (frames, height, width)
                            inside = all(0 <= p < s for p, s in zip(at, sizes, strict=True))
                            if at in dropped or (not inside and layer.border == "mask"):
                                continue
                            r = torch.cat(  # (heads, d)
                                [
                                    table[:, offset + extent // 2]
                                    for table, offset, extent in (
                                        (layer.position_t, a, k_t),
                                        (layer.position_h, b, k_h),
                                        (layer.position_w, c, k_w),
                                    )
                                    if table is not None
                                ]
                                or [x.new_zeros(heads, d)],
                                dim=1,
                            )
                            key, value = (
                                f[:, *at] if inside else x.new_zeros(n, heads, d) for f in (k, v)
                            )
                            logits.append((q[:, t, y, z] * (key + r)).sum(-1))
                            values.append(value)
                weights = torch.stack(logits, -1).softmax(-1)  # (N, heads, neighbours)
                outputs.append(torch.einsum("nhj,nhjd->nhd", weights, torch.stack(values, 2)))
    result = torch.stack(outputs, -1).unflatten(-1, (frames, height, width)).flatten(1, 2)
    if layer.stride == 1:
        return result
    s = layer.stride  # the mean of what there is of each s x s cell
    rows = [result[..., i : i + s, :].mean(3) for i in range(0, height, s)]
    half = torch.stack(rows, 3)
    if height % s == 0 and width % s == 0:
        assert torch.allclose(
            F.avg_pool3d(result, (1, s, s)),
            torch.stack([half[..., i : i + s].mean(4) for i in range(0, width, s)], 4),
        )
    return torch.stack([half[..., i : i + s].mean(4) for i in range(0, width, s)], 4)
