"""Defines the loss, the scores and the metrics of a task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from videoattn.types import Labels, Logits, Target


@runtime_checkable
class Objective(Protocol):
    """The interface of a task for training and evaluation."""

    metric: ClassVar[str]
    """The metric that progress lines show and that selects the best epoch."""

    def loss(self, logits: Logits, target: Target) -> Float[Tensor, " N"]:
        """Returns the loss of each clip in float32; 0 for a clip without a label (-1)."""

    def scores(self, logits: Logits) -> Float[Tensor, "N K"]:
        """Returns class scores between 0 and 1, which can be averaged over views."""

    def metrics(
        self, scores: Float[Tensor, "N K"], target: Target
    ) -> Mapping[str, Bool[Tensor, " N"]]:
        """Returns for each metric whether each row is correct.

        The value of a metric is the mean over labeled rows. `scores` may also be logits: metrics
        depend only on the order of the classes.
        """


@dataclass(frozen=True)
class CrossEntropy:
    """A task with one class per clip: softmax cross entropy, top-1 and top-5 accuracy.

    Args:
        label_smoothing: The share of each target that is spread over all classes, 0 to below 1.
    """

    metric: ClassVar[str] = "accuracy"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: got {self.label_smoothing}; need 0 to below 1")

    def loss(self, logits: Logits, target: Target) -> Float[Tensor, " N"]:
        return nn.functional.cross_entropy(
            logits.float(),
            target,
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


def in_top_k(scores: Float[Tensor, "N K"], labels: Labels, k: int) -> Bool[Tensor, " N"]:
    """Returns whether each label is among the `k` highest scores of its row.

    A row without a label (-1) is False. If there are fewer than `k` classes, all of them count.

    Raises:
        ValueError: If `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k: got {k}; need at least 1")
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices  # (N, k)
    return (best == labels[:, None]).any(dim=1)


def fraction(count: int | float, total: int | float) -> float:
    """Returns `count` / `total`, or NaN if `total` is 0."""
    return count / total if total else float("nan")
