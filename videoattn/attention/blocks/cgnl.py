"""The compact generalized non-local block (Yue et al., NeurIPS 2018, arXiv 1810.13125).

Every (position, channel) entry attends to every other. For each of G groups of channels, θ, φ and g
are flat vectors of n = T·H·W·C_i/G entries, and the n x n map is never built:

    dot:        y = (θ φᵀ) g = θ <φ, g>
    gaussian:   y = Σ_o a_o θ^o <φ^o, g>,   a_o = b (2γ)^o / o!,   o = 0 .. order      (CGNLx)

    z = x + norm(W_z y), W_z in the same groups

CGNLx expands exp(-γ (θ_i - φ_j)²) = exp(-γ(θ_i² + φ_j²)) exp(2γ θ_i φ_j) in powers of θ_i φ_j. The
authors' code replaces the first factor by the constant b = exp(-2γ); `exact_beta` keeps it.

In the published block (dot kernel, norm="gn") the magnitude of <φ, g> has no effect: it scales a
whole group, W_z has no bias and the same groups, and the group norm divides by that scale. Except
for its eps, the block computes x + weight · sign(<φ, g>) · normalized(W_z θ) + bias. CGNLx adds
several powers within a group and keeps their proportions with either norm.

Where we differ: the sums run over T·H·W in place of H·W, and norm="bn" is ours. Batch norm uses the
statistics of the batch (running ones in evaluation mode), so y can be larger for some clips.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from videoattn.attention.common import small_weights, zero_norm
from videoattn.attention.functional import autocast_off, widen
from videoattn.attention.maps import GateMap
from videoattn.errors import one_of
from videoattn.types import Video

Entries = Float[Tensor, "N G *E"]
"""The entries of each of G groups, in any shape such as (channels, T, H, W)."""


def _sum(x: Entries) -> Tensor:
    return x.sum(tuple(range(2, x.ndim)), keepdim=True)


def compact_dot(theta: Entries, phi: Entries, g: Entries) -> Entries:
    """Returns `(θ φᵀ) g` for each group in O(E), as θ times the number <φ, g>."""
    return theta * _sum(phi * g)


def compact_gaussian(
    theta: Entries, phi: Entries, g: Entries, *, order: int, gamma: float, exact_beta: bool
) -> tuple[Tensor, Entries]:
    """Applies the expansion of the Gaussian kernel to g in O(order · E). Returns the term of order
    0, which is one number per group unless `exact_beta` is set, and the sum of the other terms."""
    if exact_beta:
        g = g * (-gamma * phi.square()).exp()
        factor: Tensor | float = (-gamma * theta.square()).exp()
    else:
        factor = math.exp(-2 * gamma)
    first, higher = _sum(g), torch.zeros_like(theta)
    power, weighted = torch.ones_like(theta), g
    for o in range(1, order + 1):
        power, weighted = power * theta, weighted * phi  # θ^o, φ^o g
        higher = higher + power * ((2 * gamma) ** o / math.factorial(o) * _sum(weighted))
    return first * factor, higher * factor


class CompactNonLocal(nn.Module):
    """A CGNL or CGNLx block; keeps the shape (N, C, T, H, W); linear in T·H·W in time and memory.

    The norm starts at zero, so the block starts as the identity.

    Args:
        inner_channels: Width C_i of θ, φ and g. Default: C / 2.
        groups: Number G of channel groups; channels attend within their group. It must divide C
            and C_i.
        kernel: "dot" (CGNL) or "gaussian" (CGNLx).
        order: The highest power of CGNLx. The authors train with 3; the default of their class is
            2.
        exact_beta: Keep the factor exp(-γ(θ² + φ²)) of CGNLx in place of the authors' constant.
        gamma: γ of CGNLx.
        scale: Divide <φ, g> by 1 ("none", the authors' setting), by sqrt(n) ("root", their option)
            or by n ("count"). With norm="gn" this does not change the dot kernel.
        norm: "gn", the group norm of the published results, in the same groups, or "bn".

    Raises:
        ValueError: If a name is unknown, `groups` does not divide both widths, or `order` or
            `gamma` is too small.
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        groups: int = 8,
        kernel: str = "dot",
        order: int = 3,
        exact_beta: bool = False,
        gamma: float = 1e-4,
        scale: str = "none",
        norm: str = "gn",
    ) -> None:
        super().__init__()
        inner = inner_channels or max(channels // 2, 1)
        one_of("kernel", kernel, ("dot", "gaussian"))
        one_of("scale", scale, ("none", "root", "count"))
        one_of("norm", norm, ("gn", "bn"))
        if groups < 1 or channels % groups or inner % groups:
            raise ValueError(
                f"groups={groups} does not divide both {channels} channels and {inner} inner "
                "channels; choose a common divisor"
            )
        if order < 0:
            raise ValueError(f"order: got {order}; need at least 0")
        if gamma <= 0:
            raise ValueError(f"gamma: got {gamma}; need more than 0")
        self.groups = groups
        self.kernel = kernel
        self.order = order
        self.exact_beta = exact_beta
        self.gamma = gamma
        self.scale = scale
        self.theta, self.phi, self.g = (nn.Conv3d(channels, inner, 1, bias=False) for _ in range(3))
        self.out = nn.Conv3d(inner, channels, 1, groups=groups, bias=False)
        self.norm = nn.GroupNorm(groups, channels) if norm == "gn" else nn.BatchNorm3d(channels)
        small_weights(self)
        zero_norm(self.norm)

    def forward(self, x: Video) -> Video:
        theta, phi, g = self.theta(x), self.phi(x), self.g(x)
        with autocast_off(x):  # sums of 1e5 terms, and θ times them
            first, higher = self.respond(theta, phi, g)
            y = (first + higher).flatten(1, 2).to(self.out.weight.dtype)
            y = self.norm(self.out(y))
        return x + y.to(x.dtype)

    def maps(self, x: Video) -> dict[str, GateMap]:
        """Returns how strongly each position responds: |y| summed over channels.

        For the dot kernel this is |θ_i| |<φ, g>|. The term of order 0 of CGNLx is left out; without
        `exact_beta` it does not depend on the position.
        """
        theta, phi, g = self.theta(x), self.phi(x), self.g(x)
        with autocast_off(x):
            _, y = self.respond(theta, phi, g)
        description = "How strongly each position of each frame responds to the whole clip"
        return {"": GateMap("spatial", y.abs().sum((1, 2)), description=description)}

    def respond(self, theta: Video, phi: Video, g: Video) -> tuple[Tensor | float, Tensor]:
        """Returns the term of order 0 (0 for "dot") and the rest of y, (N, G, C_i/G, T, H, W)."""
        theta, phi, g = (widen(y).unflatten(1, (self.groups, -1)) for y in (theta, phi, g))
        if self.scale != "none":
            g = g / theta[0, 0].numel() ** (0.5 if self.scale == "root" else 1.0)
        if self.kernel == "dot":
            return 0.0, compact_dot(theta, phi, g)
        return compact_gaussian(
            theta, phi, g, order=self.order, gamma=self.gamma, exact_beta=self.exact_beta
        )
