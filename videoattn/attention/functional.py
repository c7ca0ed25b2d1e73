"""The math of pairwise attention, and the choice of a fast path.

Tokens are (N, P, C): P positions, in the order T, H, W, with C channels. `attend` computes
`normalize(q kᵀ · scale) v`; `attend_separable` has the logits `ReLU(a_i + b_j)` instead of the
product. Both have an explicit path that builds the whole map. Tests compare the other paths with it
in float64.

| normalizer | weight for logit l_ij, P keys | a row                          |
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
Normalizer = Literal["softmax", "sigmoid", "count"]
Path = Literal["auto", "explicit", "fused", "linear", "chunked"]

_PATHS: dict[str, tuple[Path, ...]] = {
    "softmax": ("fused", "chunked"),
    "sigmoid": ("chunked",),
    "count": ("linear",),
}
"""Paths of each normalizer besides "auto" and "explicit". "auto" prefers the first."""
NORMALIZERS = tuple(_PATHS)
MOST_AT_ONCE = 2**24
"""The number of map entries that a chunked path aims to build at a time (64 MiB of float32)."""


def autocast_off(x: Tensor) -> AbstractContextManager[object]:
    """Returns a context without autocast, for sums and logits that bfloat16 cannot hold."""
    # The meta device has no autocast.
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def widen(x: Tensor) -> Tensor:
    """Casts to float32, or keeps a wider type. Sums, norms and exponentials need this."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_tokens(x: Video) -> Tokens:
    """Returns (N, C, T, H, W) as (N, T·H·W, C): a view if x is channels-last in memory."""
    return x.flatten(2).transpose(1, 2)


def from_tokens(tokens: Tokens, grid: Grid) -> Video:
    """Returns (N, T·H·W, C) as (N, C, T, H, W), the inverse of `to_tokens`."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def normalize(logits: Float[Tensor, "... P"], normalizer: Normalizer) -> Float[Tensor, "... P"]:
    """Returns the attention weights for logits, as in the table above. With its offset log P, the
    sigmoid gives weights that sum to about 1 over the keys if the logits are near 0, for any P."""
    if normalizer == "softmax":
        return logits.softmax(-1)
    num_keys = logits.shape[-1]
    return (logits - math.log(num_keys)).sigmoid() if normalizer == "sigmoid" else logits / num_keys


def attention_weights(
    q: Float[Tensor, "N Q D"], k: Float[Tensor, "N P D"], normalizer: Normalizer, scale: float
) -> Float[Tensor, "N Q P"]:
    """Returns the rows of the map for these queries, explicitly: O(Q·P) memory."""
    return normalize(q @ k.transpose(1, 2) * scale, normalizer)


def attend(
    q: Float[Tensor, "N Q D"],
    k: Float[Tensor, "N P D"],
    v: Float[Tensor, "N P E"],
    *,
    normalizer: Normalizer = "softmax",
    scale: float = 1.0,
    path: Path = "auto",
) -> Float[Tensor, "N Q E"]:
    """Returns `normalize(q kᵀ · scale) v`, by the cheapest exact path.

    softmax uses `scaled_dot_product_attention` ("fused": memory linear in positions). count is
    re-associated to `q ((kᵀ/P) v)` ("linear") if that needs fewer multiply-adds: (Q + P)·D·E
    instead of Q·P·(D + E). sigmoid has neither. Its rows are computed in float32, for some queries
    at a time ("chunked": memory linear in positions), and once more in the backward pass. The same
    path computes softmax in bfloat16 on a CPU, with bfloat16 logits: it is 1.5 to 3 times as fast
    as the fused kernel (measured by `tools/bench/attention_paths.py`).

    Raises:
        ValueError: If the normalizer or the path does not exist.
    """
    check_path(path, normalizer, *_PATHS.get(normalizer, ()))
    if path == "auto":
        path = _PATHS[normalizer][0]
        if normalizer == "count":
            num_queries, num_keys, d, e = q.shape[1], k.shape[1], k.shape[2], v.shape[2]
            linear = (num_queries + num_keys) * d * e
            path = "linear" if linear < num_queries * num_keys * (d + e) else "explicit"
        elif path == "fused" and q.dtype == torch.bfloat16 and q.device.type == "cpu":
            path = "chunked"
    if path == "fused":
        return _fused(q, k, v, scale)
    if path == "linear":
        with autocast_off(q):  # D x E sums over every position
            mixed = (widen(k) * (scale / k.shape[1])).transpose(1, 2) @ widen(v)  # (N, D, E)
            return (widen(q) @ mixed).to(v.dtype)

    def rows(queries: Tensor) -> Tensor:
        return attention_weights(queries, keys, normalizer, scale).to(values.dtype)

    keys, values = k, v
    if path == "explicit":
        return rows(q) @ v
    if normalizer == "softmax":
        return by_queries(rows, q, v, entries=k.shape[1])
    with autocast_off(q):
        keys, values = widen(k), widen(v)
        return by_queries(rows, widen(q), values, entries=k.shape[1]).to(v.dtype)


def check_path(path: str, kind: str, *own: str) -> None:
    """Raises a ValueError if a kind of map does not have the path, or `kind` is an unknown
    normalizer. `own` lists the kind's paths besides "auto" and "explicit"; none if unknown."""
    if not own:
        raise ValueError(f"normalizer: got {kind!r}; choose from {', '.join(NORMALIZERS)}")
    allowed = ("auto", "explicit", *own)
    if path not in allowed:
        raise ValueError(f"path: got {path!r}; for {kind}, choose from {', '.join(allowed)}")


