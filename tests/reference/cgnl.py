"""CGNL by its definition: the map between all entries of a group, built whole."""

import math

import torch
from torch import Tensor

from videoattn.attention.blocks.cgnl import CompactNonLocal


def cgnl(block: CompactNonLocal, x: Tensor) -> Tensor:
    """Returns the output that `block` must have for x, from its weights."""
    theta, phi, g = (
        torch.einsum("ncthw,dc->ndthw", x, layer.weight[:, :, 0, 0, 0])
        for layer in (block.theta, block.phi, block.g)
    )
    parts = []
    for t, p, v in zip(*(y.chunk(block.groups, dim=1) for y in (theta, phi, g)), strict=True):
        clips = [
            (entry_map(block, t[n].flatten(), p[n].flatten()) @ v[n].flatten()).view_as(t[n])
            for n in range(len(x))
        ]
        count = t[0].numel()
        parts.append(
            torch.stack(clips) / {"none": 1, "root": count**0.5, "count": count}[block.scale]
        )
    weights = block.out.weight[:, :, 0, 0, 0].chunk(block.groups)
    pairs = zip(parts, weights, strict=True)
    return x + block.norm(torch.cat([torch.einsum("ncthw,dc->ndthw", y, w) for y, w in pairs], 1))


def entry_map(block: CompactNonLocal, theta: Tensor, phi: Tensor) -> Tensor:
    """Returns the map (n, n) of the entries of one group of one clip."""
    product = theta.unsqueeze(1) * phi
    if block.kernel == "dot":
        return product
    constant = torch.full_like(product, 2.0)
    squares = theta.square().unsqueeze(1) + phi.square() if block.exact_beta else constant
    return (-block.gamma * squares).exp() * sum(
        (2 * block.gamma * product) ** o / math.factorial(o) for o in range(block.order + 1)
    )
