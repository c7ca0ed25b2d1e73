"""Similarities of tokens other than the dot product, and how `attend` serves them.

| similarity | logit of query i and key j      | path                                         |
| cosine     | q_i · k_j / (|q_i| |k_j|)       | `attend` on `cosine_tokens`                  |
| rbf        | -|q_i - k_j|² / 2               | `attend` on `rbf_tokens`                     |
| additive   | w · tanh(q_i + k_j)             | `attend_additive`, some queries at a time    |

The additive one is Bahdanau, Cho and Bengio's (ICLR 2015, arXiv 1409.0473), its matrices applied
to q and k before.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from videoattn.attention.functional import (
    Normaliser,
    Path,
    autocast_off,
    by_queries,
    check_path,
    normalise,
)


def cosine_tokens(x: Float[Tensor, "N P D"]) -> Float[Tensor, "N P D"]:
    """Tokens of length 1, so that their dot products are cosines; a token of 0 stays 0."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.normalize(x.to(wide), dim=-1, eps=1e-6)


def rbf_tokens(
    q: Float[Tensor, "N Q D"], k: Float[Tensor, "N P D"], normaliser: Normaliser
) -> tuple[Float[Tensor, "N Q W"], Float[Tensor, "N P W"]]:
    """Queries and keys whose dot product is `-|q_i - k_j|²/2`, in float32 at least.

    `q · k - |k|²/2` is one channel more: 1 in q, -|k|²/2 in k. What lacks, -|q|²/2, is the same for
    all keys: a softmax does not see it, the others get a second channel.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide), k.to(wide)
    q_length = -q.square().sum(-1, keepdim=True) / 2
    k_length = -k.square().sum(-1, keepdim=True) / 2
    q_one, k_one = torch.ones_like(q_length), torch.ones_like(k_length)
    if normaliser == "softmax":
        return torch.cat([q, q_one], dim=-1), torch.cat([k, k_length], dim=-1)
    return torch.cat([q, q_one, q_length], dim=-1), torch.cat([k, k_length, k_one], dim=-1)


def additive_weights(
    q: Float[Tensor, "N Q D"],
    k: Float[Tensor, "N P D"],
    w: Float[Tensor, " D"],
    normaliser: Normaliser = "softmax",
) -> Float[Tensor, "N Q P"]:
    """The rows of `w · tanh(q_i + k_j)`, explicitly: O(Q·P·D) memory on the way."""
    return normalise((q.unsqueeze(2) + k.unsqueeze(1)).tanh() @ w, normaliser)


def attend_additive(
    q: Float[Tensor, "N Q D"],
    k: Float[Tensor, "N P D"],
    w: Float[Tensor, " D"],
    v: Float[Tensor, "N P E"],
    *,
    normaliser: Normaliser = "softmax",
    path: Path = "auto",
) -> Float[Tensor, "N Q E"]:
    """`normalise(w · tanh(q_i + k_j)) v`, in float32 at least. The Q·P·D numbers inside cannot be
    avoided, but not all are there at once: "chunked" over queries, as "auto" is.

    Raises:
        ValueError: a path other than auto, explicit or chunked.
    """
    check_path(path, "an additive map", "chunked")
    with autocast_off(q):
        wide = torch.promote_types(q.dtype, torch.float32)
        q, keys, w, values = (x.to(wide) for x in (q, k, w, v))
        if path == "explicit":
            return (additive_weights(q, keys, w, normaliser) @ values).to(v.dtype)
        return by_queries(
            lambda rows: additive_weights(rows, keys, w, normaliser),
            q,
            values,
            entries=k.shape[1:].numel(),
        ).to(v.dtype)
