"""Stand-alone self-attention (Ramachandran et al., Stand-Alone Self-Attention in Vision Models,
NeurIPS 2019, arXiv 1906.05909), with a window over frames too.

    y_i = Σ_{j in window(i)} softmax_j(q_i · (k_j + r_{j-i})) v_j      q, k, v = W_q x, W_k x, W_v x

for each head by itself; r_{(a,b,c)} = [r_t(a) ; r_h(b) ; r_w(c)] is learned, and split along a
head's width. There is no 1/sqrt(d). It stands where a 3x3 convolution stood; a stride is an average
pool behind it. Where we differ: the paper's window is k x k (here: a frame kernel of 1); the three
projections are full matrices, as the paper's parameter counts say, although its text has one small
matrix for each head; neighbours beyond the border are left out of the softmax, where the public
code gives weight to zero padding (`border="zero"`); r starts at N(0, 1/d), not at N(0, 1), and W_q
and W_k start small, so that a layer starts near the mean of its window.

How it is computed. q · r_{j-i} is a sum of one number for each axis, so it can be had as a product
with one-hot keys: a query gets extra columns that hold its scores with every key's place along each
axis, a key ones that say where it lies. Masks are such scores too. Then queries are cut into tiles,
each with the keys that any of its queries sees, and a tile is ordinary attention (`attend`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videoattn.attention.common import check_choice, grid_of
from videoattn.attention.functional import (
    PairwiseAttention,
    Path,
    attend,
    attention_weights,
    autocast_off,
)
from videoattn.types import Video

BORDERS = ("mask", "zero")
AXES = ("t", "h", "w")


class StandAloneAttention(nn.Module):
    """Attention within a window: (N, C, T, H, W) -> (N, C', T, ⌈H/stride⌉, ⌈W/stride⌉).

    stride: of an average pool over height and width behind the attention.
    window: (k_t, k_h, k_w), odd. Grids smaller than the window are fine: what lies outside is
        masked (or zero), so one recipe serves any clip length. (1, 7, 7) is the paper's layer on
        each frame. Axes with a window of 1 have no relative positions, their share of a head's
        width goes to the others.
    heads: must divide the output channels.
    border: "mask" leaves neighbours outside the clip out; "zero" keeps them as zero features.

    Memory: frames are worked off in chunks, one row of tiles along time after the other, and in
    training the chunk is computed again in the backward pass. So, whatever T is, beside q, k and v
    there is one chunk's copies of them: those of at most 3·k_t frames, each position in at most
    9 tiles (3 along each of height and width). Unfolding would copy each k_t·k_h·k_w times. No map
    is built where `scaled_dot_product_attention` has a fused kernel.

    Raises:
        ValueError: channels that do not divide by heads; windows that are not three odd numbers.
    """

    path: Path = "auto"
    """How `attend` computes the map; "explicit" builds all of it, for comparison."""

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
        _check(out_channels, stride, window, heads, border)
        self.stride = stride
        self.window = tuple(window)
        self.heads = heads
        self.border = border
        self.query = nn.Conv3d(in_channels, out_channels, 1, bias=False)
        self.key = nn.Conv3d(in_channels, out_channels, 1, bias=False)
        self.value = nn.Conv3d(in_channels, out_channels, 1, bias=False)
        width = out_channels // heads
        self.shares = _shares(width, self.window)
        for axis, extent, share in zip(AXES, self.window, self.shares, strict=True):
            table = nn.Parameter(torch.empty(heads, extent, share)) if share else None
            self.register_parameter(f"position_{axis}", table)
        self._reset(width)

    def _reset(self, width: int) -> None:
        nn.init.kaiming_normal_(self.value.weight, mode="fan_out", nonlinearity="relu")
        for conv in (self.query, self.key):
            # Kaiming's start gives logits of hundreds where the input is a residual sum, as in
            # basic blocks: one neighbour takes all, and rounding decides which.
            nn.init.normal_(conv.weight, std=0.01)
        for table in self._tables():
            if table is not None:
                nn.init.normal_(table, std=width**-0.5)

    def forward(self, x: Video) -> Tensor:
        q, k, v = self._project(x)
        cuts = self._cuts(x)
        again = torch.is_grad_enabled() and max(cut.count for cut in cuts) > 1
        frames, height, width = (cut.count * cut.length for cut in cuts)
        q = F.pad(q, (0, 0, 0, width - q.shape[4], 0, height - q.shape[3], 0, frames - q.shape[2]))
        chunks = []
        for index, queries in enumerate(q.split(cuts[0].length, dim=2)):
            start = cuts[0].starts[index]
            near = slice(start, start + cuts[0].span)
            args = (queries, k[:, :, near], v[:, :, near], cuts, index)
            if again:
                chunk = checkpoint(
                    self._attend_frames, *args, use_reentrant=False, preserve_rng_state=False
                )
            else:
                chunk = self._attend_frames(*args)
            chunks.append(chunk)
        y = torch.cat(chunks, dim=2)[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]
        if self.stride > 1:
            pool = (1, min(self.stride, y.shape[3]), min(self.stride, y.shape[4]))
            y = F.avg_pool3d(y, pool, ceil_mode=True, count_include_pad=False)
        return y

    def maps(self, x: Video) -> dict[str, PairwiseAttention]:
        """The mean of the heads' maps, on the grid before the stride's pool; 0 outside the window.
        With border="zero" the padding's share is missing from a row."""
        q, k, _ = self._project(x)
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k = q.to(wide).flatten(2, 4), k.to(wide)
        pads = self._pads()
        sizes = [size + 2 * pad for size, pad in zip(x.shape[2:], pads, strict=True)]
        keys = _with_places(k).flatten(2, 4)

        def rows(positions: Tensor) -> Tensor:
            _, height, width = x.shape[2:]
            positions = positions.to(x.device)
            at = (positions // (height * width), positions // width % height, positions % width)
            relative = []
            for extent, pad, size, own in zip(self.window, pads, sizes, at, strict=True):
                places = torch.arange(size, device=own.device)
                relative.append(places - (own + pad).unsqueeze(1) + extent // 2)
            with autocast_off(x):
                asked = self._with_scores(q[:, :, positions], relative)
                mean = sum(  # a head at a time: the rows of all would be large
                    attention_weights(asked[:, head], keys[:, head], "softmax", 1.0)
                    for head in range(self.heads)
                )
            assert isinstance(mean, Tensor)
            mean = (mean / self.heads).unflatten(2, sizes)
            for axis, (pad, size) in enumerate(zip(pads, x.shape[2:], strict=True), start=2):
                mean = mean.narrow(axis, pad, size)
            return mean.flatten(2)

        grid = grid_of(x)
        normalized = self.border == "mask"
        return {"": PairwiseAttention(grid, grid, normalized=normalized, rows=rows, kind="local")}

    def _project(self, x: Video) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, heads, T, H, W, D); keys and values alike, with the zero border if any."""
        border = [pad for pad in reversed(self._pads()) for _ in range(2)]
        k, v = F.pad(self.key(x), border), F.pad(self.value(x), border)
        q, k, v = (
            features.unflatten(1, (self.heads, -1)).permute(0, 1, 3, 4, 5, 2)
            for features in (self.query(x), k, v)
        )
        return q, k, v

    def _pads(self) -> list[int]:
        return [extent // 2 if self.border == "zero" else 0 for extent in self.window]

    def _cuts(self, x: Tensor) -> list["_Cut"]:
        sizes = zip(x.shape[2:], self.window, self._pads(), strict=True)
        return [_cut(size, extent, pad) for size, extent, pad in sizes]

    def _tables(self) -> list[nn.Parameter | None]:
        return [getattr(self, f"position_{axis}") for axis in AXES]

    def _attend_frames(
        self, q: Tensor, k: Tensor, v: Tensor, cuts: list["_Cut"], index: int
    ) -> Tensor:
        """One chunk, the tiles of `index` along time: (N, heads, t, H, W, D) -> (N, C, t, H, W)."""
        _, down, along = cuts
        q = q.unflatten(4, (along.count, along.length)).unflatten(3, (down.count, down.length))
        q = q.permute(0, 1, 3, 5, 2, 4, 6, 7)  # (N, heads, tiles down, along, t, h, w, D)
        relative = [cut.relative(q.device) for cut in cuts]
        places = [
            relative[0][index].view(q.shape[4], 1, 1, -1),
            relative[1].view(down.count, 1, 1, down.length, 1, -1),
            relative[2].view(along.count, 1, 1, along.length, -1),
        ]
        tiles = q.shape[:4]
        q = self._with_scores(q, places).flatten(4, 6).flatten(0, 3)
        k, v = (_near(features, down, along) for features in (k, v))
        k, v = (tokens.flatten(4, 6).flatten(0, 3) for tokens in (_with_places(k), v))
        y = attend(q, k, v, path=self.path).unflatten(0, tiles)
        y = y.unflatten(4, (cuts[0].length, down.length, along.length))
        y = y.permute(0, 1, 7, 4, 2, 5, 3, 6)  # (N, heads, D, t, tiles down, h, tiles along, w)
        return y.flatten(6, 7).flatten(4, 5).flatten(1, 2)

    def _with_scores(self, q: Tensor, relative: Sequence[Tensor]) -> Tensor:
        """(N, heads, ..., D) queries with one more column for each place that a key can have along
        each axis. relative, one per axis: (..., places), where in the query's window they lie."""
        columns = [q]
        parts = q.split(self.shares, dim=-1) if sum(self.shares) else [None] * 3
        for part, table, extent, where in zip(
            parts, self._tables(), self.window, relative, strict=True
        ):
            hidden = (where < 0) | (where >= extent)
            where = where.clamp(0, extent - 1).expand(*q.shape[:-1], -1)
            if table is None or part is None:
                scores = q.new_zeros(where.shape)
            else:
                scores = part.flatten(2, -2) @ table.transpose(1, 2)  # (N, heads, ..., extent)
                scores = scores.view(*q.shape[:-1], extent).gather(-1, where)
            # Finite, as it is multiplied by the zeros of keys elsewhere; exp of it is 0.
            never = max(-1e9, torch.finfo(scores.dtype).min / 4)
            columns.append(scores.masked_fill(hidden, never).to(q.dtype))
        return torch.cat(columns, dim=-1)


def _with_places(k: Tensor) -> Tensor:
    """(..., T, H, W, D) keys with the one-hot of their t, of their y and of their x behind them."""
    columns = [k]
    for axis in (-4, -3, -2):
        eye = torch.eye(k.shape[axis], dtype=k.dtype, device=k.device)
        eye = eye.view(-1, *[1] * (-2 - axis), k.shape[axis])
        columns.append(eye.expand(*k.shape[:-1], -1))
    return torch.cat(columns, dim=-1)


def _near(features: Tensor, down: "_Cut", along: "_Cut") -> Tensor:
    """(N, heads, t, H, W, D) -> (N, heads, tiles down, tiles along, t, h, w, D): each tile's keys,
    as copies where tiles overlap."""
    for axis, cut in ((4, along), (3, down)):
        if cut.count > 1:
            features = features.index_select(axis, cut.keys(features.device))
        features = features.unflatten(axis, (cut.count, cut.span))
    return features.permute(0, 1, 3, 5, 2, 4, 6, 7)


@dataclass(frozen=True)
class _Cut:
    """An axis in `count` tiles of `length` queries; each sees within `span` keys from its start."""

    extent: int
    pad: int
    length: int
    span: int
    starts: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.starts)

    def keys(self, device: torch.device) -> Tensor:
        """(count · span,): the keys of all tiles."""
        starts = torch.tensor(self.starts, device=device).unsqueeze(1)
        return (starts + torch.arange(self.span, device=device)).flatten()

    def relative(self, device: torch.device) -> Tensor:
        """(count, length, span): a key's place in the window of a query, 0 to extent - 1 inside."""
        keys = self.keys(device).view(self.count, 1, self.span)
        queries = torch.arange(self.count * self.length, device=device) + self.pad
        return keys - queries.view(self.count, self.length, 1) + self.extent // 2


def _cut(size: int, extent: int, pad: int) -> _Cut:
    """Tiles of half a window: longer ones see more keys than their queries need, shorter ones copy
    every key more often (measured on a CPU). An axis of two windows or less is one tile."""
    length = size if size <= 2 * extent else (extent + 1) // 2
    count = -(-size // length)
    span = min(size + 2 * pad, length + extent - 1)
    last = size + 2 * pad - span
    firsts = [index * length + pad - extent // 2 for index in range(count)]
    return _Cut(extent, pad, length, span, tuple(min(max(first, 0), last) for first in firsts))


def _shares(width: int, window: Sequence[int]) -> list[int]:
    """How much of a head's width each axis' positions get: equal parts, the rest to the first."""
    moving = [axis for axis, extent in enumerate(window) if extent > 1]
    shares = [width // len(moving) if axis in moving else 0 for axis in range(3)] if moving else []
    if moving:
        shares[moving[0]] += width - sum(shares)
    return shares or [0, 0, 0]


def _check(out_channels: int, stride: int, window: Sequence[int], heads: int, border: str) -> None:
    check_choice("border", border, BORDERS)
    if heads < 1 or out_channels % heads:
        divisors = [n for n in range(1, min(out_channels, 64) + 1) if out_channels % n == 0]
        raise ValueError(
            f"heads={heads} does not divide the {out_channels} channels of this layer; choose one "
            f"of {', '.join(map(str, divisors))}"
        )
    if len(window) != 3 or any(extent < 1 or extent % 2 == 0 for extent in window):
        raise ValueError(
            f"window: got {list(window)}; need three odd numbers (frames, height, width), such as "
            "[3, 7, 7]; one that is larger than the grid is cut at its border"
        )
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
