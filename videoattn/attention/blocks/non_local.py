"""The non-local block (Wang et al., Non-local Neural Networks, CVPR 2018, arXiv 1711.07971).

    y_i = (1 / Z_i) Σ_j f(x_i, x_j) g(x_j)        z_i = x_i + BN(W_z y_i)

| form              | f(x_i, x_j)               | Z_i    | a row of the map         |
| gaussian          | exp(x_i · x_j)            | Σ_j f  | sums to 1                |
| embedded_gaussian | exp(θ_i · φ_j · s)        | Σ_j f  | sums to 1                |
| dot_product       | θ_i · φ_j                 | P      | any sign, any sum        |
| concatenation     | ReLU(w · [θ_i ; φ_j])     | P      | not negative, any sum    |

i and j run over all T·H·W positions, so the paper's form is spatiotemporal as it is; `scope` keeps
them within one frame, one pixel's time line, or a group of frames. Defaults are
the authors' code: half the channels inside, keys and values max-pooled by (1, 2, 2) *before* their
1x1x1 convolutions, s = 1/sqrt(inner channels), a batch norm whose weight starts at zero. mmcv and
the toolboxes on it pool *after* the convolution, use s = 1 and no bias in W_z: another function,
available by `pool_order`, `scale` and `out_bias`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from videoattn.attention.common import (
    check_choice,
    grid_of,
    pool_keys,
    small_weights,
    zero_norm,
)
from videoattn.attention.functional import (
    Grid,
    PairwiseAttention,
    Path,
    attend,
    attend_separable,
    attention_weights,
    autocast_off,
    from_tokens,
    separable_weights,
    to_tokens,
)
from videoattn.types import Video

FORMS = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")
SCOPES = ("space_time", "space", "time")


class NonLocal(nn.Module):
    """A non-local block over all positions of a clip: (N, C, T, H, W) -> the same shape.

    form: the pairwise function f of the table above.
    inner_channels: width of theta, phi and g; half the channels unless given.
    key_pool: max-pooling (frames, height, width) of keys and values, or None. An axis shorter than
        its pool is pooled whole.
    pool_order: pool "before" the projections (the authors) or "after" them (mmcv).
    scale: logits times 1/sqrt(inner_channels). Only the embedded gaussian has it (None: True
        there), as in every public implementation.
    out_bias: whether W_z has a bias. Batch norm takes it up, but checkpoints differ.
    scope: what a query sees: all of "space_time", its own frame ("space"), its own place in every
        frame ("time"; keys are not pooled over space then), or, by a number, the group of so many
        frames that it lies in (the authors' long-clip setting; T must be a multiple of it).
    zero_init: which weight makes the block start as the identity: the "norm"'s, or W_z itself
        ("conv"), which then has no norm behind it.

    With zero_init="norm" the first step moves only the norm: theta, phi, g and W_z have zero
    gradient until its weight has left zero. That is intended.
    """

    path: Path = "auto"
    """How `attend` computes the map; "explicit" builds all of it, for comparison."""

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
        super().__init__()
        check_choice("form", form, FORMS)
        check_choice("pool_order", pool_order, ("before", "after"))
        check_choice("zero_init", zero_init, ("norm", "conv"))
        if scale and form != "embedded_gaussian":
            raise ValueError(
                f"scale=True is for form='embedded_gaussian'; {form!r} has no logit scale: leave it"
            )
        if scope not in SCOPES and (isinstance(scope, str) or scope < 1):
            raise ValueError(
                f"scope: {scope!r} is not one of {', '.join(SCOPES)}, or a number of frames "
                "(1 or more)"
            )
        inner = inner_channels or max(channels // 2, 1)
        self.form = form
        self.key_pool = key_pool
        self.pool_order = pool_order
        self.scope = scope
        self.logit_scale = (
            inner**-0.5 if form == "embedded_gaussian" and scale is not False else 1.0
        )
        self.normaliser: Literal["softmax", "count"] = (
            "softmax" if form.endswith("gaussian") else "count"
        )

        if form != "gaussian":
            self.theta = nn.Conv3d(channels, inner, 1)
            self.phi = nn.Conv3d(channels, inner, 1)
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
        groups = self._split(x)
        q, k, v, _ = self.project(groups)
        if self.form == "concatenation":
            y = attend_separable(*self._separate(q, k), v, path=self.path)
        elif self.form == "gaussian":
            # x_i · x_j over ReLU channels reaches 1e4 and more: rounding q and k to bfloat16
            # before the softmax would pick other keys.
            with autocast_off(x):
                wide = torch.promote_types(q.dtype, torch.float32)
                y = attend(q.to(wide), k.to(wide), v.to(wide), path=self.path).to(v.dtype)
        else:
            y = attend(q, k, v, normaliser=self.normaliser, scale=self.logit_scale, path=self.path)
        y = self.bn(self.out(from_tokens(y, grid_of(groups))))
        return x + self._join(y, x)

    def project(self, x: Video) -> tuple[Tensor, Tensor, Tensor, Grid]:
        """Queries (N, P, D), keys (N, P', D), values (N, P', E) and the keys' grid (T', H', W')."""
        source = pool_keys(x, self.key_pool) if self.pool_order == "before" else x
        k = source if self.form == "gaussian" else self.phi(source)
        v = self.g(source)
        if self.pool_order == "after":
            k, v = pool_keys(k, self.key_pool), pool_keys(v, self.key_pool)
        q = x if self.form == "gaussian" else self.theta(x)
        return to_tokens(q), to_tokens(k), to_tokens(v), grid_of(k)

    def maps(self, x: Video) -> dict[str, PairwiseAttention]:
        """The map that `forward` uses on x, by rows; keys outside the query's scope have weight
        0."""
        q, k, _, (key_frames, key_height, key_width) = self.project(self._split(x))
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k = (tokens.to(wide).unflatten(0, (len(x), -1)) for tokens in (q, k))
        num_groups, group_size = q.shape[1:3]

        def rows(positions: Tensor) -> Tensor:
            if self.scope == "time":  # a group is a place, its queries are frames
                group, own = positions % num_groups, positions // num_groups
            else:
                group, own = positions // group_size, positions % group_size
            parts = k.new_zeros(len(x), len(positions), num_groups, k.shape[2])
            for index in group.unique().tolist():
                chosen = group == index
                parts[:, chosen, index] = self._weights(q[:, index, own[chosen]], k[:, index])
            return (parts.transpose(2, 3) if self.scope == "time" else parts).flatten(2)

        if self.scope == "time":
            key_grid = (key_frames, *x.shape[3:])
        else:
            key_grid = (key_frames * num_groups, key_height, key_width)
        normalized = self.normaliser == "softmax"
        return {"": PairwiseAttention(grid_of(x), key_grid, normalized=normalized, rows=rows)}

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        with autocast_off(q):
            if self.form == "concatenation":
                return separable_weights(*self._separate(q, k))
            return attention_weights(q, k, self.normaliser, self.logit_scale)

    def _separate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """w · [θ_i ; φ_j] = a_i + b_j: two vectors instead of an N·P·2D tensor."""
        w_theta, w_phi = self.pair.weight.to(q.dtype).squeeze(0).chunk(2)
        return q @ w_theta, k @ w_phi

    def _split(self, x: Video) -> Tensor:
        """(N, C, T, H, W) -> (N·G, C, t, h, w), the G groups that attend among themselves."""
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
        """The inverse of `_split`."""
        if self.scope == "space_time":
            return y
        if self.scope == "time":
            places = y.flatten(2).unflatten(0, (like.shape[0], *like.shape[3:]))
            return places.permute(0, 3, 4, 1, 2)
        return y.unflatten(0, (like.shape[0], -1)).transpose(1, 2).flatten(2, 3)