def by_queries(
    weights: Callable[[Tensor], Tensor], q: Tensor, v: Tensor, *, entries: int
) -> Tensor:
    """Returns `weights(q) @ v`, computed for some queries at a time.

    The backward pass computes the weights again instead of keeping them.

    Args:
        weights: Function from queries (N, Q, D) to rows (N, Q, P).
        entries: Count of intermediate values for one query of one clip.
    """

    def piece(rows: Tensor) -> Tensor:
        return weights(rows) @ v

    # An exported graph takes any number of clips.
    clips = 1 if torch.compiler.is_exporting() else len(q)
    pieces = q.split(max(MOST_AT_ONCE // (clips * entries), 1), dim=1)
    if len(pieces) == 1:
        return piece(q)
    if not torch.is_grad_enabled():
        return torch.cat([piece(rows) for rows in pieces], dim=1)
    again = [
        checkpoint(piece, rows, use_reentrant=False, preserve_rng_state=False) for rows in pieces
    ]
    return torch.cat(again, dim=1)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Runs `scaled_dot_product_attention` with one head.

    Its memory-saving kernels need q, k and v of one width, with contiguous channels; otherwise it
    silently builds the whole map. Zero columns change neither the logits, as the scale is explicit,
    nor the other outputs.
    """
    width = max(q.shape[2], v.shape[2])
    q_wide, k_wide, v_wide = (
        F.pad(x, (0, width - x.shape[2])).contiguous().unsqueeze(1) for x in (q, k, v)
    )
    y = F.scaled_dot_product_attention(q_wide, k_wide, v_wide, scale=scale)
    return y.squeeze(1)[..., : v.shape[2]]


def separable_weights(
    a: Float[Tensor, "N Q"], b: Float[Tensor, "N P"], normalizer: Normalizer = "count"
) -> Float[Tensor, "N Q P"]:
    """Returns `normalize(ReLU(a_i + b_j))`; "count" is the non-local paper's concatenation form."""
    return normalize((a.unsqueeze(2) + b.unsqueeze(1)).relu(), normalizer)


def attend_separable(
    a: Float[Tensor, "N Q"],
    b: Float[Tensor, "N P"],
    v: Float[Tensor, "N P E"],
    *,
    normalizer: Normalizer = "count",
    path: Path = "auto",
) -> Float[Tensor, "N Q E"]:
    """Returns `normalize(ReLU(a_i + b_j)) v`; for "count" in O((Q + P)(log P + E)) ("linear").

    With "count", only keys with b_j > -a_i contribute. In sorted b they are a suffix, and two
    suffix sums, S0 = Σ v_j and S1 = Σ b_j v_j, give `y_i = (a_i S0 + S1) / P`. The other
    normalizers have no such sums; they compute rows for some queries at a time ("chunked").

    Raises:
        ValueError: If the normalizer does not have the path.
    """
    check_path(path, "a separable map", "linear" if normalizer == "count" else "chunked")
    if normalizer != "count":
        with autocast_off(v):
            a, keys, values = widen(a), widen(b), widen(v)

            def rows(some: Tensor) -> Tensor:
                return separable_weights(some, keys, normalizer)

            if path == "explicit":
                return (rows(a) @ values).to(v.dtype)
            return by_queries(rows, a, values, entries=b.shape[1]).to(v.dtype)
    num_queries, num_keys = a.shape[1], b.shape[1]
    if path == "auto":  # sorting and gathering pay off once the map outgrows its two sides
        path = "linear" if num_queries * num_keys > 16 * (num_queries + num_keys) else "explicit"
    if path == "explicit":
        return separable_weights(a, b).to(v.dtype) @ v
    a, b, values = widen(a), widen(b), widen(v) / num_keys  # sums over every position
    b, order = b.sort(dim=1)
    values = values.gather(1, order.unsqueeze(2).expand_as(values))
    first = torch.searchsorted(b.detach(), -a.detach(), right=True)  # first key with b_j > -a_i
    first = first.unsqueeze(2).expand(-1, -1, v.shape[2])
    s0 = _suffix_sums(values).gather(1, first)
    s1 = _suffix_sums(b.unsqueeze(2) * values).gather(1, first)
    return (a.unsqueeze(2) * s0 + s1).to(v.dtype)


def _suffix_sums(x: Tensor) -> Tensor:
    """Returns (N, P + 1, E), whose entry i is the sum of x[:, i:]; the last one is 0."""
    return F.pad(x.flip(1).cumsum(1).flip(1), (0, 0, 0, 1))
