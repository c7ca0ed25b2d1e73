from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.engine.fakes import FakeBatches, PoisonedNet, optim_settings, sgd, tiny_net, to_video
from videoattn.engine.objective import CrossEntropy
from videoattn.engine.parallel import Parallel
from videoattn.engine.plan import EpochPlan
from videoattn.engine.step import NonFiniteError, OptimSettings, StepContext, StepResult, update


def context(*, step: int = 0, seed: int = 0) -> StepContext:
    return StepContext(seed, 0, step, step, lambda index: f"clips/{index}.mp4")


def take_step(
    model: nn.Module, batches: FakeBatches, recipe: OptimSettings, *, at: StepContext | None = None
) -> StepResult:
    return update(
        model,
        sgd(model),
        list(batches.epoch(0)),
        to_video=to_video,
        settings=recipe,
        context=at or context(),
        parallel=Parallel(),
    )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("num_samples", [12, 10])
def test_accumulation_equals_the_large_batch(num_samples: int) -> None:
    """k batches of b clips equal one of k * b, also if the last batch is smaller."""
    moved = []
    for batch_size in (12, 4, 3):
        model = tiny_net().double()
        batches = FakeBatches(num_samples=num_samples, batch_size=batch_size)
        update(
            model,
            sgd(model),
            list(batches.epoch(0)),
            to_video=lambda frames: to_video(frames).double(),
            settings=replace(optim_settings(lr=1.0), objective=CrossEntropy(0.1)),
            context=context(),
            parallel=Parallel(),
        )
        moved.append(weights(model))
    # The loss itself is computed in float32.
    torch.testing.assert_close(moved[1], moved[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(moved[2], moved[0], rtol=0, atol=1e-7)


def test_a_step_equals_a_plain_loop() -> None:
    """One batch with two views per sample."""
    ours, plain = tiny_net(), tiny_net()
    batches = FakeBatches(num_samples=4, num_views=2)
    result = take_step(ours, batches, replace(optim_settings(lr=0.5), clip_norm=0.01))
    (batch,) = batches.epoch(0)
    logits = plain(to_video(batch.frames.flatten(0, 1)))
    labels = batch.labels.repeat_interleave(2)
    loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
    torch.optim.SGD(plain.parameters(), lr=0.5).step()
    torch.testing.assert_close(weights(ours), weights(plain), rtol=0, atol=1e-7)
    assert result.num_clips == 8
    assert result.loss / 8 == pytest.approx(loss.item(), abs=1e-6)
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    assert result.correct == (logits.argmax(1) == labels).sum().item()


def test_mixed_clips_have_soft_targets() -> None:
    """Compared with a plain loop; a clip counts as the class with the larger share."""

    def mix(video: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        target = nn.functional.one_hot(labels, 4).float()
        return 0.7 * video + 0.3 * video.roll(1, 0), 0.7 * target + 0.3 * target.roll(1, 0)

    ours, plain = tiny_net(), tiny_net()
    batches = FakeBatches(num_samples=4)
    result = take_step(
        ours, batches, replace(optim_settings(lr=0.5), mix=mix, objective=CrossEntropy(0.1))
    )
    (batch,) = batches.epoch(0)
    video, target = mix(to_video(batch.frames.flatten(0, 1)), batch.labels)
    logits = plain(video)
    shares = 0.9 * target + 0.1 / 4
    loss = -(shares * logits.log_softmax(1)).sum(1).mean()
    loss.backward()
    torch.optim.SGD(plain.parameters(), lr=0.5).step()
    torch.testing.assert_close(weights(ours), weights(plain), rtol=0, atol=1e-7)
    assert result.correct == (logits.argmax(1) == batch.labels).sum().item()


def test_dropout_is_a_function_of_seed_and_step() -> None:
    def loss(at: StepContext) -> float:
        torch.rand(3)  # the state of the global generator must not matter
        return take_step(tiny_net(dropout=0.5), FakeBatches(), optim_settings(), at=at).loss

    assert loss(context(step=3)) == loss(context(step=3))
    assert loss(context(step=3)) != loss(context(step=4))
    assert loss(context(step=3)) != loss(context(step=3, seed=1))


def test_a_group_may_scale_the_rate() -> None:
    model = tiny_net()
    optimizer = torch.optim.SGD(
        [{"params": model.conv.parameters(), "lr_scale": 0.0}, {"params": model.fc.parameters()}],
        lr=1.0,
    )
    before = model.conv.weight.detach().clone()
    update(
        model,
        optimizer,
        list(FakeBatches().epoch(0)),
        to_video=to_video,
        settings=optim_settings(lr=0.5),
        context=context(),
        parallel=Parallel(),
    )
    assert torch.equal(model.conv.weight, before)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.5]


def test_failed_samples_leave_the_rest() -> None:
    some = FakeBatches(num_samples=4, batch_size=2, failing=(0, 1), shuffle=False)
    assert take_step(tiny_net(), some, optim_settings()).num_clips == 2
    model = tiny_net()
    none = FakeBatches(num_samples=2, failing=(0, 1))
    assert take_step(model, none, optim_settings()).num_clips == 0
    assert torch.equal(weights(model), weights(tiny_net()))


def norm_of_classifier(model: nn.Module) -> Mapping[str, Tensor]:
    assert isinstance(model.fc, nn.Linear)
    return {"norm": model.fc.weight.square().sum()}


def test_auxiliary_losses_are_weighted_and_added() -> None:
    moved = []
    for batch_size in (8, 4):
        model = tiny_net()
        recipe = replace(
            optim_settings(lr=0.1), auxiliary=norm_of_classifier, auxiliary_weights={"norm": 0.5}
        )
        expected = 0.5 * model.fc.weight.detach().square().sum().item()
        result = take_step(model, FakeBatches(batch_size=batch_size), recipe)
        assert result.auxiliary / 8 == pytest.approx(expected, rel=1e-5)
        assert result.auxiliary_losses == {"norm": pytest.approx(16 * expected, rel=1e-5)}
        moved.append(weights(model))
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=1e-6)
    without = tiny_net()
    take_step(without, FakeBatches(), optim_settings(lr=0.1))
    assert not torch.allclose(moved[0], weights(without))


def test_an_auxiliary_loss_without_a_weight_is_an_error() -> None:
    recipe = replace(
        optim_settings(), auxiliary=norm_of_classifier, auxiliary_weights={"nrom": 0.5}
    )
    with pytest.raises(
        ValueError, match=r"model has \['norm'\], but the weights are for \['nrom'\]; set"
    ):
        take_step(tiny_net(), FakeBatches(), recipe)


def test_an_auxiliary_loss_of_weight_0_is_only_reported() -> None:
    model, without = tiny_net(), tiny_net()
    recipe = replace(
        optim_settings(), auxiliary=norm_of_classifier, auxiliary_weights={"norm": 0.0}
    )
    result = take_step(model, FakeBatches(), recipe)
    assert result.auxiliary == 0
    assert result.auxiliary_losses["norm"] > 0
    take_step(without, FakeBatches(), optim_settings())
    assert torch.equal(weights(model), weights(without))


def test_a_non_finite_auxiliary_loss_is_named() -> None:
    def broken(model: nn.Module) -> Mapping[str, Tensor]:
        return {**norm_of_classifier(model), "broken": torch.tensor(float("nan"))}

    recipe = replace(
        optim_settings(), auxiliary=broken, auxiliary_weights={"norm": 1.0, "broken": 1.0}
    )
    with pytest.raises(NonFiniteError, match=r"step 1: the broken loss is not finite; samples 0"):
        take_step(tiny_net(), FakeBatches(shuffle=False), recipe)


def test_a_non_finite_loss_names_its_sample() -> None:
    torch.manual_seed(0)
    model = PoisonedNet()
    before = weights(model).clone()
    with pytest.raises(
        NonFiniteError,
        match=r"epoch 1, step 3: the loss is not finite; samples 5 \(clips/5.mp4\). The weights",
    ):
        take_step(model, FakeBatches(blank=(5,)), optim_settings(), at=context(step=2))
    assert torch.equal(weights(model), before)


def test_a_non_finite_gradient_is_found_before_the_step() -> None:
    torch.manual_seed(0)
    model = PoisonedNet(in_gradient=True)
    before = weights(model).clone()
    with pytest.raises(NonFiniteError, match=r"step 1: the gradient is not finite; samples 0 \(cl"):
        take_step(model, FakeBatches(shuffle=False), optim_settings())
    assert torch.equal(weights(model), before)


def test_a_sample_without_a_label_cannot_train() -> None:
    with pytest.raises(ValueError, match=r"sample 2 \(clips/2.mp4\) has no label; training needs"):
        take_step(tiny_net(), FakeBatches(unlabeled=(2,)), optim_settings())


def test_settings_out_of_range_are_named(tmp_path: Path) -> None:
    good = optim_settings()
    with pytest.raises(ValueError, match=r"num_epochs: got 0; need at least 1"):
        EpochPlan(0)
    with pytest.raises(ValueError, match=r"accumulate_steps: got -1; need at least 1"):
        replace(good, accumulate_steps=-1)
    with pytest.raises(ValueError, match=r"clip_norm: got 0.0; need more than 0; leave it out"):
        replace(good, clip_norm=0.0)
    with pytest.raises(ValueError, match=r"label_smoothing: got 1.0; need 0 to below 1"):
        CrossEntropy(label_smoothing=1.0)
