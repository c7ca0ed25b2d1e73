"""The two losses of interaction-aware attention (Du et al., ECCV 2018, arXiv 1808.01106).

For one clip, X (P, C) the pooled features, A (D, P) the rows, each of Euclidean length 1:

    interaction = -||A X||² + Σ_{m≠k} (A Aᵀ)²_mk
    diversity   = sqrt(Σ_jmk (1 - (a_mk - softmax(y_j)_mk)²))     a: the fused softmax, j: levels

The first asks for rows that keep as much of X as principal components would (positions are the
features and channels the samples), and do not overlap; the second keeps the fused rows away from
each level's own.

Where we differ. With X as it comes and weight 1 the first one collapses: D rows that all equal the
first principal component cost `-D l_1 + D(D - 1)`, less than D components do wherever
`D l_1 - Σ_{k≤D} l_k > D(D - 1)` (l: the eigenvalues of X Xᵀ), which activations usually fulfil. And
it falls for ever as X grows. So by default X is divided by its Frobenius norm, per clip, and gets
no gradient; the collapse is then dearer than the components for every X. The second varies by a
share of about 1/P only; by default it is a root of the mean instead of the sum, in [0, 1]. Both of
the paper's forms are there as "literal".
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

FORMS = ("normalized", "scaled", "literal")
"""normalized: X / ||X||, without a gradient for X. scaled: with one. literal: the paper's."""

Rows = Float[Tensor, "N D P"]


def unit_rows(scores: Rows) -> Rows:
    """`softmax(y) / ||softmax(y)||₂` over positions, in one step through the log of the norm: no
    square of a tiny weight underflows."""
    return (scores - 0.5 * torch.logsumexp(2 * scores, dim=-1, keepdim=True)).exp()


def interaction_loss(
    rows: Rows, x: Float[Tensor, "N P C"], form: str = "normalized"
) -> Float[Tensor, " N"]:
    """One value a clip, for rows of length 1: within [-D l_1, D(D - 1)]. X Xᵀ is never formed."""
    if form == "normalized":
        x = x.detach()
    if form != "literal":
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        x = x / norm.clamp_min(torch.finfo(x.dtype).tiny)  # features of zeros stay zeros
    kept = (rows @ x).square().sum((1, 2))
    overlaps = (rows @ rows.transpose(1, 2)).tril(-1)  # symmetric: each pair once
    return 2 * overlaps.square().sum((1, 2)) - kept


def diversity_loss(
    fused: Rows, levels: Sequence[Rows], form: str = "normalized"
) -> Float[Tensor, " N"]:
    """One value a clip, of softmax rows. The literal form lies within
    [sqrt(J D (P - 2)), sqrt(J D P)] for J levels; the others are divided by the upper bound."""
    rest = 1 - (fused.unsqueeze(1) - torch.stack(list(levels), 1)).square()  # (N, J, D, P)
    axes = (1, 2, 3)
    total = rest.sum(axes) if form == "literal" else rest.mean(axes)
    if fused.shape[-1] <= 2:  # only there the sum can reach 0, where a root has no gradient
        total = total + torch.finfo(total.dtype).eps
    return total.sqrt()
