import math

import pytest
import torch

from videoattn.engine.objective import CrossEntropy, Objective, fraction, in_top_k


def test_in_top_k_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4], [0.3, 0.3, 0.4]])
    labels = torch.tensor([1, 2, -1])
    assert in_top_k(scores, labels, 1).tolist() == [True, False, False]
    assert in_top_k(scores, labels, 2).tolist() == [True, True, False]
    assert in_top_k(scores, labels, 5).tolist() == [True, True, False]
    with pytest.raises(ValueError, match=r"k: got 0; need at least 1"):
        in_top_k(scores, labels, 0)


def test_a_fraction_of_nothing_is_not_a_number() -> None:
    assert fraction(1, 4) == 0.25
    assert math.isnan(fraction(0, 0))


def test_cross_entropy_counts_no_row_without_a_label() -> None:
    objective, logits = CrossEntropy(), torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert isinstance(objective, Objective)
    target = torch.tensor([0, 0, -1])
    loss = objective.loss(logits, target)
    torch.testing.assert_close(loss[:2], -logits.log_softmax(1)[:2, 0])
    assert loss[2] == 0
    torch.testing.assert_close(objective.scores(logits).sum(1), torch.ones(3))
    metrics = objective.metrics(logits, target)
    assert {name: hits.tolist() for name, hits in metrics.items()} == {
        "accuracy": [True, False, False],
        "top5": [True, True, False],
    }
    assert objective.metric in metrics


def test_a_mixed_clip_counts_as_its_larger_class() -> None:
    objective, logits = CrossEntropy(label_smoothing=0.1), torch.tensor([[0.0, 1.0, 0.0]])
    target = torch.tensor([[0.3, 0.7, 0.0]])
    smoothed = 0.9 * target + 0.1 / 3
    expected = -(smoothed * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(objective.loss(logits, target), expected)
    assert objective.metrics(logits, target)["accuracy"].tolist() == [True]
