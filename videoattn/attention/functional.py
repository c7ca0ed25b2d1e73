"""The mathematics of pairwise attention, and the one place that picks a fast path.

Tokens are (N, P, C): P positions, in the order T, H, W, of C channels. `attend` is
`normalise(q kᵀ · scale) v`, `attend_separable` has the logits `ReLU(a_i + b_j)` in place of the
product. Both have an explicit path that builds the whole map; tests hold the others to it in
float64.

| normaliser | weight of key j, of P keys    | a row                          |
| softmax    | exp(l_ij) / Σ exp(l_ij)       | sums to 1                      |
| sigmoid    | sigmoid(l_ij - log P)         | in (0, 1), sums to about 1     |
| count      | l_ij / P                      | any sign, any sum              |
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from videoattn.types import Grid, Video

Tokens = Float[Tensor, "N P C"]
Normaliser = Literal["softmax", "sigmoid", "count"]
Path = Literal["auto", "explicit", "fused", "linear", "chunked"]

NORMALISERS = ("softmax", "sigmoid", "count")
MOST_AT_ONCE = 2**24
"""A chunked path builds so many entries at a time (64 MiB of float32), or one query's."""


def autocast_off(x: Tensor) -> AbstractContextManager[object]:
    """For sums over every position and for logits that bfloat16 would garble. On the meta device,
    where shapes are computed, there is no autocast to leave."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def to_tokens(x: Video) -> Tokens:
    """(N, C, T, H, W) -> (N, T·H·W, C): a view when x is channels-last in memory."""
    return x.flatten(2).transpose(1, 2)


def from_tokens(tokens: Tokens, grid: Grid) -> Video:
    """(N, T·H·W, C) -> (N, C, T, H, W), the inverse of `to_tokens`."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def normalise(logits: Float[Tensor, "N Q P"], normaliser: Normaliser) -> Float[Tensor, "N Q P"]:
    """The weights of the table above. With the sigmoid's offset, logits near 0 give a row a sum
    near 1 for any number of keys."""
    if normaliser == "softmax":
        return logits.softmax(-1)
    num_keys = logits.shape[-1]
    return (logits - math.log(num_keys)).sigmoid() if normaliser == "sigmoid" else logits / num_keys


def attention_weights(
    q: Float[Tensor, "N Q D"], k: Float[Tensor, "N P D"], normaliser: Normaliser, scale: float
) -> Float[Tensor, "N Q P"]:
    """The rows of the map for the queries given, explicitly: O(Q·P) memory."""
    return normalise(q @ k.transpose(1, 2) * scale, normaliser)


def attend(
    q: Float[Tensor, "N Q D"],
    k: Float[Tensor, "N P D"],
    v: Float[Tensor, "N P E"],
    *,
    normaliser: Normaliser = "softmax",
    scale: float = 1.0,
    path: Path = "auto",
) -> Float[Tensor, "N Q E"]:
    """`normalise(q kᵀ · scale) v`, by the path that is cheapest and still exact.

    softmax goes through `scaled_dot_product_attention` ("fused": memory linear in positions).
    count is re-associated to `q ((kᵀ/P) v)` ("linear") where that costs fewer multiply-adds:
    (Q + P)·D·E against Q·P·(D + E). sigmoid has neither: its rows are made in float32 by some
    queries at a time ("chunked": memory linear in positions), again in the backward pass.

    Raises:
        ValueError: the path does not exist for the normaliser.
    """
    own: dict[str, Path] = {"softmax": "fused", "sigmoid": "chunked", "count": "linear"}
    check_path(path, normaliser, own.get(normaliser))
    if path == "auto":
        path = _cheaper_association(q, k, v) if normaliser == "count" else own[normaliser]
    if path == "fused":
        return _fused(q, k, v, scale)
    if path == "linear":
        with autocast_off(q):  # D x E sums over every position
            wide = torch.promote_types(q.dtype, torch.float32)
            q_wide, k_wide, v_wide = q.to(wide), k.to(wide), v.to(wide)
            mixed = (k_wide * (scale / k.shape[1])).transpose(1, 2) @ v_wide  # (N, D, E)
            return (q_wide @ mixed).to(v.dtype)
    if path == "chunked":
        with autocast_off(q):
            wide = torch.promote_types(q.dtype, torch.float32)
            keys = k.to(wide)
            return by_queries(
                lambda rows: attention_weights(rows, keys, normaliser, scale),
                q.to(wide), v.to(wide), entries=k.shape[1],
            ).to(v.dtype)  # fmt: skip
    return attention_weights(q, k, normaliser, scale).to(v.dtype) @ v


def check_path(path: str, of: str, own: str | None) -> None:
    if own is None:
        raise ValueError(f"normaliser: {of!r} is not one of {', '.join(NORMALISERS)}")
    allowed = ("auto", "explicit", own)
    if path not in allowed:
        raise ValueError(f"path {path!r} does not exist for {of}; use one of {allowed}")


