"""The non-local block (Wang et al., Non-local Neural Networks, CVPR 2018, arXiv 1711.07971).

    y_i = (1 / Z_i) Σ_j f(x_i, x_j) g(x_j)        z_i = x_i + BN(W_z y_i)

| form              | f(x_i, x_j)               | Z_i    | a row of the map         |
| gaussian          | exp(x_i · x_j)            | Σ_j f  | sums to 1                |
| embedded_gaussian | exp(θ_i · φ_j · s)        | Σ_j f  | sums to 1                |
| dot_product       | θ_i · φ_j                 | P      | any sign, any sum        |
| concatenation     | ReLU(w · [θ_i ; φ_j])     | P      | not negative, any sum    |

i and j run over all P = T·H·W positions, so the paper's block is spatiotemporal as published;
`scope` restricts j to the query's frame, to its pixel in all frames, or to a group of frames.

The defaults are those of the authors' code: half the channels inside, keys and values max-pooled by
(1, 2, 2) *before* their 1x1x1 convolutions, s = 1/sqrt(inner channels), and a batch norm whose
weight starts at zero. The paper's formula pools x too, but its text has "a max pooling layer after
φ and g", as mmcv has; mmcv also uses s = 1 and no bias in W_z. The options `pool_order`, `scale`
and `out_bias` select between these functions.

An early block costs memory for activations, not parameters: its map grows with P², its parameters
with C². docs/attention.md has the numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from videoattn.attention.common import grid_of, one_head, pool_keys, small_weights, zero_norm
from videoattn.attention.functional import (
    Normalizer,
    Path,
    attend,
    attend_separable,
    attention_weights,
    autocast_off,
    from_tokens,
    separable_weights,
    to_tokens,
    widen,
)
from videoattn.attention.maps import Factors, PairwiseAttention
from videoattn.errors import one_of
from videoattn.types import Grid, Video

FORMS: dict[str, tuple[str, Normalizer]] = {
    "embedded_gaussian": ("dot", "softmax"),
    "gaussian": ("raw", "softmax"),
    "dot_product": ("dot", "count"),
    "concatenation": ("concat", "count"),
}
"""The similarity and the normalizer of each form."""
SCOPES = ("space_time", "space", "time")


class PairwiseBlock(nn.Module):
    """The base class of `NonLocal`, `SimilarityAttention` and `SelfAttention`: attention and maps.

    A subclass creates the layers `theta`, `phi`, `g` (or has its own `project`) and `out`, in the
    order of its checkpoints, and `pair`, the vector w, for the similarity "concat". It may set:

    - similarity: "dot", "raw" (float32) or "concat"; similarity.py has others.
    - normalizer: "softmax", "sigmoid" or "count".
    - logit_scale: Factor of the logits; concat ignores it.
    - key_pool: Max-pooling (frames, height, width) of keys and values, or None.
    - scope: See `NonLocal`.
    """

    theta: nn.Module
    phi: nn.Module
    g: nn.Module
    pair: nn.Linear
    out: nn.Module
    similarity = "dot"
    normalizer: Normalizer = "softmax"
    logit_scale = 1.0
    key_pool: Sequence[int] | None = None
    scope: str | int = "space_time"
    path: Path = "auto"  # how `attend` computes the map; "explicit" builds all of it

    def respond(self, x: Video) -> Video:
        """Returns W_z y, (N, C, T, H, W), before any norm or residual connection."""
        q, k, v, _ = self.project(x)
        return self.out(from_tokens(self.attend(q, k, v), grid_of(x)))

    def project(self, x: Video) -> tuple[Tensor, Tensor, Tensor, Grid]:
        """Returns queries (N, P, D), keys (N, P', D), values (N, P', E) and the keys' grid."""
        source = pool_keys(x, self.key_pool)
        q, k, v = (to_tokens(y) for y in (self.theta(x), self.phi(source), self.g(source)))
        return q, k, v, grid_of(source)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns y as tokens (N, P, E)."""
        normalizer, path = self.normalizer, self.path
        if self.similarity == "concat":
            return attend_separable(*self._separate(q, k), v, normalizer=normalizer, path=path)
        scale = self.logit_scale
        if self.similarity in ("dot", "scaled"):
            return attend(q, k, v, normalizer=normalizer, scale=scale, path=path)
        # Norms, squared distances and products of raw features (1e4 and more after a ReLU) need
        # float32: rounding them to bfloat16 before the softmax would select other keys.
        with autocast_off(q):
            q, k = self._as_products(q, k)
            y = attend(q, k, v.to(q.dtype), normalizer=normalizer, scale=scale, path=path)
        return y.to(v.dtype)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Returns the rows (N, Q, P) of the map for queries (N, Q, D) and keys (N, P, D)."""
        if self.similarity == "concat":
            return separable_weights(*self._separate(q, k), self.normalizer)
        return attention_weights(*self._as_products(q, k), self.normalizer, self.logit_scale)

    def factors(self, q: Tensor, k: Tensor) -> Factors | None:
        """Returns the map as a rule applied to q kᵀ, or None if it does not have this form."""
        with autocast_off(q):
            if self.similarity == "concat" and self.normalizer == "count":
                a, b = self._separate(widen(q), widen(k))  # a + b = (a, 1) · (1, b)
                q = torch.stack([a, torch.ones_like(a)], dim=2)
                k = torch.stack([torch.ones_like(b), b], dim=2)
                return one_head(q, k, "relu_sum", 1.0)
            if self.similarity == "concat":
                return None
            products = self._as_products(widen(q), widen(k))
            return one_head(*products, self.normalizer, self.logit_scale)

    def maps(self, x: Video) -> dict[str, PairwiseAttention]:
        """Returns the map that `forward` uses for x, computed row by row; 0 outside the scope."""
        q, k, _, (key_frames, key_height, key_width) = self.project(self._split(x))
        factors = self.factors(q, k) if self.scope == "space_time" else None
        q, k = (widen(tokens).unflatten(0, (len(x), -1)) for tokens in (q, k))
        num_groups, group_size = q.shape[1:3]

        def rows(positions: Tensor) -> Tensor:
            if self.scope == "time":  # a group is a pixel, its queries are frames
                group, own = positions % num_groups, positions // num_groups
            else:
                group, own = positions // group_size, positions % group_size
            found = k.new_zeros(len(x), len(positions), num_groups, k.shape[2])
            for index in group.unique().tolist():
                chosen = group == index
                with autocast_off(q):
                    found[:, chosen, index] = self.weights(q[:, index, own[chosen]], k[:, index])
            return (found.transpose(2, 3) if self.scope == "time" else found).flatten(2)

        if self.scope == "time":
            key_grid = (key_frames, *x.shape[3:])
        else:
            key_grid = (key_frames * num_groups, key_height, key_width)
        normalized = self.normalizer == "softmax"
        return {"": PairwiseAttention(grid_of(x), key_grid, normalized, rows, factors=factors)}

    def _split(self, x: Video) -> Tensor:
        """Moves groups to the batch: (N, C, T, H, W) -> (N·G, C, t, h, w)."""
        if self.scope == "space_time":
            return x
        if self.scope == "time":
            return x.permute(0, 3, 4, 1, 2).flatten(0, 2)[..., None, None]
        frames = 1 if self.scope == "space" else int(self.scope)
        if x.shape[2] % frames:
            raise ValueError(
                f"scope={frames} does not divide the {x.shape[2]} frames that reach this block; "
                'choose a divisor, or "space_time" for one group'
            )
        return x.unflatten(2, (-1, frames)).transpose(1, 2).flatten(0, 1)

    def _join(self, y: Tensor, like: Video) -> Tensor:
        """Inverts `_split`: (N·G, C, t, h, w) -> (N, C, T, H, W), the shape of `like`."""
        if self.scope == "space_time":
            return y
        if self.scope == "time":
            pixels = y.flatten(2).unflatten(0, (like.shape[0], *like.shape[3:]))
            return pixels.permute(0, 3, 4, 1, 2)
        return y.unflatten(0, (like.shape[0], -1)).transpose(1, 2).flatten(2, 3)

    def _as_products(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns queries and keys whose dot products are the logits, up to the scale."""
        return (widen(q), widen(k)) if self.similarity == "raw" else (q, k)

    def _pair(self, like: Tensor) -> Tensor:
        return self.pair.weight.to(like.dtype).squeeze(0)

    def _separate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a and b with w · [q_i ; k_j] = a_i + b_j, without a tensor of Q·P·2D entries."""
        w_q, w_k = self._pair(q).chunk(2)
        return q @ w_q, k @ w_k


class NonLocal(PairwiseBlock):
    """A non-local block; keeps the shape (N, C, T, H, W).

    With zero_init="norm", theta, phi, g and W_z have zero gradient until the weight of the norm has
    left zero. So the first step moves only the norm, as intended.

    Args:
        form: A form from the table above.
        inner_channels: Width of theta, phi and g. Default: C / 2.
        key_pool: Max-pooling (frames, height, width) of keys and values, or None. An axis shorter
            than its pool is pooled to size 1.
        pool_order: Pool "before" the projections (the authors' code) or "after" them (the paper's
            text, mmcv).
        scale: Multiply logits by 1/sqrt(inner_channels). Only the embedded Gaussian has this
            factor, as in every public implementation; None means True for it.
        out_bias: Give W_z a bias. Batch norm cancels it, but checkpoints differ.
        scope: The positions that a query attends to: all ("space_time"), those of its own frame
            ("space"), or its own pixel in every frame ("time"; keys are then not pooled over
            space). A number n splits the clip into groups of n frames, and a query attends to its
            group (the authors' long-clip setting); T must be a multiple of n.
        zero_init: The weight that starts at zero, so that the block starts as the identity: the
            weight of the "norm", or W_z ("conv"; the block then has no norm).

    Raises:
        ValueError: If an option is invalid; on forward, if `scope` frames do not divide T.
    """

    def __init__(
        self,
        channels: int,
        *,
        form: str = "embedded_gaussian",
        inner_channels: int | None = None,
        key_pool: Sequence[int] | None = (1, 2, 2),
        pool_order: str = "before",
        scale: bool | None = None,
        out_bias: bool = True,
        scope: str | int = "space_time",
        zero_init: str = "norm",
    ) -> None:
        _check(form, pool_order, scale, scope, zero_init)
        inner = inner_channels or max(channels // 2, 1)
        scaled = form == "embedded_gaussian" and scale is not False
        super().__init__()
        self.form = form
        self.similarity, self.normalizer = FORMS[form]
        self.logit_scale = inner**-0.5 if scaled else 1.0
        self.key_pool = key_pool
        self.pool_order = pool_order
        self.scope = scope
        self.theta, self.phi = (
            nn.Identity() if form == "gaussian" else nn.Conv3d(channels, inner, 1) for _ in range(2)
        )
        if form == "concatenation":
            self.pair = nn.Linear(2 * inner, 1, bias=False)  # w = [w_theta ; w_phi]
        self.g = nn.Conv3d(channels, inner, 1)
        self.out = nn.Conv3d(inner, channels, 1, bias=out_bias)
        self.bn = nn.BatchNorm3d(channels) if zero_init == "norm" else nn.Identity()
        small_weights(self)
        if zero_init == "conv":
            nn.init.zeros_(self.out.weight)
        else:
            zero_norm(self.bn)

    def forward(self, x: Video) -> Video:
        return x + self._join(self.bn(self.respond(self._split(x))), x)

    def project(self, x: Video) -> tuple[Tensor, Tensor, Tensor, Grid]:
        before = self.pool_order == "before"
        source = pool_keys(x, self.key_pool) if before else x
        k, v = self.phi(source), self.g(source)
        if not before:
            k, v = pool_keys(k, self.key_pool), pool_keys(v, self.key_pool)
        return to_tokens(self.theta(x)), to_tokens(k), to_tokens(v), grid_of(k)


def _check(
    form: str, pool_order: str, scale: bool | None, scope: str | int, zero_init: str
) -> None:
    one_of("form", form, FORMS)
    one_of("pool_order", pool_order, ("before", "after"))
    one_of("zero_init", zero_init, ("norm", "conv"))
    if scale and form != "embedded_gaussian":
        raise ValueError(
            f"scale=True requires form='embedded_gaussian'; {form!r} has no logit scale: remove it"
        )
    if scope not in SCOPES and (isinstance(scope, str) or scope < 1):
        raise ValueError(
            f"scope: got {scope!r}; choose from {', '.join(SCOPES)}, or give a number of frames "
            "(1 or more)"
        )
