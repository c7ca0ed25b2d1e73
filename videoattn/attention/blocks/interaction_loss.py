"""The two losses of interaction-aware attention (Du et al., ECCV 2018, arXiv 1808.01106).

For one clip with pooled features X (P, C) and rows A (D, P), each of Euclidean length 1:

    interaction = -||A X||² + Σ_{m≠k} (A Aᵀ)²_mk
    diversity   = sqrt(Σ_jmk (1 - (a_mk - softmax(y_j)_mk)²))     a: the fused softmax, j: levels

The first loss favors rows that keep much of X and do not overlap. Over free rows of length 1,
principal components minimize the normalized form (positions are features, channels are samples);
softmax rows are positive and cannot reach them. The second loss keeps the fused rows away from
those of each level.

Where we differ. With the features X themselves and weight 1, the first loss collapses: D rows equal
to the first principal component cost `-D l_1 + D(D - 1)`, which is less than D components cost if
`D l_1 - Σ_{k≤D} l_k > D(D - 1)` (l: the eigenvalues of X Xᵀ). Activations usually satisfy this. The
loss is also unbounded below as X grows. So by default X is divided by its Frobenius norm, per clip,
and gets no gradient; the collapse then costs more than the components for every X. The second loss
varies only by a fraction of about 1/P. By default it is the root of the mean in place of the sum,
in [0, 1], and its gradient is then so small that a weight of 0.01 has hardly any effect. Both of
the paper's forms are available as "literal".
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

FORMS = ("normalized", "scaled", "literal")
"""normalized: X / ||X|| without a gradient for X. scaled: with a gradient. literal: the paper's."""

Rows = Float[Tensor, "N D P"]


def unit_rows(scores: Rows) -> Rows:
    """Returns `softmax(y) / ||softmax(y)||₂` over positions.

    Using the log of the norm avoids the square of a tiny weight, which would underflow.
    """
    return (scores - 0.5 * torch.logsumexp(2 * scores, dim=-1, keepdim=True)).exp()


def interaction_loss(
    rows: Rows, x: Float[Tensor, "N P C"], form: str = "normalized"
) -> Float[Tensor, " N"]:
    """Returns one value per clip, in [-D l_1, D(D - 1)] for rows of length 1."""
    if form == "normalized":
        x = x.detach()
    if form != "literal":
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        x = x / norm.clamp_min(torch.finfo(x.dtype).tiny)  # zero features stay zero
    kept = (rows @ x).square().sum((1, 2))
    overlaps = (rows @ rows.transpose(1, 2)).tril(-1)  # symmetric: each pair once
    return 2 * overlaps.square().sum((1, 2)) - kept


def diversity_loss(
    fused: Rows, levels: Sequence[Rows], form: str = "normalized"
) -> Float[Tensor, " N"]:
    """Returns one value per clip for softmax rows.

    The literal form lies in [sqrt(J D (P - 2)), sqrt(J D P)] for J levels; the other forms are
    divided by the upper bound.
    """
    rest = 1 - (fused.unsqueeze(1) - torch.stack(list(levels), 1)).square()  # (N, J, D, P)
    axes = (1, 2, 3)
    total = rest.sum(axes) if form == "literal" else rest.mean(axes)
    if fused.shape[-1] <= 2:  # the sum can reach 0, and sqrt has no gradient there
        total = total + torch.finfo(total.dtype).eps
    return total.sqrt()
