"""Defines the loss, the scores and the metrics of a task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from videoattn.types import Labels, Logits, Target


@runtime_checkable
class Objective(Protocol):
    """The interface of a task for training and evaluation."""

    metric: ClassVar[str]
    """The metric that selects the best epoch, from `metrics` or `summary`."""
    progress: ClassVar[str]
    """The metric that progress lines show, from `metrics`."""

    def loss(self, logits: Logits, target: Target) -> Float[Tensor, " N"]:
        """Returns the loss of each clip in float32; 0 for a clip without labels (-1)."""

    def scores(self, logits: Logits) -> Float[Tensor, "N K"]:
        """Returns class scores between 0 and 1, which are averaged over views."""

    def metrics(
        self, scores: Float[Tensor, "N K"], target: Target
    ) -> Mapping[str, Bool[Tensor, " N"]]:
        """Returns, by the name of each metric, whether each row is correct.

        The value of a metric is the mean over labeled rows. `scores` may also be logits: metrics
        depend only on the ranking of the classes.
        """

    def summary(self, scores: Float[Tensor, "N K"], target: Target) -> Mapping[str, float]:
        """Returns the metrics of a whole dataset that are not means over rows.

        Every row has labels. A metric is NaN if there is no row.
        """


@dataclass(frozen=True)
class CrossEntropy:
    """A task with one class per clip: softmax cross entropy, top-1 and top-5 accuracy.

    The summary is the mean class accuracy: the mean of the accuracies of the classes that have
    videos.

    Args:
        label_smoothing: The share of each target that is spread over all classes, 0 to below 1.
        class_weights: Factors of the classes' losses, (K,). The loss of a clip is not divided by
            the sum of its batch's weights, unlike the mean of `nn.CrossEntropyLoss`.
    """

    metric: ClassVar[str] = "accuracy"
    progress: ClassVar[str] = "accuracy"
    label_smoothing: float = 0.0
    class_weights: Float[Tensor, " K"] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: got {self.label_smoothing}; need 0 to below 1")

    def loss(self, logits: Logits, target: Target) -> Float[Tensor, " N"]:
        return nn.functional.cross_entropy(
            logits.float(),
            target,
            weight=self.class_weights,
            label_smoothing=self.label_smoothing,
            reduction="none",
            ignore_index=-1,
        )

    def scores(self, logits: Logits) -> Float[Tensor, "N K"]:
        return logits.softmax(dim=1)

    def metrics(
        self, scores: Float[Tensor, "N K"], target: Target
    ) -> Mapping[str, Bool[Tensor, " N"]]:
        # A mixed clip counts as the class with the largest share.
        labels = target.argmax(1) if target.is_floating_point() else target
        return {"accuracy": in_top_k(scores, labels, 1), "top5": in_top_k(scores, labels, 5)}

    def summary(self, scores: Float[Tensor, "N K"], target: Target) -> Mapping[str, float]:
        labels, num_classes = target.long(), scores.shape[1]
        hits = in_top_k(scores, labels, 1).double()
        counts = labels.bincount(minlength=num_classes)
        accuracies = labels.bincount(hits, minlength=num_classes) / counts
        return {"mean_class_accuracy": float(accuracies.nanmean())}


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """A task with any number of classes per clip: sigmoid, one binary decision for each class.

    The loss of a clip is the mean over the classes. Metrics: hit1, whether the class with the
    highest score is among the labels; as a summary mAP, the mean of the average precisions of the
    classes that have videos. A target with one class per clip is allowed.
    """

    metric: ClassVar[str] = "mAP"
    progress: ClassVar[str] = "hit1"

    def loss(self, logits: Logits, target: Target) -> Float[Tensor, " N"]:
        shares = multi_hot(target, logits.shape[1])
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits.float(), shares, reduction="none"
        )
        return losses.mean(dim=1) * has_labels(target)

    def scores(self, logits: Logits) -> Float[Tensor, "N K"]:
        return logits.sigmoid()

    def metrics(
        self, scores: Float[Tensor, "N K"], target: Target
    ) -> Mapping[str, Bool[Tensor, " N"]]:
        # A mixed clip has the labels of the clip with the larger share.
        is_label = multi_hot(target, scores.shape[1]) >= 0.5
        return {"hit1": is_label.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]}

    def summary(self, scores: Float[Tensor, "N K"], target: Target) -> Mapping[str, float]:
        return {"mAP": float(average_precisions(scores, target).nanmean())}


def average_precisions(scores: Float[Tensor, "N K"], target: Target) -> Float[Tensor, " K"]:
    """Returns the average precision of each class, or NaN for a class without videos.

    With videos sorted by descending score, it is the sum over ranks k of the increase in recall
    times the precision of the first k. Equal scores share a rank, as in scikit-learn.
    """
    # Imported late: scikit-learn takes a second.
    from sklearn.metrics import average_precision_score

    is_label = multi_hot(target, scores.shape[1]) >= 0.5
    return torch.tensor(
        [
            average_precision_score(truth, of_class) if truth.any() else torch.nan
            for truth, of_class in zip(is_label.T.numpy(), scores.T.numpy(), strict=True)
        ],
        dtype=torch.float64,
    )


def has_labels(target: Target) -> Bool[Tensor, " N"]:
    """Returns whether each row has known labels: -1 is unknown; rows of (N, K) are always known."""
    return target >= 0 if target.ndim == 1 else target.new_ones(len(target), dtype=torch.bool)


def multi_hot(target: Target, num_classes: int) -> Float[Tensor, "N K"]:
    """Returns a target as floats (N, K): 1 for labels, 0 for other classes, shares if mixed."""
    if target.ndim == 2:
        return target.float()
    one_hot = nn.functional.one_hot(target.clamp(min=0), num_classes)
    return one_hot * (target >= 0)[:, None].float()


def in_top_k(scores: Float[Tensor, "N K"], labels: Labels, k: int) -> Bool[Tensor, " N"]:
    """Returns whether each label is among the `k` highest scores of its row.

    A row without a label (-1) is False. If there are fewer than `k` classes, all of them count.

    Raises:
        ValueError: If `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k: got {k}; need at least 1")
    return (top_classes(scores, k) == labels[:, None]).any(dim=1)


def top_classes(scores: Float[Tensor, "N K"], k: int) -> Int64[Tensor, "N k"]:
    """Returns the (at most) `k` classes of the highest scores, the highest first.

    Equal scores, which bfloat16 makes likely, are in the order of the classes, as in `argmax`; the
    order of `topk` is arbitrary.
    """
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


def fraction(count: int | float, total: int | float) -> float:
    """Returns `count` / `total`, or NaN if `total` is 0."""
    return count / total if total else float("nan")
