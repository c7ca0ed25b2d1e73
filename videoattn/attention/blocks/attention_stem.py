"""The attention stem of stand-alone attention (Ramachandran et al., NeurIPS 2019, arXiv
1906.05909): attention within blocks of 4x4 pixels, in place of a network's first convolution.

    y_i = Σ_{j in block(i)} softmax_j(q_i · k_j) v_j          q, k = W_q x, W_k x
    v_j = (Σ_m p(a, b, m) W_v^m) x_j                     j is in row a, column b of its block
    p(a, b, m) = softmax_m((row(a) + column(b)) · ν_m)   row, column and ν are learned

Pixels hold little content, so the values depend on the place in the block. The network's own batch
norm follows, then a 4x4 max pool that replaces the network's pool.

Where we differ: the network's ReLU stays between norm and pool. Each frame has blocks of its own.
Blocks at the border of a frame whose size is not a multiple of 4 are smaller. The paper does not
give the width of the embeddings; here it is the width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.attention.common import grid_of
from videoattn.attention.functional import Path, attend, autocast_off, widen
from videoattn.attention.insert import view_as_video
from videoattn.attention.maps import PairwiseAttention, cells
from videoattn.types import Video

BLOCK = 4


class AttentionStem(nn.Module):
    """A layer of attention within 4x4 blocks of each frame: (N, C, T, H, W) -> (N, C', T, H, W).

    Args:
        heads: Number of heads; it must divide C'.
        mixtures: Number of value matrices W_v^m (the paper has 4).

    Raises:
        ValueError: If `heads` does not divide C', or a number is below 1.
    """

    path: Path = "auto"  # how `attend` computes the map; "explicit" builds all of it

    def __init__(
        self, in_channels: int, out_channels: int, *, heads: int = 8, mixtures: int = 4
    ) -> None:
        super().__init__()
        if heads < 1 or mixtures < 1 or out_channels % heads:
            raise ValueError(
                f"heads and mixtures: got {heads} and {mixtures}; need at least 1 each, and heads "
                f"that divide the {out_channels} channels of the stem"
            )
        self.heads, self.mixtures = heads, mixtures
        self.query = nn.Conv3d(in_channels, out_channels, 1, bias=False)
        self.key = nn.Conv3d(in_channels, out_channels, 1, bias=False)
        self.value = nn.Conv3d(in_channels, mixtures * out_channels, 1, bias=False)
        width = out_channels // heads
        self.row = nn.Parameter(torch.randn(BLOCK, width))
        self.column = nn.Parameter(torch.randn(BLOCK, width))
        self.nu = nn.Parameter(torch.randn(mixtures, width) * width**-0.5)
        nn.init.kaiming_normal_(self.value.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Video) -> Tensor:
        q, k, v = self._project(x)
        with autocast_off(x):
            y = attend(q, k, v.to(q.dtype), path=self.path)  # (blocks, 16, D)
        return self._from_blocks(y.to(x.dtype), x)

    def mixture(self) -> Tensor:
        """Returns p as (m, 4, 4), which sums to 1 over m."""
        return torch.einsum("abd,md->mab", self.row[:, None] + self.column, self.nu).softmax(0)

    def maps(self, x: Video) -> dict[str, PairwiseAttention]:
        """Returns the map, with the rows of each head; they are 0 outside the query's block."""
        q, k, _ = self._project(x)
        grid, num_cells = grid_of(x), x[0, 0].numel()
        numbers = torch.arange(num_cells, device=x.device).view(1, 1, *grid)
        numbers = self._to_blocks(numbers, 1)[0, ..., 0, :, 0]  # (T, ⌈H/4⌉, ⌈W/4⌉, 16)
        q, k = (t.unflatten(0, (len(x), *numbers.shape[:3], self.heads)) for t in (q, k))

        def rows(positions: Tensor) -> Tensor:
            t, i, j = cells(positions.to(x.device), grid).unbind(1)
            at = (t, i // BLOCK, j // BLOCK)
            inside = i % BLOCK * BLOCK + j % BLOCK  # of its block, 0 to 15
            own = q[:, *at][torch.arange(len(x))[:, None], torch.arange(len(t)), :, inside]
            with autocast_off(x):
                weights = torch.einsum("nqhd,nqhkd->nhqk", own, k[:, *at]).softmax(-1)
            found = weights.new_zeros(*weights.shape[:3], num_cells)
            # Keys outside the frame have weight 0 (and number 0).
            return found.scatter_add(3, numbers[at].expand_as(weights), weights)

        return {"": PairwiseAttention(grid, grid, True, rows, self.heads, "local")}

    def _project(self, x: Video) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q, k and v of all blocks and heads, (N·T·blocks·heads, 16, D). An extra column of
        q and k masks the keys of pixels outside the frame."""
        q, k = widen(self.query(x)), widen(self.key(x))
        height, width = x.shape[3:]
        v = self.value(x).unflatten(1, (self.mixtures, -1))
        share = self.mixture().to(v.dtype)
        share = share.repeat(1, -(-height // BLOCK), -(-width // BLOCK))[:, :height, :width]
        v = torch.einsum("nmcthw,mhw->ncthw", v, share)
        q, k, v = (self._to_blocks(t, self.heads) for t in (q, k, v))
        inside = self._to_blocks(k.new_ones(1, 1, 1, height, width), 1)
        hidden = ((inside - 1) * 1e9).expand(*k.shape[:-1], 1)  # 0 inside, finite outside
        q, k = torch.cat([q, torch.ones_like(hidden)], -1), torch.cat([k, hidden], -1)
        return q.flatten(0, 4), k.flatten(0, 4), v.flatten(0, 4)

    def _to_blocks(self, x: Tensor, heads: int) -> Tensor:
        """Cuts (N, C, T, H, W) into blocks: (N, T, ⌈H/4⌉, ⌈W/4⌉, heads, 16, D)."""
        height, width = x.shape[3:]
        x = F.pad(x, (0, -width % BLOCK, 0, -height % BLOCK))
        x = x.unflatten(4, (-1, BLOCK)).unflatten(3, (-1, BLOCK)).unflatten(1, (heads, -1))
        # (N, heads, D, T, ⌈H/4⌉, 4, ⌈W/4⌉, 4)
        return x.permute(0, 3, 4, 6, 1, 5, 7, 2).flatten(5, 6)

    def _from_blocks(self, y: Tensor, like: Video) -> Tensor:
        """Inverts `_to_blocks` for blocks whose first five axes were flattened."""
        frames, height, width = grid_of(like)
        down, along = -(-height // BLOCK), -(-width // BLOCK)
        y = y.unflatten(1, (BLOCK, BLOCK)).unflatten(0, (-1, frames, down, along, self.heads))
        y = y.permute(0, 4, 7, 1, 2, 5, 3, 6)  # (N, heads, D, T, down, 4, along, 4)
        return y.flatten(6, 7).flatten(4, 5).flatten(1, 2)[..., :height, :width]


def replace_stem(model: nn.Module, name: str, *, heads: int) -> None:
    """Replaces a network's first convolution by an `AttentionStem`, and `maxpool` by a 4x4 pool.

    Raises:
        ValueError: If there are no such layers, or the convolution skips frames.
    """
    conv, pool = model.get_submodule(name), getattr(model, "maxpool", None)
    fits = isinstance(conv, nn.Conv2d) or (isinstance(conv, nn.Conv3d) and conv.stride[0] == 1)
    if not fits or not isinstance(pool, nn.MaxPool2d | nn.MaxPool3d):
        raise ValueError(
            f"{name!r} and the pool after it cannot be replaced in {type(model).__name__}; choose "
            "a ResNet, or stages"
        )
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    stem = AttentionStem(conv.in_channels, conv.out_channels, heads=heads)
    model.set_submodule(name, view_as_video(stem, conv.weight.shape))
    larger: nn.Module = nn.MaxPool2d(BLOCK, ceil_mode=True)
    if isinstance(pool, nn.MaxPool3d):
        over, step = (n if isinstance(n, int) else n[0] for n in (pool.kernel_size, pool.stride))
        larger = nn.MaxPool3d((over, BLOCK, BLOCK), (step, BLOCK, BLOCK), ceil_mode=True)
    model.set_submodule("maxpool", larger)
