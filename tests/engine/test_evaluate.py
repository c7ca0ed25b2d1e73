import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import average_precision_score

from tests.engine.fakes import FakeBatches, PoisonedNet, clip, tiny_net, to_video
from videoattn.engine.batches import passes
from videoattn.engine.evaluate import evaluate
from videoattn.engine.objective import BinaryCrossEntropy
from videoattn.types import Batch

BATCHES = FakeBatches(num_samples=13, batch_size=4, num_views=3, shuffle=False)


def test_accuracies_equal_a_plain_loop() -> None:
    model = tiny_net().train()
    evaluation = evaluate(model, BATCHES, to_video=to_video, max_views=5, precision="float32")
    assert model.training
    labels = torch.arange(13) % 4
    with torch.no_grad():
        logits = torch.stack([model.eval()(to_video(clip(n, num_views=3))) for n in range(13)])
    probabilities = logits.softmax(dim=2).mean(dim=1)
    torch.testing.assert_close(evaluation.probabilities, probabilities, rtol=0, atol=1e-6)
    assert torch.equal(evaluation.labels, labels)
    assert torch.equal(evaluation.indices, torch.arange(13))
    right = logits.argmax(dim=2) == labels[:, None]
    assert evaluation.clip_accuracy == pytest.approx(right.float().mean().item())
    right = probabilities.argmax(dim=1) == labels
    assert evaluation.video_accuracy == pytest.approx(right.float().mean().item())
    # There are only 4 classes.
    assert evaluation.clip_metrics["top5"] == evaluation.video_metrics["top5"] == 1.0
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(3))
    assert evaluation.loss == pytest.approx(loss.item(), rel=1e-5)
    assert evaluation.num_views == 3


def test_views_are_scored_in_chunks_of_bounded_size() -> None:
    sizes = []

    def watched(frames: torch.Tensor) -> torch.Tensor:
        sizes.append(len(frames))
        return to_video(frames)

    results = [
        evaluate(tiny_net(), BATCHES, to_video=watched, max_views=views, precision="float32")
        for views in (2, 100)
    ]
    assert sizes == [2] * 6 * 3 + [2, 1] + [12, 12, 12, 3]
    torch.testing.assert_close(
        results[0].probabilities, results[1].probabilities, rtol=0, atol=1e-6
    )


def test_passes_on_a_cpu_have_few_values() -> None:
    """Two views of 8x256x256 have more than 2**21 values; one may have more, alone."""
    small, large = (torch.empty(5, 3, 8, size, size) for size in (64, 512))
    assert [len(part) for part in passes(small, 16)] == [5]
    assert [len(part) for part in passes(small, 2)] == [2, 2, 1]
    assert [len(part) for part in passes(large, 16)] == [1] * 5
    frames = torch.arange(2 * 3 * 8 * 256 * 256, dtype=torch.float32).view(2, 3, 8, 256, 256)
    assert torch.equal(torch.cat(passes(frames, 16)), frames)
    assert len(passes(frames, 16)) == 2
    assert len(passes(frames.to("meta"), 16)) == 1


def test_failed_videos_are_reported_and_not_replaced() -> None:
    batches = replace(BATCHES, failing=(12, 2, 9), shuffle=True)
    evaluation = evaluate(tiny_net(), batches, to_video=to_video)
    assert [failure.index for failure in evaluation.failures] == [2, 9, 12]
    assert evaluation.indices.tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 10, 11]
    assert (evaluation.num_videos, evaluation.num_decoded, evaluation.num_failed) == (13, 10, 3)
    assert "videos 10  views 3  failed 3" in evaluation.describe()


def test_videos_without_a_label_are_predicted_and_not_counted() -> None:
    everything = evaluate(tiny_net(), BATCHES, to_video=to_video)
    some = evaluate(tiny_net(), replace(BATCHES, unlabeled=(4, 7)), to_video=to_video)
    assert torch.equal(some.probabilities, everything.probabilities)
    assert some.num_decoded == 13
    assert some.num_labeled == 11
    kept = torch.tensor([index not in (4, 7) for index in range(13)])
    right = everything.probabilities.argmax(dim=1) == everything.labels
    assert some.video_accuracy == pytest.approx(right[kept].float().mean().item())
    none = evaluate(tiny_net(), replace(BATCHES, unlabeled=tuple(range(13))), to_video=to_video)
    assert math.isnan(none.video_accuracy)
    assert math.isnan(none.clip_accuracy)


