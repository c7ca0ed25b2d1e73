import math

import pytest
import torch

from videoattn.engine.metrics import fraction, in_top_k


def test_in_top_k_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4], [0.3, 0.3, 0.4]])
    labels = torch.tensor([1, 2, -1])
    assert in_top_k(scores, labels, 1).tolist() == [True, False, False]
    assert in_top_k(scores, labels, 2).tolist() == [True, True, False]
    assert in_top_k(scores, labels, 5).tolist() == [True, True, False]
    with pytest.raises(ValueError, match=r"k: 0 is not at least 1"):
        in_top_k(scores, labels, 0)


def test_a_fraction_of_nothing_is_not_a_number() -> None:
    assert fraction(1, 4) == 0.25
    assert math.isnan(fraction(0, 0))
