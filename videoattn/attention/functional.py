"""The mathematics of pairwise attention, and the one place that picks a fast path.

Tokens are (N, P, C): P positions, in the order T, H, W, of C channels. `attend` is
`normalise(q kᵀ · scale) v`, `attend_separable` is the non-local paper's concatenation form. Both
have an explicit path that builds the whole map; tests hold the fast ones to it in float64.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from videoattn.types import Video

Tokens = Float[Tensor, "N P C"]
Grid = tuple[int, int, int]
Normaliser = Literal["softmax", "count"]
Path = Literal["auto", "explicit", "fused", "linear"]


_explicit_calls: list[str] | None = None


@contextmanager
def explicit_paths(on: bool = True) -> Iterator[list[str]]:
    """Makes every call inside that leaves the path to "auto" build its whole map, for measuring what
    the fast paths save. Yields the names of the functions that were called, one for each call."""
    global _explicit_calls
    before, calls = _explicit_calls, list[str]()
    _explicit_calls = calls if on else None
    try:
        yield calls
    finally:
        _explicit_calls = before


def _chosen(path: Path, function: str) -> Path:
    if path == "auto" and _explicit_calls is not None:
        _explicit_calls.append(function)
        return "explicit"
    return path


def to_tokens(x: Video) -> Tokens:
    """(N, C, T, H, W) -> (N, T·H·W, C): a view when x is channels-last in memory."""
    return x.flatten(2).transpose(1, 2)


def from_tokens(tokens: Tokens, grid: Grid) -> Video:
    """(N, T·H·W, C) -> (N, C, T, H, W), the inverse of `to_tokens`."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def attention_weights(
    q: Float[Tensor, "N Q D"], k: Float[Tensor, "N P D"], normaliser: Normaliser, scale: float
) -> Float[Tensor, "N Q P"]:
    """The rows of the map for the queries given, explicitly: O(Q·P) memory.

    softmax: rows sum to 1. count: `q kᵀ · scale / P`, which may be negative and sums to nothing.
    """
    logits = q @ k.transpose(1, 2) * scale
    return logits.softmax(-1) if normaliser == "softmax" else logits / k.shape[1]


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
    (Q + P)·D·E against Q·P·(D + E).

    Raises:
        ValueError: the path does not exist for the normaliser.
    """
    path = _chosen(path, "attend")
    allowed = ("auto", "explicit", "fused" if normaliser == "softmax" else "linear")
    if path not in allowed:
        raise ValueError(f"path {path!r} does not exist for {normaliser}; use one of {allowed}")
    if path == "auto":
        path = "fused" if normaliser == "softmax" else _cheaper_association(q, k, v)
    if path == "fused":
        return _fused(q, k, v, scale)
    if path == "linear":
        with torch.autocast(q.device.type, enabled=False):  # D x E sums over every position
            wide = torch.promote_types(q.dtype, torch.float32)
            q_wide, k_wide, v_wide = q.to(wide), k.to(wide), v.to(wide)
            mixed = (k_wide * (scale / k.shape[1])).transpose(1, 2) @ v_wide  # (N, D, E)
            return (q_wide @ mixed).to(v.dtype)
    return attention_weights(q, k, normaliser, scale).to(v.dtype) @ v


def _cheaper_association(q: Tensor, k: Tensor, v: Tensor) -> Path:
    num_queries, num_keys = q.shape[1], k.shape[1]
    linear = (num_queries + num_keys) * k.shape[2] * v.shape[2]
    return "linear" if linear < num_queries * num_keys * (k.shape[2] + v.shape[2]) else "explicit"


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One-head scaled_dot_product_attention. Its memory-saving kernels want q, k and v of one
    width; zero columns change neither the logits (the scale is explicit) nor the other outputs."""
    width = max(q.shape[2], v.shape[2])
    q_wide, k_wide, v_wide = (F.pad(x, (0, width - x.shape[2])).unsqueeze(1) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q_wide, k_wide, v_wide, scale=scale)
    return y.squeeze(1)[..., : v.shape[2]]


def separable_weights(a: Float[Tensor, "N Q"], b: Float[Tensor, "N P"]) -> Float[Tensor, "N Q P"]:
    """`ReLU(a_i + b_j) / P`: the concatenation form's rows, explicitly."""
    return (a.unsqueeze(2) + b.unsqueeze(1)).relu() / b.shape[1]


def attend_separable(
    a: Float[Tensor, "N Q"],
    b: Float[Tensor, "N P"],
    v: Float[Tensor, "N P E"],
    *,
    path: Path = "auto",
) -> Float[Tensor, "N Q E"]:
    """`y_i = Σ_j ReLU(a_i + b_j) v_j / P` in O((Q + P)(log P + E)), exact in value and gradient.

    Only keys with b_j > -a_i count. With b sorted they are a suffix, and two suffix sums,
    S0 = Σ v_j and S1 = Σ b_j v_j, give `y_i = (a_i S0 + S1) / P`.

    Raises:
        ValueError: a path other than auto, explicit or linear.
    """
    path = _chosen(path, "attend_separable")
    if path not in ("auto", "explicit", "linear"):
        raise ValueError(
            f"path {path!r} does not exist for a separable map; use auto, explicit or linear"
        )
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


class PairwiseAttention:
    """What a pairwise block would look at: the map's rows, computed when asked for.

    grid_q, grid_k: (T, H, W) of the queries and of the keys (pooled keys have a smaller grid).
    normalised: whether a row is a distribution over the keys.
    kind: "local" where a query sees a window around itself only; its rows are 0 elsewhere.
    rows: from flat query positions (Q,) to their weights (N, Q, P).
    """

    def __init__(
        self,
        grid_q: Grid,
        grid_k: Grid,
        *,
        normalised: bool,
        rows: Callable[[Tensor], Tensor],
        kind: Literal["pairwise", "local"] = "pairwise",
    ) -> None:
        self.kind = kind
        self.grid_q = grid_q
        self.grid_k = grid_k
        self.normalised = normalised
        self._rows = rows

    def rows(self, positions: Tensor) -> Float[Tensor, "N Q T H W"]:
        """The rows of the query positions (flat indices into grid_q, (Q,)), in float32 or wider."""
        return self._rows(positions).unflatten(2, self.grid_k)
