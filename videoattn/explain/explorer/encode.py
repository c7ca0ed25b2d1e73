"""Encodes maps as bytes, from which the page computes any row of any head.

| form  | content                                                | rows differ by  |
| qk16  | queries and keys in float16                            | 2e-3            |
| qk8   | queries and keys in int8, a scale for each token       | 2e-2            |
| qk32  | queries and keys in float32, if float16 is too coarse  | 1e-5            |
| rows8 | square roots of weights in uint8, a scale for each row | 1.5e-2          |
| rows16 | weights of both signs in float16, a scale for each row | 1e-3            |

The distance of two rows is half the sum of their absolute differences, divided by their mean
absolute sum. For distributions, this is the total variation distance. uint8 stores square roots,
because a linear scale loses the small weights of a peaked row. Numbers are little-endian.
"""

from collections.abc import Iterator
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from videoattn.attention.maps import Factors, GateMap, PairwiseMap
from videoattn.attention.record import MOST_ENTRIES
from videoattn.explain.choose import Summary
from videoattn.explain.gates import gate_weights

LIMITS = {"qk16": 2e-3, "qk8": 2e-2}
"""The largest distance between exact rows and those of each form of queries and keys."""
KINDS = {"qk8": "|i1", "qk16": "<f2", "qk32": "<f4"}
NUM_SAMPLED = 64
MOST_WEIGHTINGS = 32


