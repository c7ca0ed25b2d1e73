"""A layer of self-attention in windows over frames and pixels (extends Ramachandran et al.,
Stand-Alone Self-Attention in Vision Models, NeurIPS 2019, arXiv 1906.05909).

    y_i = Σ_{j in window(i)} softmax_j(q_i · (k_j + r_{j-i})) v_j      q, k, v = W_q x, W_k x, W_v x

This is computed for each head separately. r_{(a,b,c)} = [r_t(a) ; r_h(b) ; r_w(c)] is learned, and
splits the width of a head among the axes. Logits have no factor 1/sqrt(d). The layer replaces a 3x3
convolution; a stride becomes an average pool after it.

The paper replaces the 3x3 convolutions of all stages, and the first convolution by an attention
stem (attention_stem.py): `after=[conv1, layer1, layer2, layer3, layer4]`. The default, the last two
stages, is ours, after the paper's finding that attention is best late in a network.

Where we differ. The paper's window is k x k, which is a window of 1 frame here. The projections are
full matrices, as the paper's parameter counts imply, although its text has a small matrix for each
head. Neighbors outside the clip are left out of the softmax, while the public code gives weight to
zero padding (`border="zero"`). r starts at N(0, 1/d) in place of N(0, 1), and W_q and W_k start
small, so that a layer starts near the mean of its window.

How it is computed. q · r_{j-i} is a sum of one number per axis, so it can be part of a product with
one-hot keys: extra columns of a query hold its scores for every key position along each axis, and
extra columns of a key are one-hot for its position. Masks are such scores too. The queries are then
cut into tiles, each with all keys that its queries attend to, and a tile is ordinary attention.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videoattn.attention.common import check_odd, grid_of
from videoattn.attention.functional import Path, attend, autocast_off, widen
from videoattn.attention.maps import PairwiseAttention, cells
from videoattn.errors import one_of
from videoattn.types import Video

AXES = ("t", "h", "w")


class StandAloneAttention(nn.Module):
    """A layer of attention within a window: (N, C, T, H, W) -> (N, C', T, ⌈H/stride⌉, ⌈W/stride⌉).

    Memory: frames are processed in chunks, and the backward pass recomputes each chunk. So for any
    T, copies of keys and values exist for one chunk only: at most 3·k_t frames, each position in at
    most 9 tiles (3 along each of H and W). Unfolding would make k_t·k_h·k_w copies. No map is built
    if `scaled_dot_product_attention` has a fused kernel.

    Args:
        stride: Stride over H and W of an average pool after the attention.
        window: Odd sizes (k_t, k_h, k_w); (1, 7, 7) is the paper's layer on each frame. It may
            exceed the grid, so one setting works for any clip length. An axis of size 1 has no
            relative positions, and the other axes get its share of a head's width.
        heads: Number of heads; it must divide C'.
        border: "mask" leaves out neighbors outside the clip, "zero" treats them as zero features.

    Raises:
        ValueError: If `heads` does not divide C', `window` is not three odd numbers, `stride` is
            below 1, or `border` is unknown.
    """

    path: Path = "auto"  # how `attend` computes the map; "explicit" builds all of it

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        window: Sequence[int] = (3, 7, 7),
        heads: int = 8,
        border: str = "mask",
    ) -> None:
        super().__init__()
        _check(out_channels, stride, window, heads)
        self.stride = stride
        self.window = tuple(window)
        self.heads = heads
        self.border = one_of("border", border, ("mask", "zero"))
        self.query, self.key, self.value = (
            nn.Conv3d(in_channels, out_channels, 1, bias=False) for _ in range(3)
        )
        width = out_channels // heads
        self.shares = _shares(width, self.window)
        for axis, extent, share in zip(AXES, self.window, self.shares, strict=True):
            table = nn.Parameter(torch.empty(heads, extent, share)) if share else None
            self.register_parameter(f"position_{axis}", table)
        nn.init.kaiming_normal_(self.value.weight, mode="fan_out", nonlinearity="relu")
        for conv in (self.query, self.key):
            # With Kaiming's initialization, logits reach hundreds if the input is a residual sum,
            # as in basic blocks. One neighbor then gets all the weight, and rounding decides which.
            nn.init.normal_(conv.weight, std=0.01)
        for table in self.position_tables():
            if table is not None:
                nn.init.normal_(table, std=width**-0.5)

    def position_tables(self) -> list[nn.Parameter | None]:
        """Returns r_t, r_h and r_w, each (heads, window size, share of the width), or None."""
        return [getattr(self, f"position_{axis}") for axis in AXES]

    def forward(self, x: Video) -> Tensor:
        q, k, v = self._project(x)
        axes = zip(x.shape[2:], self.window, self._pads(), strict=True)
        cuts = [_cut(size, extent, pad) for size, extent, pad in axes]
        attend_frames: Callable[..., Tensor] = self._attend_frames
        if torch.is_grad_enabled() and max(cut.count for cut in cuts) > 1:
            attend_frames = partial(
                checkpoint, attend_frames, use_reentrant=False, preserve_rng_state=False
            )
        t, h, w = (cut.count * cut.length for cut in cuts)
        q = F.pad(q, (0, 0, 0, w - q.shape[4], 0, h - q.shape[3], 0, t - q.shape[2]))
        chunks = []
        for index, queries in enumerate(q.split(cuts[0].length, dim=2)):
            start = cuts[0].starts[index]
            near = slice(start, start + cuts[0].span)
            chunks.append(attend_frames(queries, k[:, :, near], v[:, :, near], cuts, index))
        return self.pooled(torch.cat(chunks, dim=2)[:, :, : x.shape[2], : x.shape[3], : x.shape[4]])

    def pooled(self, y: Video) -> Tensor:
        """Returns the average pool over `stride` of responses at all positions."""
        if self.stride > 1:
            pool = (1, min(self.stride, y.shape[3]), min(self.stride, y.shape[4]))
            y = F.avg_pool3d(y, pool, ceil_mode=True, count_include_pad=False)
        return y

    def values(self, x: Video) -> Tensor:
        """Returns the values of all positions, (N, heads, P, D)."""
        return self.value(x).unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)

    def maps(self, x: Video) -> dict[str, PairwiseAttention]:
        """Returns the map of each head, on the grid before the pool; 0 outside the window. With
        border="zero", rows omit the weight of the padding."""
        q, k, _ = self._project(x)
        q, k = widen(q).flatten(2, 4), widen(k)
        pads, grid = self._pads(), grid_of(x)
        sizes = [size + 2 * pad for size, pad in zip(x.shape[2:], pads, strict=True)]
        keys = _with_one_hots(k).flatten(2, 4)

        def rows(positions: Tensor) -> Tensor:
            positions = positions.to(x.device)
            at = zip(self.window, pads, sizes, cells(positions, grid).unbind(1), strict=True)
            offsets = [
                torch.arange(size, device=x.device) - (own + pad).unsqueeze(1) + extent // 2
                for extent, pad, size, own in at
            ]
            with autocast_off(x):
                queries = self._with_scores(q[:, :, positions], offsets)
                found = (queries @ keys.transpose(2, 3)).softmax(-1).unflatten(3, sizes)
            for axis, (pad, size) in enumerate(zip(pads, x.shape[2:], strict=True), start=3):
                found = found.narrow(axis, pad, size)
            return found.flatten(3)

        normalized = self.border == "mask"
        return {"": PairwiseAttention(grid, grid, normalized, rows, self.heads, "local")}

    def _project(self, x: Video) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q, k and v as (N, heads, T, H, W, D); k and v include the zero border, if any."""
        border = [pad for pad in reversed(self._pads()) for _ in range(2)]
        k, v = F.pad(self.key(x), border), F.pad(self.value(x), border)
        q, k, v = (
            features.unflatten(1, (self.heads, -1)).permute(0, 1, 3, 4, 5, 2)
            for features in (self.query(x), k, v)
        )
        return q, k, v

    def _pads(self) -> list[int]:
        return [extent // 2 if self.border == "zero" else 0 for extent in self.window]

    def _attend_frames(
        self, q: Tensor, k: Tensor, v: Tensor, cuts: list["_Cut"], index: int
    ) -> Tensor:
        """Attends in tile `index` along time: (N, heads, t, H, W, D) -> (N, C', t, H, W)."""
        _, down, along = cuts
        q = q.unflatten(4, (along.count, along.length)).unflatten(3, (down.count, down.length))
        q = q.permute(0, 1, 3, 5, 2, 4, 6, 7)  # (N, heads, tiles in H, in W, t, h, w, D)
        in_time, in_height, in_width = (cut.offsets(q.device) for cut in cuts)
        offsets = [
            in_time[index].view(q.shape[4], 1, 1, -1),
            in_height.view(down.count, 1, 1, down.length, 1, -1),
            in_width.view(along.count, 1, 1, along.length, -1),
        ]
        tiles = q.shape[:4]
        q = self._with_scores(q, offsets).flatten(4, 6).flatten(0, 3)
        k, v = (_tiles_of_keys(features, down, along) for features in (k, v))
        k, v = (tokens.flatten(4, 6).flatten(0, 3) for tokens in (_with_one_hots(k), v))
        y = attend(q, k, v, path=self.path).unflatten(0, tiles)
        y = y.unflatten(4, (cuts[0].length, down.length, along.length))
        y = y.permute(0, 1, 7, 4, 2, 5, 3, 6)  # (N, heads, D, t, tiles in H, h, tiles in W, w)
        return y.flatten(6, 7).flatten(4, 5).flatten(1, 2)

    def _with_scores(self, q: Tensor, offsets: Sequence[Tensor]) -> Tensor:
        """Appends to queries (N, heads, ..., D) their score for every key position along each axis.
        `offsets` has, for each axis, the positions (..., keys) of keys in a query's window."""
        columns = [q]
        shares = q.split(self.shares, dim=-1) if sum(self.shares) else [None] * 3
        for share, table, extent, offset in zip(
            shares, self.position_tables(), self.window, offsets, strict=True
        ):
            hidden = (offset < 0) | (offset >= extent)
            offset = offset.clamp(0, extent - 1).expand(*q.shape[:-1], -1)
            if table is None or share is None:
                scores = q.new_zeros(offset.shape)
            else:
                scores = share.flatten(2, -2) @ table.transpose(1, 2)  # (N, heads, ..., extent)
                scores = scores.view(*q.shape[:-1], extent).gather(-1, offset)
            # Finite, because it is multiplied by the zeros of other keys; its exp is 0.
            never = max(-1e9, torch.finfo(scores.dtype).min / 4)
            columns.append(scores.masked_fill(hidden, never).to(q.dtype))
        return torch.cat(columns, dim=-1)


def _with_one_hots(k: Tensor) -> Tensor:
    """Appends to keys (..., T, H, W, D) the one-hot columns of their t, y and x."""
    columns = [k]
    for axis in (-4, -3, -2):
        eye = torch.eye(k.shape[axis], dtype=k.dtype, device=k.device)
        eye = eye.view(-1, *[1] * (-2 - axis), k.shape[axis])
        columns.append(eye.expand(*k.shape[:-1], -1))
    return torch.cat(columns, dim=-1)


def _tiles_of_keys(features: Tensor, down: "_Cut", along: "_Cut") -> Tensor:
    """Cuts (N, heads, t, H, W, D) into tiles, (N, heads, tiles in H, tiles in W, t, h, w, D)."""
    for axis, cut in ((4, along), (3, down)):
        if cut.count > 1:
            features = features.index_select(axis, cut.keys(features.device))
        features = features.unflatten(axis, (cut.count, cut.span))
    return features.permute(0, 1, 3, 5, 2, 4, 6, 7)


@dataclass(frozen=True)
class _Cut:
    """An axis cut into tiles of `length` queries and `span` keys; `extent` is the window's size."""

    extent: int
    pad: int
    length: int
    span: int
    starts: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.starts)

    def keys(self, device: torch.device) -> Tensor:
        """Returns the key positions of all tiles, (count · span,)."""
        starts = torch.tensor(self.starts, device=device).unsqueeze(1)
        return (starts + torch.arange(self.span, device=device)).flatten()

    def offsets(self, device: torch.device) -> Tensor:
        """Returns the position of keys in the window of each query, (count, length, span)."""
        keys = self.keys(device).view(self.count, 1, self.span)
        queries = torch.arange(self.count * self.length, device=device) + self.pad
        return keys - queries.view(self.count, self.length, 1) + self.extent // 2


def _cut(size: int, extent: int, pad: int) -> _Cut:
    """Cuts an axis into tiles of half a window, or one tile if it has two windows or fewer. Half a
    window is fastest on a CPU: longer tiles have unneeded keys, shorter ones copy more."""
    length = size if size <= 2 * extent else (extent + 1) // 2
    count = -(-size // length)
    span = min(size + 2 * pad, length + extent - 1)
    last = size + 2 * pad - span
    firsts = [index * length + pad - extent // 2 for index in range(count)]
    return _Cut(extent, pad, length, span, tuple(min(max(first, 0), last) for first in firsts))


def _shares(width: int, window: Sequence[int]) -> list[int]:
    """Splits a head's width equally among the axes; the first one also gets the remainder."""
    moving = [axis for axis, extent in enumerate(window) if extent > 1]
    shares = [width // len(moving) if axis in moving else 0 for axis in range(3)]
    if moving:
        shares[moving[0]] += width - sum(shares)
    return shares


def _check(out_channels: int, stride: int, window: Sequence[int], heads: int) -> None:
    if heads < 1 or out_channels % heads:
        divisors = [n for n in range(1, min(out_channels, 64) + 1) if out_channels % n == 0]
        raise ValueError(
            f"heads={heads} does not divide the {out_channels} channels of this layer; choose one "
            f"of {', '.join(map(str, divisors))}"
        )
    check_odd("window", window)
    if stride < 1:
        raise ValueError(f"stride: got {stride}; need at least 1")
