"""Scores every view of every video exactly once, in one process or several."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from videoattn.engine.batches import Batches, ToVideo, one_ahead, passes, to_device, to_host
from videoattn.engine.objective import CrossEntropy, Objective, fraction, has_labels
from videoattn.engine.parallel import Parallel
from videoattn.engine.precision import Precision, autocast, resolve_precision
from videoattn.engine.progress import Clock, Display
from videoattn.types import Batch, Failure, Target


@runtime_checkable
class HasParts(Protocol):
    """A network with several classifiers. `parts` returns the logits (N, K) of each by name; the
    last logits are those that `forward` returns."""

    def parts(self, x: Tensor) -> Mapping[str, Tensor]: ...


WHOLE = ""
"""The name of the only classifier of a network without `parts`."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of all decoded videos, in the order of the dataset, and their metrics.

    Metrics are fractions from 0 to 1, or NaN if no video has a label. `clip_metrics` rate each view
    of a labeled video by itself. `video_metrics` rate its mean scores over views, begin with the
    objective's main metric, and include its summary. `loss` is the mean over the labeled views.
    Failed videos are in `failures` only. For a network that `HasParts`, `parts` has the evaluation
    of each classifier by name, and the other attributes are those of the last one.
    """

    probabilities: Float[Tensor, "N K"]  # mean scores over views
    labels: Target
    indices: Int64[Tensor, " N"]
    failures: tuple[Failure, ...]
    num_views: int
    video_metrics: Mapping[str, float]
    clip_metrics: Mapping[str, float]
    loss: float
    parts: Mapping[str, "Evaluation"] = field(default_factory=dict)

    @property
    def video_accuracy(self) -> float:
        return self.video_metrics["accuracy"]

    @property
    def clip_accuracy(self) -> float:
        return self.clip_metrics["accuracy"]

    @property
    def num_decoded(self) -> int:
        return len(self.indices)

    @property
    def num_failed(self) -> int:
        return len(self.failures)

    @property
    def num_videos(self) -> int:
        return self.num_decoded + self.num_failed

    @property
    def num_labeled(self) -> int:
        return int(has_labels(self.labels).sum())

    def describe(self) -> str:
        """Returns one line with the metrics of videos, and the first one of clips."""
        name, *others = (key for key in self.video_metrics if key != "top5")
        parts = ", ".join(
            f"{key} {_percent(part.video_metrics[name])}" for key, part in self.parts.items()
        )
        more = "".join(
            f"{key.replace('_', ' ')} {_percent(self.video_metrics[key])}  " for key in others
        )
        of_clips = next(iter(self.clip_metrics))
        return (
            f"video {name} {_percent(self.video_metrics[name])}  {f'({parts})  ' * bool(parts)}"
            f"{more}clip {of_clips} {_percent(self.clip_metrics[of_clips])}  "
            f"videos {self.num_labeled}  views {self.num_views}  failed {self.num_failed}"
        )


class _Scores(NamedTuple):
    """The scores of one batch on one rank; rows are videos."""

    probabilities: Tensor  # (N, K)
    labels: Tensor
    indices: Tensor
    sums: Tensor  # (N, 1 + M + 1) over labeled views: their number, M metrics, the loss
    num_views: int


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    to_video: ToVideo,
    objective: Objective | None = None,
    max_views: int = 16,
    precision: Precision = "auto",
    parallel: Parallel | None = None,
    display: Display | None = None,
) -> Evaluation:
    """Returns the scores and the metrics of the videos in the batches of epoch 0.

    A forward pass has at most `max_views` views. All ranks return the same result, which does not
    depend on their number. The network runs in evaluation mode; then its modes are restored.

    Raises:
        ValueError: If no video could be scored, one occurs twice, or `max_views` is below 1.
        FloatingPointError: If a score is not finite; the message names the samples.
    """
    objective = objective or CrossEntropy()
    parallel = parallel or Parallel()
    display = display or Display(enabled=False)
    clock = Clock(steps_left=len(batches))
    failures: list[Failure] = []
    rows: list[dict[str, _Scores]] = []
    scored = _score_batches(model, batches, to_video, objective, max_views, precision, parallel)
    for batch, scores in scored:
        failures += batch.failures
        rows += [scores] if scores else []
        clock.step(clips=batch.frames.shape[0] * batch.frames.shape[1])
        display.update(
            f"evaluating  {clock.steps}/{len(batches)}  {clock.clips_per_second:.1f} clips/s  "
            f"left {clock.time_left}",
            done=clock.steps,
            total=len(batches),
        )
    return _summarize(parallel.gather((failures, rows)), objective)


@dataclass(frozen=True)
class VideoScores:
    """The mean class scores (K,) of a video over its views, or why it could not be decoded."""

    index: int
    probabilities: Tensor | None
    failure: Failure | None


def score_in_order(
    model: nn.Module,
    batches: Batches,
    *,
    to_video: ToVideo,
    objective: Objective,
    max_views: int = 16,
    precision: Precision = "auto",
    parallel: Parallel | None = None,
) -> Iterator[list[VideoScores]]:
    """Yields the scores of each batch as soon as it is scored, for datasets of any length.

    Each list has the videos of one batch of every rank, in the order of the dataset. All ranks
    yield the same lists. If the network `HasParts`, the scores are those of the last part.

    Raises:
        FloatingPointError: As in `evaluate`.
    """
    parallel = parallel or Parallel()
    most = max(parallel.gather(len(batches)))  # a rank without a batch waits for the others
    scored = _score_batches(model, batches, to_video, objective, max_views, precision, parallel)
    for _ in range(most):
        own: list[VideoScores] = []
        for batch, scores in islice(scored, 1):
            own += [VideoScores(failure.index, None, failure) for failure in batch.failures]
            last = list(scores.values())[-1:]
            own += [
                VideoScores(int(index), probabilities, None)
                for rows in last
                for index, probabilities in zip(rows.indices, rows.probabilities, strict=True)
            ]
        gathered = [video for videos in parallel.gather(own) for video in videos]
        yield sorted(gathered, key=lambda video: video.index)


def _score_batches(
    model: nn.Module,
    batches: Batches,
    to_video: ToVideo,
    objective: Objective,
    max_views: int,
    precision: Precision,
    parallel: Parallel,
) -> Iterator[tuple[Batch, dict[str, _Scores]]]:
    """Yields each batch of epoch 0 with the scores by classifier; {} if all its videos failed.

    The network is in evaluation mode until the iterator ends.
    """
    if max_views < 1:
        raise ValueError(f"max_views: got {max_views}; need at least 1")
    dtype = resolve_precision(precision, parallel.device)
    in_training = [module for module in model.modules() if module.training]
    model.eval()

    def started(batch: Batch) -> tuple[Batch, Callable[[], dict[str, Tensor]]]:
        with torch.no_grad(), autocast(dtype, parallel.device):
            return batch, to_host(_forward(model, batch, to_video, max_views))

    try:
        results = map(started, to_device(batches.epoch(0), parallel.device))
        for batch, logits in one_ahead(results, parallel.device):
            yield batch, {name: _score(x, batch, objective) for name, x in logits().items()}
    finally:
        for module in in_training:
            module.training = True


def _forward(
    model: nn.Module, batch: Batch, to_video: ToVideo, max_views: int
) -> dict[str, Tensor]:
    """Returns the logits (N V, K) of each classifier by name; {} for a batch without videos."""
    if not len(batch.frames):
        return {}
    chunks: list[dict[str, Tensor]] = []
    for frames in passes(batch.frames.flatten(0, 1), max_views):
        video = to_video(frames)
        parts = model.parts(video) if isinstance(model, HasParts) else {WHOLE: model(video)}
        chunks.append({name: logits.float() for name, logits in parts.items()})
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _score(logits: Tensor, batch: Batch, objective: Objective) -> _Scores:
    num_videos, num_views = batch.frames.shape[:2]
    if not bool(logits.isfinite().all()):
        rows = logits.isfinite().all(dim=1).view(num_videos, num_views).all(dim=1)
        bad = batch.indices[~rows].tolist()
        raise FloatingPointError(f"the scores of samples {bad[:8]} are not finite; use float32")
    labels = batch.labels.repeat_interleave(num_views, dim=0)
    metrics, loss = objective.metrics(logits, labels), objective.loss(logits, labels)
    sums = torch.stack([has_labels(labels), *metrics.values(), loss.double()], dim=1)
    return _Scores(
        objective.scores(logits).view(num_videos, num_views, -1).mean(dim=1),
        batch.labels,
        batch.indices,
        sums.view(num_videos, num_views, -1).sum(dim=1),
        num_views,
    )


def _summarize(
    gathered: Sequence[tuple[list[Failure], list[dict[str, _Scores]]]], objective: Objective
) -> Evaluation:
    every = (failure for failures, _ in gathered for failure in failures)
    failures = tuple(sorted(every, key=lambda failure: failure.index))
    rows = [row for _, own in gathered for row in own]
    if not rows:
        first = f"; the first: {failures[0].path}: {failures[0].reason}" if failures else ""
        raise ValueError(f"none of {len(failures)} videos could be scored{first}")
    parts = {name: _join([row[name] for row in rows], failures, objective) for name in rows[0]}
    whole = parts.pop(WHOLE) if WHOLE in parts else list(parts.values())[-1]
    return replace(whole, parts=parts)


def _join(
    scores: Sequence[_Scores], failures: tuple[Failure, ...], objective: Objective
) -> Evaluation:
    indices, order = torch.cat([row.indices for row in scores]).sort()
    if bool((indices.diff() == 0).any()):
        twice = indices[:-1][indices.diff() == 0].tolist()
        raise ValueError(f"samples {twice[:8]} occur more than once; pass each sample once")
    probabilities = torch.cat([row.probabilities for row in scores])[order]
    labels = torch.cat([row.labels for row in scores])[order]
    sums = torch.cat([row.sums for row in scores])[order]
    num_clips, *hits, loss = sums.sum(dim=0).tolist()
    known = has_labels(labels)
    num_labeled = int(known.sum())
    of_videos = objective.metrics(probabilities, labels)
    video_metrics = {key: fraction(int(x.sum()), num_labeled) for key, x in of_videos.items()}
    video_metrics |= objective.summary(probabilities[known], labels[known])
    main = objective.metric
    return Evaluation(
        probabilities=probabilities,
        labels=labels,
        indices=indices,
        failures=failures,
        num_views=max(row.num_views for row in scores),
        video_metrics={main: video_metrics[main], **video_metrics},
        clip_metrics={
            name: fraction(count, num_clips) for name, count in zip(of_videos, hits, strict=True)
        },
        loss=fraction(loss, num_clips),
    )


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