class Encoder:
    """Chooses the form of a pairwise map of one clip, and encodes it.

    Args:
        found: A map with `is_whole`.
        compact: Prefer int8 for queries and keys.
        mean: Store only the mean over heads, as rows.
    """

    def __init__(self, found: PairwiseMap, *, compact: bool = False, mean: bool = False) -> None:
        self.found, self.factors = found, None if mean else found.factors
        self.compact = compact
        self.mean = mean
        by_head = found.rows if found.factors is None else found.factors.q
        self.num_heads = 1 if mean else by_head.shape[1]
        self.num_queries = prod(found.grid_q) + len(found.special)
        # Keys without a position. Stored rows contain the sum of their weights.
        if found.factors is None:
            self.extra = int(found.elsewhere is not None)
        else:
            self.extra = found.factors.k.shape[2] - prod(found.grid_k)
        self.form = self._choose()
        self.num_bytes = self._size(self.form)

    def meta(self, summary: Summary) -> dict[str, Any]:
        """Returns the facts with which the page decodes the bytes."""
        known: dict[str, Any] = {"form": self.form, "heads": self.num_heads, "extra": self.extra}
        known |= {"special": list(self.found.special), "normalized": self.found.normalized}
        known |= {"grid_q": list(self.found.grid_q), "grid_k": list(self.found.grid_k)}
        known |= {"kind": self.found.kind, "top": summary.top}
        known["sink"] = float(summary.strongest.max())
        if self.form.startswith("qk"):
            assert self.factors is not None
            q, k, rule, scale = self.factors
            known |= {"width": q.shape[3], "rule": rule, "scale": scale * _unit(q) * _unit(k)}
        return known

    def encode(self, summary: Summary) -> bytes:
        """Returns the bytes of the map, in the order in which `store.js` reads them."""
        parts = [_bytes(summary.received, "<f4"), _bytes(summary.strongest, "<f4")]
        if self.form.startswith("rows"):
            return b"".join([*parts, *self._rows()])
        assert self.factors is not None
        tokens = [_quantized(x, self.form) for x in (self.factors.q, self.factors.k)]
        if self.factors.rule == "softmax":
            parts.append(_bytes(_log_sums(self._restored(self.form)), "<f4"))
        parts += [_bytes(scale, "<f4") for _, scale in tokens if scale is not None]
        return b"".join([*parts, *(_bytes(x, KINDS[self.form]) for x, _ in tokens)])

    def _choose(self) -> str:
        signed = not self.found.normalized and any((r < 0).any() for r, _ in self._pieces())
        rows = "rows16" if signed else "rows8"
        if self.factors is None:
            return rows
        products = ["qk8" if self.compact else "qk16", "qk16", "qk32"]
        return min((next(filter(self._fits, products)), rows), key=self._size)

    def _size(self, form: str) -> int:
        factors, rows = self.factors, self.num_heads * self.num_queries
        keys = prod(self.found.grid_k)
        size = 8 * keys
        if form.startswith("rows"):
            return size + 4 * rows * (2 if self.extra else 1) + rows * keys * int(form[4:]) // 8
        assert factors is not None
        tokens = factors.q.shape[1] * (factors.q.shape[2] + factors.k.shape[2])
        size += 4 * rows if factors.rule == "softmax" else 0
        size += 4 * tokens if form == "qk8" else 0
        return size + tokens * factors.q.shape[3] * int(form[2:]) // 8

    def _fits(self, form: str) -> bool:
        """Returns whether rows of the stored factors are within the limit of the form."""
        if form == "qk32":
            return True
        assert self.factors is not None
        num_queries = self.factors.q.shape[2]
        sampled = torch.linspace(0, num_queries - 1, min(NUM_SAMPLED, num_queries)).round().long()
        exact, stored = self.factors.rows(sampled), self._restored(form).rows(sampled)
        return float(distances(exact, stored).max()) <= LIMITS[form]

    def _restored(self, form: str) -> Factors:
        """Returns the factors as the page decodes them."""
        assert self.factors is not None
        q, k, rule, scale = self.factors
        stored = [_quantized(x, form) for x in (q, k)]
        q_back, k_back = (x.float() if s is None else x * s for x, s in stored)
        return Factors(q_back, k_back, rule, scale * _unit(q) * _unit(k))

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yields rows (h, Q, P) and their weight elsewhere (h, Q), for some queries at a time."""
        step = max(MOST_ENTRIES // (prod(self.found.grid_k) * self.num_heads), 1)
        for numbers in torch.arange(self.num_queries).split(step):
            part = self.found.select(numbers)
            rows, elsewhere = part.rows[0].flatten(2), part.elsewhere
            elsewhere = None if elsewhere is None else elsewhere[0]
            if self.mean:
                rows = rows.mean(0, keepdim=True)
                elsewhere = None if elsewhere is None else elsewhere.mean(0, keepdim=True)
            yield rows, elsewhere

    def _rows(self) -> list[bytes]:
        tops, others, stored = [], [], []
        for rows, elsewhere in self._pieces():
            top = rows.abs().amax(-1)
            share = rows / top.clamp_min(torch.finfo(rows.dtype).tiny).unsqueeze(-1)
            tops.append(top)
            others += [] if elsewhere is None else [elsewhere]
            levels = (255 * share.clamp_min(0).sqrt()).round().to(torch.uint8)
            stored.append(levels if self.form == "rows8" else share.half())
        kind = "|u1" if self.form == "rows8" else "<f2"
        parts = [_bytes(torch.cat(tops, dim=1), "<f4")]
        parts += [_bytes(torch.cat(others, dim=1), "<f4")] if others else []
        return [*parts, _bytes(torch.cat(stored, dim=1), kind)]


def distances(rows: Float[Tensor, "... P"], others: Float[Tensor, "... P"]) -> Float[Tensor, "..."]:
    """Returns the distance of each pair of rows (see above); 0 for rows of zeros."""
    rows, others = rows.double(), others.double()
    total = rows.abs().sum(-1) + others.abs().sum(-1)
    return (rows - others).abs().sum(-1) / total.clamp_min(1e-300)


def encode_field(found: GateMap, input_size: tuple[int, int]) -> tuple[dict[str, Any], bytes]:
    """Returns the facts and the bytes of a map without a query.

    Args:
        input_size: (height, width) of the network's input; boxes become fractions of it.

    Raises:
        ValueError: If weights are not finite or have a wrong shape.
    """
    weights = gate_weights(found, 0)
    known: dict[str, Any] = {"kind": found.kind, "grid_q": None, "normalized": found.normalized}
    if found.kind == "pooling" and len(weights) > MOST_WEIGHTINGS:
        peaked = torch.argsort(weights.flatten(1).amax(1), descending=True, stable=True)
        chosen = sorted(peaked[:MOST_WEIGHTINGS].tolist())
        known["head_names"] = [f"weighting {d}" for d in chosen]
        weights = weights[chosen]
    if found.kind == "box":
        weights = weights / torch.tensor([*input_size, *input_size])
    shaped = {
        "channel": lambda w: (w if w.ndim == 2 else w[:, None]).t()[:, None],
        "temporal": lambda w: w[:, None, None],
        "box": lambda w: w[:, None],
        "mask": lambda w: w.mean(0),
    }.get(found.kind, lambda w: w)(weights)
    peak = float(shaped.abs().max()) or 1.0
    known |= {"form": "f32" if found.kind == "box" else "f16", "identity": found.identity_value}
    known |= {"grid_k": list(shaped.shape[-3:]), "peak": 1.0 if found.kind == "box" else peak}
    known["heads"] = len(shaped) if shaped.ndim == 4 else 1
    return known, _bytes(shaped / known["peak"], "<f4" if found.kind == "box" else "<f2")


def _unit(x: Tensor) -> float:
    """Returns the power of two by which a tensor is divided to fit the range of float16."""
    most = float(x.abs().max())
    return 2.0 ** ceil(np.log2(most)) / 1024 if most > 0 else 1.0


def _quantized(x: Float[Tensor, "N h P D"], form: str) -> tuple[Tensor, Tensor | None]:
    """Returns tokens as the file stores them, and the scale of each token if the form has them."""
    x = x.float() / _unit(x)
    if form == "qk8":
        scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        return (x / scale).round(), scale
    return x.half() if form == "qk16" else x, None


def _log_sums(factors: Factors) -> Float[Tensor, "h Q"]:
    """Returns the logarithm of the sum of each row's exponentials."""
    step = max(MOST_ENTRIES // (factors.k.shape[2] * factors.q.shape[1]), 1)
    sums = [
        (q @ factors.k[0].transpose(1, 2) * factors.scale).logsumexp(-1)
        for q in factors.q[0].split(step, dim=1)
    ]
    return torch.cat(sums, dim=1)


def _bytes(x: Tensor, kind: str) -> bytes:
    return x.detach().cpu().numpy().astype(kind).tobytes()
