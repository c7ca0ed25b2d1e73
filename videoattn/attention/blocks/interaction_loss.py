"""The two losses of interaction-aware attention (Du et al., ECCV 2018, arXiv 1808.01106).

For one clip with pooled features X (P, C) and rows A (D, P), each of Euclidean length 1:

    interaction = -||A X||² + Σ_{m≠k} (A Aᵀ)²_mk                                          (Eq. 6)
    diversity   = sqrt(Σ_jmk (1 - (a_mk - softmax(y_j)_mk)²))     a: the fused softmax, j: levels

The first loss favors rows that keep much of X and do not overlap. Over free rows of length 1,
principal components minimize it once X has a bounded norm (positions are features, channels are
samples). The rows of a layer are softmaxes: they are positive, overlap, and do not reach the
principal subspace. In the tests' example the smallest cosine between their span and that subspace
stays below 0.5, where free rows with the same loss reach 0.99999. This limits the paper's design,
not this code. The second loss penalizes fused rows that resemble the rows of a level.

| form       | interaction                        | diversity                                      |
| balanced   | on X / |X|, without a gradient for | the mean of 2 a·s / (|a|² + |s|²) over rows    |
|            | X, divided by D(D - 1)             | and levels, s = softmax(y_j); 0 to 1           |
| normalized | on X / |X|, without a gradient     | the root of the mean, 0 to 1                   |
| scaled     | on X / |X|, with a gradient        | the root of the mean                           |
| literal    | the paper's                        | the paper's                                    |

Where we differ. With the features X themselves and weight 1, the first loss collapses: D rows equal
to the first principal component cost `-D l_1 + D(D - 1)`, which is less than D components cost if
`D l_1 - Σ_{k≤D} l_k > D(D - 1)` (l: the eigenvalues of X Xᵀ). Activations usually satisfy this. The
loss is also unbounded below as X grows. With X / |X| the collapse costs more than the components
for every X.

"balanced", the default, is ours. Divided by the number of pairs, the first loss has the minimum of
the normalized form, and its gradient keeps its size relative to that of a classifier of all rows;
the sum over pairs grows with D (for D = 49 to thousands of times cross-entropy's gradient). The
second loss of the paper is constant up to a fraction of about 1/P, so its gradient is close to
zero. Since |a - s|² <= |a|² + |s|² for rows that are not negative, 1 - δ² with δ² divided by that
bound, summed over positions, is 2 a·s / (|a|² + |s|²): 1 for equal rows, 0 for rows without a
common position, for any P. At the start of training, with random features, both gradients keep
their ratio to cross-entropy's within a fifth for 4 to 49 rows, 49 to 392 positions and 64 to 512
channels (tests/attention/test_interaction_loss.py).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

FORMS = ("balanced", "normalized", "scaled", "literal")

Rows = Float[Tensor, "N D P"]


def unit_rows(scores: Rows) -> Rows:
    """Returns `softmax(y) / ||softmax(y)||₂` over positions.

    Using the log of the norm avoids the square of a tiny weight, which would underflow.
    """
    return (scores - 0.5 * torch.logsumexp(2 * scores, dim=-1, keepdim=True)).exp()


def interaction_loss(
    rows: Rows, x: Float[Tensor, "N P C"], form: str = "balanced"
) -> Float[Tensor, " N"]:
    """Returns one value per clip: in [-D l_1, D(D - 1)] for rows of length 1. "balanced" divides it
    by D(D - 1), or by 1 if there is one row."""
    if form in ("balanced", "normalized"):
        x = x.detach()
    if form != "literal":
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        x = x / norm.clamp_min(torch.finfo(x.dtype).tiny)  # zero features stay zero
    kept = (rows @ x).square().sum((1, 2))
    overlaps = (rows @ rows.transpose(1, 2)).tril(-1)  # symmetric: each pair once
    loss = 2 * overlaps.square().sum((1, 2)) - kept
    count = rows.shape[1]
    return loss / max(count * (count - 1), 1) if form == "balanced" else loss


def diversity_loss(
    fused: Rows, levels: Sequence[Rows], form: str = "balanced"
) -> Float[Tensor, " N"]:
    """Returns one value per clip for softmax rows.

    The literal form lies in [sqrt(J D (P - 2)), sqrt(J D P)] for J levels, the others in [0, 1].
    """
    own = torch.stack(list(levels), 1)  # (N, J, D, P)
    fused = fused.unsqueeze(1)
    if form == "balanced":
        squares = fused.square().sum(-1) + own.square().sum(-1)
        return (2 * (fused * own).sum(-1) / squares).mean((1, 2))
    rest, axes = 1 - (fused - own).square(), (1, 2, 3)
    total = rest.sum(axes) if form == "literal" else rest.mean(axes)
    if fused.shape[-1] <= 2:  # the sum can reach 0, and sqrt has no gradient there
        total = total + torch.finfo(total.dtype).eps
    return total.sqrt()
