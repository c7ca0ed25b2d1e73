import dataclasses

import pytest
import torch
from torch import nn

from tests.explain.maps import CLIP, one_hot_map
from videoattn.attention.maps import PairwiseMap, cells
from videoattn.explain import choose_queries, motion_position, score_position
from videoattn.types import ModelInfo


def test_the_position_with_the_most_motion() -> None:
    """A bright square that jumps in frames 4 to 6, while a moving camera brightens everything."""
    frames = torch.zeros(8, 3, 64, 96, dtype=torch.uint8)
    frames += (torch.arange(8) * 3).to(torch.uint8).view(-1, 1, 1, 1)
    frames[5, :, 40:48, 72:80] = 255
    chosen = motion_position(frames, (8, 32, 48))
    assert chosen is not None
    frame, y, x = chosen.query
    assert frame in (4, 6)  # the change from the frame before to the frame after
    assert 20 <= y < 24
    assert 36 <= x < 40
    assert chosen.title == "most motion"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_still_clip_has_no_motion(count: int) -> None:
    assert motion_position(torch.full((count, 3, 8, 8), 7, dtype=torch.uint8), CLIP) is None


class Pooled(nn.Module):
    """Logits from the mean of a fixed map of activations, which the input multiplies."""

    info = ModelInfo("fc", features="act")

    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.fc = nn.Linear(3, 2)
        self.exact = exact

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.act(x).mean((2, 3, 4))
        return self.fc(pooled if self.exact else pooled.square())


def whole_map(cell: tuple[int, int, int]) -> PairwiseMap:
    """Returns a map of 2 x 3 x 4 queries that all look at one key of as many."""
    one = one_hot_map(cell, grid=(2, 3, 4), grid_q=(2, 3, 4))
    rows = one.rows.expand(-1, -1, 24, -1, -1, -1)
    return dataclasses.replace(one, rows=rows, queries=cells(torch.arange(24), (2, 3, 4)))


def test_in_a_still_clip_the_second_query_receives_the_most_attention() -> None:
    model, video = Pooled(exact=True).eval(), torch.rand(1, 3, *CLIP)
    frames = torch.full((CLIP[0], 3, 8, 8), 7, dtype=torch.uint8)
    part = one_hot_map((0, 0, 0))  # not whole: left out
    maps = {"early": whole_map((0, 0, 0)), "last": whole_map((1, 2, 3)), "part": part}
    score, still = choose_queries(model, video, frames, 0, "PushUps", maps)
    assert score.title == "adds most to the score"
    assert still.reason == "it receives the most attention"
    assert still.query == (2, 20, 28)  # the center of the cell, in the first of its two frames
    assert len(choose_queries(model, video, frames, 0, "PushUps", {"part": part})) == 1
    frames[1, :, 2:4, 4:6] = 255
    assert choose_queries(model, video, frames, 0, "PushUps", maps)[1].title == "most motion"


@pytest.mark.parametrize(("exact", "method"), [(True, "HiResCAM"), (False, "occlusion")])
def test_the_position_that_adds_most_to_the_score(exact: bool, method: str) -> None:
    torch.manual_seed(0)
    model = Pooled(exact).eval()
    nn.init.constant_(model.fc.weight, 1.0)
    video = torch.full((1, 3, 8, 14, 14), 0.1)
    video[:, :, 4:6, 8:12, 4:8] = 2.0
    chosen = score_position(model, video, 1, "PushUps")
    assert chosen.reason == f"it adds most to the score of PushUps ({method})"
    frame, y, x = chosen.query
    assert 3 <= frame < 7
    assert 7 <= y < 13
    assert 3 <= x < 9
