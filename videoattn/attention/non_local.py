"""The non-local block (Wang et al., Non-local Neural Networks, CVPR 2018, arXiv 1711.07971).

    y_i = (1 / Z_i) Σ_j f(x_i, x_j) g(x_j)        z_i = x_i + BN(W_z y_i)

| form              | f(x_i, x_j)               | Z_i    | a row of the map         |
| gaussian          | exp(x_i · x_j)            | Σ_j f  | sums to 1                |
| embedded_gaussian | exp(θ_i · φ_j · s)        | Σ_j f  | sums to 1                |
| dot_product       | θ_i · φ_j                 | P      | any sign, any sum        |
| concatenation     | ReLU(w · [θ_i ; φ_j])     | P      | not negative, any sum    |

i and j run over all T·H·W positions, so the paper's form is spatiotemporal as it is. Defaults are
the authors' code: half the channels inside, keys and values max-pooled by (1, 2, 2) *before* their
1x1x1 convolutions, s = 1/sqrt(inner channels), a batch norm whose weight starts at zero. mmcv and
the toolboxes on it pool *after* the convolution, use s = 1 and no bias in W_z: another function,
available by `pool_order`, `scale` and `out_bias`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.attention.functional import (
    Grid,
    PairwiseAttention,
    attend,
    attend_separable,
    attention_weights,
    from_tokens,
    separable_weights,
    to_tokens,
)
from videoattn.types import Video

FORMS = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")


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
    group_frames: attend within groups of so many frames only (the authors' long-clip setting);
        T must be a multiple of it.
    zero_init: which weight makes the block start as the identity: the "norm"'s, or W_z itself
        ("conv"), which then has no norm behind it.

    With zero_init="norm" the first step moves only the norm: theta, phi, g and W_z have zero
    gradient until its weight has left zero. That is intended.
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
        group_frames: int | None = None,
        zero_init: str = "norm",
    ) -> None:
        super().__init__()
        _check_choice("form", form, FORMS)
        _check_choice("pool_order", pool_order, ("before", "after"))
        _check_choice("zero_init", zero_init, ("norm", "conv"))
        if scale and form != "embedded_gaussian":
            raise ValueError(
                f"scale=True is for form='embedded_gaussian'; {form!r} has no logit scale: leave it"
            )
        if group_frames is not None and group_frames < 1:
            raise ValueError(f"group_frames must be at least 1 or None, got {group_frames}")
        inner = inner_channels or max(channels // 2, 1)
        self.form = form
        self.key_pool = key_pool
        self.pool_order = pool_order
        self.group_frames = group_frames
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
        self._reset(zero_init)

    def _reset(self, zero_init: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.out.weight if zero_init == "conv" else self.bn.weight)  # type: ignore[arg-type]

    def forward(self, x: Video) -> Video:
        grouped = self._split_frames(x)
        q, k, v, _ = self.project(grouped)
        if self.form == "concatenation":
            y = attend_separable(*self._separate(q, k), v)
        elif self.form == "gaussian":
            # x_i · x_j over ReLU channels reaches 1e4 and more: rounding q and k to bfloat16
            # before the softmax would pick other keys.
            with torch.autocast(x.device.type, enabled=False):
                wide = torch.promote_types(q.dtype, torch.float32)
                y = attend(q.to(wide), k.to(wide), v.to(wide)).to(v.dtype)
        else:
            y = attend(q, k, v, normaliser=self.normaliser, scale=self.logit_scale)
        y = self.bn(self.out(from_tokens(y, _grid(grouped))))
        return x + self._join_frames(y, x)

    def project(self, x: Video) -> tuple[Tensor, Tensor, Tensor, Grid]:
        """Queries (N, P, D), keys (N, P', D), values (N, P', E) and the keys' grid (T', H', W')."""
        source = self._pool(x) if self.pool_order == "before" else x
        k = source if self.form == "gaussian" else self.phi(source)
        v = self.g(source)
        if self.pool_order == "after":
            k, v = self._pool(k), self._pool(v)
        q = x if self.form == "gaussian" else self.theta(x)
        return to_tokens(q), to_tokens(k), to_tokens(v), _grid(k)

    def maps(self, x: Video) -> dict[str, PairwiseAttention]:
        """The map that `forward` uses on x, by rows; with frame groups, keys outside the query's
        group have weight 0."""
        grouped = self._split_frames(x)
        q, k, _, key_grid = self.project(grouped)
        group, wide = grouped.shape[2], torch.promote_types(q.dtype, torch.float32)
        num_groups = x.shape[2] // group
        queries_in_group = group * x.shape[3] * x.shape[4]
        q, k = (tokens.to(wide).unflatten(0, (-1, num_groups)) for tokens in (q, k))

        def rows(positions: Tensor) -> Tensor:
            parts = k.new_zeros(len(x), len(positions), num_groups, k.shape[2])
            for index in range(num_groups):
                chosen = positions // queries_in_group == index
                own = q[:, index, positions[chosen] % queries_in_group]
                parts[:, chosen, index] = self._weights(own, k[:, index])
            return parts.flatten(2)

        key_frames = key_grid[0] * num_groups
        normalised = self.normaliser == "softmax"
        key_grid = (key_frames, key_grid[1], key_grid[2])
        return {"": PairwiseAttention(_grid(x), key_grid, normalised=normalised, rows=rows)}

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            if self.form == "concatenation":
                return separable_weights(*self._separate(q, k))
            return attention_weights(q, k, self.normaliser, self.logit_scale)

    def _separate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """w · [θ_i ; φ_j] = a_i + b_j: two vectors instead of an N·P·2D tensor."""
        w_theta, w_phi = self.pair.weight.to(q.dtype).squeeze(0).chunk(2)
        return q @ w_theta, k @ w_phi

    def _pool(self, x: Video) -> Tensor:
        if self.key_pool is None:
            return x
        return F.max_pool3d(
            x, [min(pool, size) for pool, size in zip(self.key_pool, x.shape[2:], strict=True)]
        )

    def _split_frames(self, x: Video) -> Tensor:
        """(N, C, T, H, W) -> (N·T/s, C, s, H, W) for groups of s frames."""
        if self.group_frames is None:
            return x
        if x.shape[2] % self.group_frames:
            raise ValueError(
                f"group_frames={self.group_frames} does not divide the {x.shape[2]} frames that "
                "reach this block; choose a divisor, or None for one group"
            )
        groups = x.unflatten(2, (-1, self.group_frames))
        return groups.transpose(1, 2).flatten(0, 1)

    def _join_frames(self, x: Tensor, like: Video) -> Tensor:
        if self.group_frames is None:
            return x
        return x.unflatten(0, (len(like), -1)).transpose(1, 2).flatten(2, 3)


def _grid(x: Tensor) -> Grid:
    frames, height, width = x.shape[2:]
    return frames, height, width


def _check_choice(name: str, got: str, allowed: tuple[str, ...]) -> None:
    if got not in allowed:
        raise ValueError(f"{name}: {got!r} is not one of {', '.join(allowed)}")
