"""Computes the maps of other libraries' attention modules from the arguments of a call."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.attention.functional import autocast_off, widen
from videoattn.attention.maps import Factors, PairwiseAttention
from videoattn.types import Grid


def multihead_maps(
    module: nn.MultiheadAttention,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    grid: Grid,
    special: tuple[str, ...],
) -> dict[str, PairwiseAttention]:
    """Returns the map of an `nn.MultiheadAttention` for one call, under the key "".

    Args:
        args, kwargs: Arguments of the call.
        grid: (T, H, W) of the network's tokens.
        special: Names of the special tokens, which come first.

    Raises:
        ValueError: If the number of keys differs from the number of tokens.
    """
    call = inspect.signature(module.forward).bind(*args, **kwargs)
    call.apply_defaults()
    query, key = (_batch_first(module, call.arguments[name]) for name in ("query", "key"))
    with autocast_off(query):
        q, k = _projected(module, query, key)
    mask = _mask(call.arguments, q, k)
    num_special, total = len(special), len(special) + math.prod(grid)
    if key.shape[1] != total:
        raise ValueError(
            f"MultiheadAttention: got {key.shape[1]} keys; the network's token grid {grid} and "
            f"{num_special} special tokens are {total}: correct the network's ModelInfo"
        )
    order = torch.arange(k.shape[2], device=k.device)
    order[:total] = order[:total].roll(-num_special)  # the special tokens after those of the grid
    k, mask = k[:, :, order], mask[..., order]
    if query.shape[1] == total:
        order = order[:total]
        q, mask = q[:, :, order], mask if mask.shape[2] == 1 else mask[:, :, order]
        return {"": _attention(q, k, mask, grid, grid, special)}
    # Learned queries that pool the tokens.
    one = query.shape[1] == 1
    special = ("class",) if one else tuple(f"query{i}" for i in range(query.shape[1]))
    return {"": _attention(q, k, mask, (0, 0, 0), grid, special)}


def _attention(
    q: Tensor, k: Tensor, mask: Tensor, grid_q: Grid, grid_k: Grid, special: tuple[str, ...]
) -> PairwiseAttention:
    scale = q.shape[3] ** -0.5

    def rows(queries: Tensor) -> Tensor:
        queries = queries.to(q.device)
        chosen = mask if mask.shape[2] == 1 else mask[:, :, queries]
        with autocast_off(q):
            return (q[:, :, queries] @ k.transpose(2, 3) * scale + chosen).softmax(-1)

    factors = None if bool((mask != 0).any()) else Factors(q, k, "softmax", scale)
    return PairwiseAttention(
        grid_q, grid_k, True, rows, num_heads=q.shape[1], special=special, factors=factors
    )


def _batch_first(module: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    if tokens.ndim == 2:  # one clip, without a batch axis
        return tokens.unsqueeze(0)
    return tokens if module.batch_first else tokens.transpose(0, 1)


def _projected(module: nn.MultiheadAttention, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Returns queries (N, h, Q, D) and keys (N, h, P, D), in float32 or wider."""
    if module.in_proj_weight is not None:
        q_weight, k_weight, _ = module.in_proj_weight.chunk(3)
    else:
        q_weight, k_weight = module.q_proj_weight, module.k_proj_weight
    q_bias = k_bias = None
    if module.in_proj_bias is not None:
        q_bias, k_bias, _ = module.in_proj_bias.chunk(3)
    q, k = F.linear(query, q_weight, q_bias), F.linear(key, k_weight, k_bias)
    if module.bias_k is not None:
        k = torch.cat([k, module.bias_k.expand(len(k), -1, -1)], dim=1)
    if module.add_zero_attn:
        k = F.pad(k, (0, 0, 0, 1))
    q, k = (widen(x).unflatten(2, (module.num_heads, -1)).transpose(1, 2) for x in (q, k))
    return q, k


def _mask(arguments: Mapping[str, Any], q: Tensor, k: Tensor) -> Tensor:
    """Returns all masks as one term to add to the logits, (N or 1, h or 1, Q or 1, P)."""
    extra = q.new_zeros(1, 1, 1, k.shape[2])
    for name in ("attn_mask", "key_padding_mask"):
        mask = arguments[name]
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf)
        mask = F.pad(mask, (0, k.shape[2] - mask.shape[-1]))  # bias_k, zero key: unmasked
        if name == "key_padding_mask":
            mask = mask.view(-1, 1, 1, mask.shape[-1])
        else:
            mask = mask.unflatten(0, (len(q), -1)) if mask.ndim == 3 else mask[None, None]
        extra = extra + mask
    return extra
