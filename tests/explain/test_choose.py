import dataclasses

import pytest
import torch

from tests.explain.maps import CLIP, one_hot_map
from videoattn.attention.record import PairwiseMap
from videoattn.explain import choose_queries


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