def by_queries(
    weights: Callable[[Tensor], Tensor], q: Tensor, v: Tensor, *, entries: int
) -> Tensor:
    """`weights(q) @ v` by pieces of the queries, where a query of one clip needs `entries` numbers.

    The backward pass makes the weights of a piece again instead of keeping them.
    """

    def piece(rows: Tensor) -> Tensor:
        return weights(rows) @ v

    clips = 1 if torch.compiler.is_exporting() else len(q)  # an export is for any number of them
    pieces = q.split(max(MOST_AT_ONCE // (clips * entries), 1), dim=1)
    if len(pieces) == 1:
        return piece(q)
    if not torch.is_grad_enabled():
        return torch.cat([piece(rows) for rows in pieces], dim=1)
    again = [
        checkpoint(piece, rows, use_reentrant=False, preserve_rng_state=False) for rows in pieces
    ]
    return torch.cat(again, dim=1)


def _cheaper_association(q: Tensor, k: Tensor, v: Tensor) -> Path:
    num_queries, num_keys = q.shape[1], k.shape[1]
    linear = (num_queries + num_keys) * k.shape[2] * v.shape[2]
    return "linear" if linear < num_queries * num_keys * (k.shape[2] + v.shape[2]) else "explicit"


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One-head scaled_dot_product_attention. Its memory-saving kernels want q, k and v of one
    width (zero columns change neither the logits, as the scale is explicit, nor the other outputs)
    and channels next to each other in memory, which a pooled video's are not; otherwise it silently
    builds the whole map."""
    width = max(q.shape[2], v.shape[2])
    q_wide, k_wide, v_wide = (
        F.pad(x, (0, width - x.shape[2])).contiguous().unsqueeze(1) for x in (q, k, v)
    )
    y = F.scaled_dot_product_attention(q_wide, k_wide, v_wide, scale=scale)
    return y.squeeze(1)[..., : v.shape[2]]


def separable_weights(
    a: Float[Tensor, "N Q"], b: Float[Tensor, "N P"], normaliser: Normaliser = "count"
) -> Float[Tensor, "N Q P"]:
    """The rows of `ReLU(a_i + b_j)`, explicitly; by "count" they are the concatenation form's."""
    return normalise((a.unsqueeze(2) + b.unsqueeze(1)).relu(), normaliser)


def attend_separable(
    a: Float[Tensor, "N Q"],
    b: Float[Tensor, "N P"],
    v: Float[Tensor, "N P E"],
    *,
    normaliser: Normaliser = "count",
    path: Path = "auto",
) -> Float[Tensor, "N Q E"]:
    """`y_i = Σ_j ReLU(a_i + b_j) v_j / P` in O((Q + P)(log P + E)), exact in value and gradient.

    Only keys with b_j > -a_i count. With b sorted they are a suffix, and two suffix sums,
    S0 = Σ v_j and S1 = Σ b_j v_j, give `y_i = (a_i S0 + S1) / P`. The other normalisers have no
    such sums: their rows are made by some queries at a time ("chunked").

    Raises:
        ValueError: a path that the normaliser does not have.
    """
    check_path(path, "a separable map", "linear" if normaliser == "count" else "chunked")
    if normaliser != "count":
        with autocast_off(v):
            wide = torch.promote_types(v.dtype, torch.float32)
            a, keys, values = a.to(wide), b.to(wide), v.to(wide)
            if path == "explicit":
                return (separable_weights(a, keys, normaliser) @ values).to(v.dtype)
            return by_queries(
                lambda rows: separable_weights(rows, keys, normaliser),
                a, values, entries=b.shape[1],
            ).to(v.dtype)  # fmt: skip
    num_queries, num_keys = a.shape[1], b.shape[1]
    if path == "auto":  # sorting and gathering pay off once the map outgrows its two sides
        path = "linear" if num_queries * num_keys > 16 * (num_queries + num_keys) else "explicit"
    if path == "explicit":
        return separable_weights(a, b).to(v.dtype) @ v
    wide = torch.promote_types(v.dtype, torch.float32)  # sums over every position
    a, b, values = a.to(wide), b.to(wide), v.to(wide) / num_keys
    b, order = b.sort(dim=1)
    values = values.gather(1, order.unsqueeze(2).expand_as(values))
    first = torch.searchsorted(b.detach(), -a.detach(), right=True)  # first key with b_j > -a_i
    first = first.unsqueeze(2).expand(-1, -1, v.shape[2])
    s0 = _suffix_sums(values).gather(1, first)
    s1 = _suffix_sums(b.unsqueeze(2) * values).gather(1, first)
    return (a.unsqueeze(2) * s0 + s1).to(v.dtype)


def _suffix_sums(x: Tensor) -> Tensor:
    """(N, P, E) -> (N, P + 1, E): entry i is the sum of x[:, i:]; the last one is 0."""
    return F.pad(x.flip(1).cumsum(1).flip(1), (0, 0, 0, 1))
