import math

import pytest
import torch

from videoattn.engine.objective import (
    BinaryCrossEntropy,
    CrossEntropy,
    Objective,
    average_precisions,
    fraction,
    has_labels,
    in_top_k,
    top_classes,
)


def test_in_top_k_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4], [0.3, 0.3, 0.4]])
    labels = torch.tensor([1, 2, -1])
    assert in_top_k(scores, labels, 1).tolist() == [True, False, False]
    assert in_top_k(scores, labels, 2).tolist() == [True, True, False]
    assert in_top_k(scores, labels, 5).tolist() == [True, True, False]
    ties = torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0]]).repeat(50, 20)  # 60 classes
    assert in_top_k(ties, ties.argmax(1), 1).all()
    assert top_classes(ties, 3)[:2].tolist() == [[1, 2, 4], [0, 1, 3]]
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


def test_the_mean_class_accuracy_is_the_mean_over_classes_with_videos() -> None:
    scores = torch.eye(4)[[0, 0, 0, 1, 2, 0]]
    labels = torch.tensor([0, 0, 0, 0, 2, 1])  # class accuracies 3/4, 0, 1; none for class 3
    summary = CrossEntropy().summary(scores, labels)
    assert summary == {"mean_class_accuracy": pytest.approx((3 / 4 + 0 + 1) / 3)}
    assert math.isnan(CrossEntropy().summary(scores[:0], labels[:0])["mean_class_accuracy"])


def test_class_weights_multiply_the_losses() -> None:
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, -1])
    weights = torch.tensor([0.5, 1.0, 4.0])
    plain = CrossEntropy().loss(logits, target)
    weighted = CrossEntropy(class_weights=weights).loss(logits, target)
    torch.testing.assert_close(weighted, plain * torch.tensor([0.5, 1.0, 4.0, 4.0, 1.0]))
    assert weighted[4] == 0


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 1.0, 1.5], [0.0, 0.0, -2.0], [1.0, 2.0, 3.0]])
SETS = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]])


def test_binary_cross_entropy_by_its_definition() -> None:
    objective = BinaryCrossEntropy()
    assert isinstance(objective, Objective)
    p = LOGITS.double().sigmoid()
    expected = -(SETS * p.log() + (1 - SETS) * (1 - p).log()).mean(dim=1)
    torch.testing.assert_close(objective.loss(LOGITS, SETS).double(), expected)
    torch.testing.assert_close(objective.scores(LOGITS).double(), p)
    assert objective.metrics(LOGITS, SETS)["hit1"].tolist() == [True, False, False, True]


def test_a_target_may_have_one_class_or_none_per_clip() -> None:
    objective, target = BinaryCrossEntropy(), torch.tensor([2, 1, -1, 0])
    assert has_labels(target).tolist() == [True, True, False, True]
    assert has_labels(SETS).all()
    one_hot = torch.eye(3)[[2, 1, 0, 0]]
    loss = objective.loss(LOGITS, target)
    torch.testing.assert_close(loss[[0, 1, 3]], objective.loss(LOGITS, one_hot)[[0, 1, 3]])
    assert loss[2] == 0
    assert objective.metrics(LOGITS, target)["hit1"].tolist() == [False, False, False, False]


def test_a_mixed_clip_has_the_labels_of_its_larger_share() -> None:
    mixed = torch.tensor([[0.3, 0.7, 0.3]] * 4)
    logits = LOGITS[:, [2, 0, 1]]
    assert BinaryCrossEntropy().metrics(logits, mixed)["hit1"].tolist() == [
        True,
        False,
        True,
        False,
    ]


def naive_average_precision(scores: list[float], truth: list[bool]) -> float:
    """The sum over thresholds of precision times the change of recall, by counting."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [t for s, t in zip(scores, truth, strict=True) if s >= threshold]
        now = sum(chosen) / sum(truth)
        total, recall = total + sum(chosen) / len(chosen) * (now - recall), now
    return total


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_by_counting(ties: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 6, generator=generator, dtype=torch.float64)
    scores = (scores * 10).round() if ties else scores
    target = (torch.rand(200, 6, generator=generator) < 0.2).float()
    target[:, 3] = 0.0  # a class without videos
    got = average_precisions(scores.float(), target)
    for k in range(6):
        if k == 3:
            assert math.isnan(got[k])
            continue
        of_class = scores.float()[:, k].tolist()
        expected = naive_average_precision(of_class, (target[:, k] > 0).tolist())
        assert float(got[k]) == pytest.approx(expected, abs=1e-12)
    summary = BinaryCrossEntropy().summary(scores.float(), target)
    assert summary["mAP"] == pytest.approx(float(got[[0, 1, 2, 4, 5]].mean()))
    assert math.isnan(BinaryCrossEntropy().summary(scores[:0].float(), target[:0])["mAP"])
