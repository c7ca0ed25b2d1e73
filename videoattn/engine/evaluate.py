"""Scoring every view of every video, counted exactly, over one process or many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from videoattn.engine.batches import Batches, ToVideo
from videoattn.engine.metrics import in_top_k, share
from videoattn.engine.parallel import Parallel
from videoattn.engine.precision import Precision, autocast, resolve_precision
from videoattn.engine.trackers import Clock, Display
from videoattn.types import Batch, Failure


@runtime_checkable
class HasParts(Protocol):
    """A network with classifiers in its parts: the logits of each by name, and last those that its
    `forward` returns."""

    def parts(self, x: Tensor) -> Mapping[str, Tensor]: ...


WHOLE = ""
"""The name of the scores of a network as a whole, among those of its parts."""


@dataclass(frozen=True)
class Evaluation:
    """One row per video that was decoded, in the order of the data set.

    Accuracies are shares of 1 over the labelled ones, not a number where there are none. A clip's
    is over all single views; a video's is of its views' mean softmax. `loss` is the mean cross
    entropy of the views. Videos that failed are in `failures` and in nothing else. `parts` has the
    same of each classifier of a network that `HasParts`, and is empty for others.
    """

    probabilities: Float[Tensor, "N K"]  # mean softmax over views
    labels: Int64[Tensor, " N"]  # -1 where none is known
    indices: Int64[Tensor, " N"]
    failures: tuple[Failure, ...]
    num_views: int
    clip_accuracy: float
    clip_top5: float
    loss: float
    parts: Mapping[str, "Evaluation"] = field(default_factory=dict)

    @property
    def video_accuracy(self) -> float:
        return self._accuracy(1)

    @property
    def video_top5(self) -> float:
        return self._accuracy(5)

    @property
    def num_decoded(self) -> int:
        return len(self.indices)

    @property
    def num_failed(self) -> int:
        return len(self.failures)

    @property
    def num_asked(self) -> int:
        return self.num_decoded + self.num_failed

    @property
    def num_labelled(self) -> int:
        return int((self.labels >= 0).sum())

    def _accuracy(self, k: int) -> float:
        right = in_top_k(self.probabilities, self.labels, k)
        return share(int(right.sum()), self.num_labelled)

    def describe(self) -> str:
        """One line: both accuracies, and over what."""
        parts = ", ".join(
            f"{name} {100 * part.video_accuracy:.2f} %" for name, part in self.parts.items()
        )
        return (
            f"video accuracy {100 * self.video_accuracy:.2f} %  {f'({parts})  ' * bool(parts)}"
            f"clip accuracy {100 * self.clip_accuracy:.2f} %  "
            f"videos {self.num_labelled}  views {self.num_views}  failed {self.num_failed}"
        )


class _Scores(NamedTuple):
    """What one process has seen of one batch; rows are videos."""

    probabilities: Tensor  # (N, K)
    labels: Tensor
    indices: Tensor
    clips: Tensor  # (N, 4): views, right, right among five, summed cross entropy
    failures: tuple[Failure, ...]
    num_views: int


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    to_video: ToVideo,
    max_views: int = 16,
    precision: Precision = "auto",
    distributed: Parallel | None = None,
    display: Display | None = None,
) -> Evaluation:
    """Scores `batches.epoch(0)`, at most `max_views` clips per forward pass.

    The result is the same on every process, whatever their number. The model is left in the mode
    that it was in.

    Raises:
        ValueError: when there is no video, or none could be decoded, or one came twice.
        FloatingPointError: when a score is not finite; names the samples.
    """
    if max_views < 1:
        raise ValueError(f"max_views: {max_views} is not at least 1")
    distributed = distributed or Parallel()
    dtype = resolve_precision(precision, distributed.device)
    display = display or Display(enabled=False)
    clock = Clock(steps_left=len(batches))
    scores: list[dict[str, _Scores]] = []
    was_training = model.training
    model.eval()
    try:
        for batch in batches.epoch(0):
            with torch.no_grad(), autocast(dtype, distributed.device):
                scores.append(_score(model, batch, to_video=to_video, max_views=max_views))
            clock.step(clips=batch.frames.shape[0] * batch.frames.shape[1], waited=0.0)
            display.update(
                f"evaluating  {clock.steps}/{len(batches)}  {clock.clips_per_second:.1f} clips/s  "
                f"left {clock.time_left}",
                done=clock.steps,
                total=len(batches),
            )
    finally:
        model.train(was_training)
    everything = [row for rows in distributed.gather(scores) for row in rows]
    failures = [failure for row in everything for failure in row[WHOLE].failures]
    names = list(dict.fromkeys(name for row in everything for name in row))
    found = {
        name: _summarise([row[name] for row in everything if name in row], failures)
        for name in names or [WHOLE]
    }
    return replace(found.pop(WHOLE), parts=found)


def _score(
    model: nn.Module, batch: Batch, *, to_video: ToVideo, max_views: int
) -> dict[str, _Scores]:
    """Of the whole network and, where it has some, of its parts."""
    if not len(batch.frames):
        empty = torch.zeros(0, dtype=torch.int64)
        none = _Scores(torch.zeros(0, 0), empty, empty, torch.zeros(0, 4), batch.failures, 0)
        return {WHOLE: none}
    frames = batch.frames.flatten(0, 1)  # (N V, T, C, H, W)
    chunks = [_logits(model, to_video(chunk)) for chunk in frames.split(max_views)]
    return {
        name: _scored(torch.cat([chunk[name] for chunk in chunks]), batch) for name in chunks[0]
    }


def _logits(model: nn.Module, video: Tensor) -> dict[str, Tensor]:
    if not isinstance(model, HasParts):
        return {WHOLE: model(video).float().cpu()}
    parts = {name: logits.float().cpu() for name, logits in model.parts(video).items()}
    return {WHOLE: list(parts.values())[-1], **parts}


def _scored(logits: Tensor, batch: Batch) -> _Scores:
    num_videos, num_views = batch.frames.shape[:2]
    if not bool(logits.isfinite().all()):
        rows = logits.isfinite().all(dim=1).view(num_videos, num_views).all(dim=1)
        bad = batch.indices[~rows].tolist()
        raise FloatingPointError(f"the scores of samples {bad[:8]} are not finite")
    labels = batch.labels.repeat_interleave(num_views)
    known = labels >= 0
    loss = nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-1)
    clips = torch.stack(
        [known, in_top_k(logits, labels, 1), in_top_k(logits, labels, 5), loss.double()], dim=1
    )
    return _Scores(
        logits.softmax(dim=1).view(num_videos, num_views, -1).mean(dim=1),
        batch.labels,
        batch.indices,
        clips.view(num_videos, num_views, 4).sum(dim=1),
        batch.failures,
        num_views,
    )


def _summarise(scores: Sequence[_Scores], failed: Sequence[Failure]) -> Evaluation:
    failures = tuple(sorted(failed, key=lambda one: one.index))
    rows = [row for row in scores if len(row.indices)]
    if not rows:
        first = f"; the first: {failures[0].path}: {failures[0].reason}" if failures else ""
        raise ValueError(f"none of {len(failures)} videos could be scored{first}")
    indices, order = torch.cat([row.indices for row in rows]).sort()
    if bool((indices.diff() == 0).any()):
        twice = indices[:-1][indices.diff() == 0].tolist()
        raise ValueError(f"samples {twice[:8]} were given more than once; each counts once")
    probabilities = torch.cat([row.probabilities for row in rows])[order]
    labels = torch.cat([row.labels for row in rows])[order]
    clips = torch.cat([row.clips for row in rows])[order]
    num_clips, right, right_of_five, loss = clips.sum(dim=0).tolist()
    return Evaluation(
        probabilities=probabilities,
        labels=labels,
        indices=indices,
        failures=failures,
        num_views=max(row.num_views for row in rows),
        clip_accuracy=share(right, num_clips),
        clip_top5=share(right_of_five, num_clips),
        loss=share(loss, num_clips),
    )
