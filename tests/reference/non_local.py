"""The non-local block by its definition: sums over positions, one by one. Slow and plain."""

import torch
import torch.nn.functional as F
from torch import Tensor

from videoattn.attention.blocks.non_local import NonLocal


def non_local(block: NonLocal, x: Tensor) -> Tensor:
    """Returns the output that `block` must have for x (N, C, T, H, W) without frame groups."""

    def pointwise(layer: torch.nn.Conv3d, features: Tensor) -> Tensor:
        y = torch.einsum("ncthw,dc->ndthw", features, layer.weight[:, :, 0, 0, 0])
        return y if layer.bias is None else y + layer.bias.view(1, -1, 1, 1, 1)

    def pool(features: Tensor) -> Tensor:
        return features if block.key_pool is None else F.max_pool3d(features, block.key_pool)

    before = block.pool_order == "before"
    source = pool(x) if before else x
    theta = x if block.form == "gaussian" else pointwise(block.theta, x)
    phi = source if block.form == "gaussian" else pointwise(block.phi, source)
    g = pointwise(block.g, source)
    if not before:
        phi, g = pool(phi), pool(g)
    y = torch.zeros(x.shape[0], g.shape[1], *x.shape[2:], dtype=x.dtype)
    keys, values = phi.flatten(2), g.flatten(2)
    for n in range(x.shape[0]):
        for t in range(x.shape[2]):
            for h in range(x.shape[3]):
                for w in range(x.shape[4]):
                    query = theta[n, :, t, h, w]
                    f = torch.stack(
                        [_pair(block, query, keys[n, :, j]) for j in range(keys.shape[2])]
                    )
                    z = f.sum() if block.form.endswith("gaussian") else len(f)
                    y[n, :, t, h, w] = values[n] @ f / z
    return x + block.bn(pointwise(block.out, y))


def _pair(block: NonLocal, query: Tensor, key: Tensor) -> Tensor:
    if block.form == "gaussian":
        return (query @ key).exp()
    if block.form == "embedded_gaussian":
        return (query @ key * block.logit_scale).exp()
    if block.form == "dot_product":
        return query @ key
    return (block.pair.weight[0] @ torch.cat([query, key])).relu()