def test_nothing_to_score_is_an_error() -> None:
    lost = FakeBatches(num_samples=3, failing=(0, 1, 2), shuffle=False)
    with pytest.raises(ValueError, match=r"none of 3 videos could be scored; the first: 0.mp4: br"):
        evaluate(tiny_net(), lost, to_video=to_video)
    with pytest.raises(ValueError, match=r"none of 0 videos could be scored"):
        evaluate(tiny_net(), FakeBatches(num_samples=0), to_video=to_video)
    with pytest.raises(ValueError, match=r"max_views: got 0; need at least 1"):
        evaluate(tiny_net(), BATCHES, to_video=to_video, max_views=0)


def test_a_repeated_sample_is_an_error() -> None:
    class Twice(FakeBatches):
        def epoch(self, epoch: int, skip_batches: int = 0):
            return iter([self.batch([0, 1]), self.batch([1, 2])])

    with pytest.raises(ValueError, match=r"samples \[1\] occur more than once; pass each"):
        evaluate(tiny_net(), Twice(), to_video=to_video)


def test_non_finite_scores_name_their_sample() -> None:
    torch.manual_seed(0)
    with pytest.raises(FloatingPointError, match=r"the scores of samples \[6\] are not finite"):
        evaluate(PoisonedNet(), replace(BATCHES, blank=(6,)), to_video=to_video)


class LabelSetBatches(FakeBatches):
    """Clip i has label i % 4; every third also label 0, every fifth none."""

    def target(self, indices: torch.Tensor) -> torch.Tensor:
        target = torch.eye(4)[indices % 4]
        target[indices % 3 == 0, 0] = 1.0
        return target * (indices % 5 > 0)[:, None]

    def batch(self, indices: list[int]) -> Batch:
        batch = super().batch(indices)
        return batch._replace(labels=self.target(batch.indices))


def test_several_labels_per_video() -> None:
    batches = LabelSetBatches(num_samples=13, batch_size=4, num_views=3, shuffle=False)
    objective = BinaryCrossEntropy()
    got = evaluate(tiny_net(), batches, to_video=to_video, objective=objective, precision="float32")
    with torch.no_grad():
        net = tiny_net().eval()
        logits = torch.stack([net(to_video(clip(n, num_views=3))) for n in range(13)])
    scores, target = logits.sigmoid().mean(dim=1), batches.target(torch.arange(13))
    torch.testing.assert_close(got.probabilities, scores, rtol=0, atol=1e-6)
    assert torch.equal(got.labels, target)
    assert got.num_labeled == 13
    # scikit-learn's own mean over the classes
    expected = average_precision_score(target.numpy(), got.probabilities.numpy(), average="macro")
    assert list(got.video_metrics) == ["mAP", "hit1"]
    assert got.video_metrics["mAP"] == pytest.approx(expected, abs=1e-12)
    hits = target.gather(1, scores.argmax(1, keepdim=True))
    assert got.video_metrics["hit1"] == pytest.approx(hits.mean().item())
    views = target.repeat_interleave(3, dim=0)
    hits = views.gather(1, logits.flatten(0, 1).argmax(1, keepdim=True))
    assert got.clip_metrics == {"hit1": pytest.approx(hits.mean().item())}
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.flatten(0, 1), views)
    assert got.loss == pytest.approx(loss.item(), rel=1e-5)
    assert got.describe().startswith(f"video mAP {100 * expected:.2f} %  hit1 ")


def test_the_mean_class_accuracy_is_beside_the_accuracy() -> None:
    got = evaluate(tiny_net(), BATCHES, to_video=to_video)
    right = got.probabilities.argmax(1) == got.labels
    by_class = [right[got.labels == k].float().mean().item() for k in range(4)]
    assert got.video_metrics["mean_class_accuracy"] == pytest.approx(sum(by_class) / 4)
    assert f"  mean class accuracy {25 * sum(by_class):.2f} %  clip accuracy" in got.describe()
