import dataclasses

import pytest
import torch
from torch import nn

from tests.explain.maps import CLIP, one_hot_map
from videoattn.attention.maps import PairwiseMap
from videoattn.explain import choose_queries, motion_position, score_position
from videoattn.types import ModelInfo


def received_map(received: torch.Tensor) -> PairwiseMap:
    return dataclasses.replace(
        one_hot_map(grid=tuple(received.shape), cell=(0, 0, 0)), received=received[None]
    )


def test_most_attended_first_without_neighbors() -> None:
    received = torch.zeros(4, 12, 16)  # cells of 2 x 2 pixels
    received[1, 5, 5], received[1, 5, 6], received[2, 5, 6] = 0.5, 0.4, 0.35  # one spot
    received[1, 10, 14], received[3, 5, 5] = 0.3, 0.2  # far in space; far in time
    chosen = choose_queries(received_map(received), CLIP, count=3)
    assert chosen == [(1, 11, 11), (1, 21, 29), (3, 11, 11)]


def test_a_small_grid_gives_fewer_queries() -> None:
    received = torch.tensor([[[0.7]]])
    assert choose_queries(received_map(received), CLIP) == [(1, 12, 16)]


def test_a_map_recorded_without_received() -> None:
    attention_map = dataclasses.replace(one_hot_map(), received=None)
    with pytest.raises(
        ValueError, match=r"was not recorded; use record_attention\(model, received"
    ):
        choose_queries(attention_map, CLIP)


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
