"""Views, from the recipe to the scores: several clips in training, whole frames in testing."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.data.conftest import MakeClip, make_clip
from videoattn.engine.evaluate import evaluate
from videoattn.engine.parallel import Parallel
from videoattn.engine.precise import batch_norms
from videoattn.recipe.config import AugmentConfig, Config
from videoattn.recipe.data import make_loader, make_samples, make_to_video
from videoattn.recipe.load import load
from videoattn.recipe.model import make_model
from videoattn.recipe.objective import make_mix
from videoattn.recipe.training import make_precise_bn

__all__ = ["make_clip"]  # a fixture

RECIPE = """
name: views
clip: {num_frames: 3, frame_stride: 2, height: 32, width: 32}
augment: {area: [0.5, 1.0]}
test: {short_side: 32}
model: {name: i3d_r18, options: {width: 8}}
train: {batch_size: 4}
"""


@pytest.fixture
def recipe(make_clip: MakeClip, tmp_path: Path) -> Path:
    """Seven clips of two classes and five sizes, in both splits."""
    for split in ("train", "test"):
        for i in range(7):
            size = [(32, 48), (48, 32), (40, 40), (36, 64), (32, 48), (64, 40), (32, 48)][i]
            make_clip(f"{split}/{'run' if i % 2 else 'jump'}/{i}.mp4", 10 + i, size=size)
    path = tmp_path / "recipe.yaml"
    path.write_text(f"data: {{root: {tmp_path}, num_workers: 0}}" + RECIPE)
    return path


def score(config: Config, model: nn.Module) -> torch.Tensor:
    cpu = torch.device("cpu")
    evaluation = evaluate(
        model,
        make_loader(config, "test", Parallel()),
        to_video=make_to_video(config.clip, cpu),
        max_views=config.test.batch_size,
        precision="float32",  # as what it is compared with, whatever the machine has
    )
    assert (evaluation.num_decoded, evaluation.num_failed) == (7, 0)
    assert evaluation.num_views == config.test.num_clips * max(config.test.num_crops, 1)
    return evaluation.probabilities


def test_whole_frames_of_all_sizes_are_scored_one_by_one(recipe: Path) -> None:
    config = load(recipe, ["test.num_crops=0", "test.num_clips=2", "test.batch_size=16"])
    torch.manual_seed(0)
    model = make_model(config.model, 2).eval()
    batches = list(make_loader(config, "test", Parallel()).epoch(0))
    sizes = [tuple(batch.frames.shape) for batch in batches]
    assert sizes[0] == (1, 2, 3, 3, 32, 48)
    assert sizes[3] == (1, 2, 3, 3, 32, 48)  # 6.mp4, the last of jump
    assert {shape[-2:] for shape in sizes} == {(32, 48), (48, 32), (32, 32), (32, 57), (51, 32)}
    to_video = make_to_video(config.clip, torch.device("cpu"))
    with torch.no_grad():
        want = [model(to_video(batch.frames[0])).softmax(1).mean(0) for batch in batches]
    torch.testing.assert_close(score(config, model), torch.stack(want))


def test_ten_crops_are_scored(recipe: Path) -> None:
    """Mirrored videos have the same scores: their ten crops are the same ten."""
    config = load(recipe, ["test.num_crops=10", "test.num_clips=1"])
    torch.manual_seed(0)
    model = make_model(config.model, 2).eval()

    class Mirrored(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = model(x.flip(-1))
            return out

    torch.testing.assert_close(score(config, model), score(config, Mirrored()))


def test_several_clips_of_each_video_fill_a_batch(recipe: Path) -> None:
    config = load(recipe, ["train.num_clips=2"])
    loader = make_loader(config, "train", Parallel())
    batches = list(loader.epoch(0))
    assert [batch.frames.shape[:2] for batch in batches] == [(2, 2), (2, 2), (2, 2), (1, 2)]
    once = make_loader(load(recipe), "train", Parallel())
    assert len(once) == 2
    samples = make_samples(config.data, "train")
    for batch in batches:
        assert batch.labels.tolist() == [samples.label(i) for i in batch.indices.tolist()]
    seen = torch.cat([batch.indices for batch in batches])
    assert sorted(seen.tolist()) == list(range(7))


def test_precise_norms_use_training_videos_with_test_views(recipe: Path) -> None:
    """Both splits hold the same clips, so their views are equal, in another order."""
    config = load(recipe, ["train.precise_norm_clips=5", "test.num_clips=2", "test.batch_size=4"])
    model, samples = make_model(config.model, 2), make_samples(config.data, "train")
    precise = make_precise_bn(config, model, Parallel(), samples)
    assert precise is not None
    assert precise.num_clips == 5
    shuffled = list(precise.batches.epoch(0))
    in_order = list(make_loader(config, "test", Parallel()).epoch(0))
    views = [torch.cat([batch.frames for batch in batches]) for batches in (shuffled, in_order)]
    order = torch.cat([batch.indices for batch in shuffled])
    assert order.tolist() != sorted(order.tolist())
    assert torch.equal(views[0], views[1][order])
    assert make_precise_bn(load(recipe), model, Parallel(), samples) is None


def test_precise_norms_stop_within_an_epoch_and_begin_it_again(recipe: Path) -> None:
    """A process that loads ahead gives the same clips, whatever it had loaded before."""
    words = ["train.precise_norm_clips=3", "test.batch_size=2"]
    found = []
    for more in (["data.num_workers=0"], ["data.num_workers=1"]):
        config = load(recipe, words + more)
        torch.manual_seed(0)
        model = make_model(config.model, 2)
        precise = make_precise_bn(config, model, Parallel(), make_samples(config.data, "train"))
        assert precise is not None
        for _ in range(2):
            precise.recompute(
                model.train(),
                to_video=make_to_video(config.clip, torch.device("cpu")),
                precision="float32",
                parallel=Parallel(),
            )
            found.append(batch_norms(model)[0].running_mean.clone())
    assert all(torch.equal(one, found[0]) for one in found)
    assert not torch.equal(found[0], torch.zeros_like(found[0]))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.precise_norm_clips=-1", "got -1; need a number of clips, such as 1000, or 0 for n"),
        (
            "test.num_crops=0",
            r"whole frames \(test.num_crops=0\) differ in size; use 1 crop",
        ),
        ("model.name=x", "x has no batch norms; remove it"),
    ],
)
def test_invalid_precise_norms_are_rejected(recipe: Path, word: str, message: str) -> None:
    config = load(recipe, ["train.precise_norm_clips=5", word])
    model = torch.nn.Linear(1, 1) if "model" in word else make_model(load(recipe).model, 2)
    samples = make_samples(config.data, "train")
    with pytest.raises(ValueError, match=rf"^train\.precise_norm_clips: {message}"):
        make_precise_bn(config, model, Parallel(), samples)


@pytest.mark.parametrize("num_clips", [1, 2, 3])
def test_a_clip_is_mixed_with_one_of_another_video(num_clips: int) -> None:
    """Video v has the value v in all its clips, and label v, so that both show the mixture."""
    num_videos = 4
    labels = torch.arange(num_videos).repeat_interleave(num_clips)
    video = labels.float().view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 8, 8).contiguous()
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mix = make_mix(AugmentConfig(**options), num_videos, num_clips)
        assert mix is not None
        for seed in range(10):
            torch.manual_seed(seed)
            mixed, target = mix(video, labels)
            assert torch.allclose(target.sum(1), torch.ones(len(labels)))
            partners = target.clone()
            partners[torch.arange(len(labels)), labels] = 0
            assert ((partners > 0).sum(1) <= 1).all()
            if partners.any():
                partner = partners.argmax(1).view(num_videos, num_clips)
                assert (partner[:, -1] == (torch.arange(num_videos) - 1) % num_videos).all()
                assert (partner != torch.arange(num_videos)[:, None]).all()
            mean = (target * torch.arange(num_videos)).sum(1)
            torch.testing.assert_close(mixed.mean(dim=(1, 2, 3, 4)), mean, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.num_clips=3"], "^train.batch_size: got 4; need a multiple of train.num_clips=3"),
        (["train.num_clips=0"], r"num_clips=0 \(1 or more\), the clips of each video$"),
        (["augment.flip_labels={run: walk}"], "^augment.flip_labels: 'walk' is not a class"),
        (
            ["augment.crop=multi_scale", "augment.scales=[2.0]"],
            r"^augment.scales: got \(2.0,\); need one",
        ),
        (
            ["augment.rand_augment_magnitude=40"],
            "^augment.rand_augment_magnitude: got 40; need 0 to 30$",
        ),
    ],
)
def test_wrong_recipes(recipe: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(load(recipe, words), "train", Parallel())


def test_ten_crops_are_refused_where_a_mirror_swaps_classes(recipe: Path) -> None:
    config = load(recipe, ["test.num_crops=10", "augment.flip_labels={run: jump}"])
    with pytest.raises(ValueError, match=r"^test.num_crops: five of ten crops are mirrored, and"):
        make_loader(config, "test", Parallel())
