"""Networks that are trained in stages: each stage changes its own part only."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.engine.fakes import NUM_CLASSES, FakeBatches, optim_settings, run_in, sgd, to_video
from tests.engine.test_train import adamw, assert_same, curve
from videoattn.attention.blocks.hard_crop import HardCrop
from videoattn.cli.report import summarize
from videoattn.engine.checkpoint import load, load_weights
from videoattn.engine.evaluate import evaluate
from videoattn.engine.plan import (
    EpochPlan,
    Validation,
    num_stages,
    restart_schedule,
    split_epochs,
    stage_of,
)
from videoattn.engine.schedule import cosine
from videoattn.engine.state import RunSettings
from videoattn.engine.train import TrainResult, fit
from videoattn.types import ModelInfo

PARTS = ("global_branch", "local_branch", "fusion")
VALIDATION = Validation(FakeBatches(num_samples=5, num_views=2, shuffle=False))


class Net(nn.Module):
    """A convolution with a norm, dropout, and a classifier: (N, 3, T, H, W) -> (N, K)."""

    info = ModelInfo("fc")

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.stage(x).amax(dim=(2, 3, 4))))


def cropping(seed: int = 0, keep: str = "last") -> HardCrop:
    torch.manual_seed(seed)
    return HardCrop(Net(), after="stage", pool="backbone", keep=keep)


def go(
    run: RunSettings,
    batches: FakeBatches,
    *,
    num_epochs: int = 3,
    stage_epochs: tuple[int, ...] = (),
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adamw,
    seed: int = 0,
    resume: bool = False,
    keep: str = "last",
) -> TrainResult:
    model = cropping(seed, keep)
    return fit(
        model,
        make_optimizer(model),
        batches,
        to_video=to_video,
        settings=optim_settings(),
        plan=EpochPlan(num_epochs, stage_epochs),
        run=run,
        validation=VALIDATION,
        resume=load(run.folder / "checkpoint-last.pt") if resume else None,
    )


@pytest.mark.parametrize("make_optimizer", [sgd, adamw])
def test_each_stage_changes_only_its_modules(
    tmp_path: Path, make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    run = replace(run_in(tmp_path), keep_epochs=1)
    go(run, FakeBatches(num_samples=16), num_epochs=6, make_optimizer=make_optimizer)
    states = [cropping().state_dict()]
    states += [load(tmp_path / f"checkpoint-epoch-000{n}.pt")["model"] for n in range(1, 7)]
    for epoch in range(6):
        before, after = states[epoch], states[epoch + 1]
        for name, value in after.items():
            moved = not torch.equal(value, before[name])
            assert moved == name.startswith(PARTS[epoch // 2]), (epoch, name)


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("stop_at", [(1, 0), (2, 0), (2, 3), (4, 1)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, stop_at: tuple[int, int], keep: str
) -> None:
    """Bit for bit, whether it stops inside a stage or between two."""
    whole, halved = (run_in(tmp_path / name, save_every_steps=2) for name in ("a", "b"))
    batches = FakeBatches(num_samples=19)
    settings = {"num_epochs": 5, "stage_epochs": (2, 2, 1), "keep": keep}
    expected = go(whole, batches, **settings)
    with pytest.raises(KeyboardInterrupt):
        go(halved, replace(batches, stop_at=stop_at), **settings)
    resumed = go(halved, batches, seed=1, resume=True, **settings)
    assert resumed.state.step_of_run == expected.state.step_of_run == 25
    assert resumed.state.best_accuracy == expected.state.best_accuracy
    assert curve(whole.folder) == curve(halved.folder)
    assert_same(*(load(run.folder / "checkpoint-last.pt") for run in (halved, whole)))
    assert_same(*(load_weights(run.folder / "best.safetensors")[0] for run in (halved, whole)))


def test_logs_name_the_stage_and_only_the_last_one_has_a_best_epoch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fitted = go(run_in(tmp_path), FakeBatches(), num_epochs=4, stage_epochs=(1, 2, 1))
    lines = curve(tmp_path)
    assert [line["stage"] for line in lines if line["kind"] == "train"] == [1, 1, 2, 2, 2, 2, 3, 3]
    validated = [line for line in lines if line["kind"] == "validation"]
    for line in validated:
        assert line["video_accuracy_fused"] == line["video_accuracy"]
        assert {"video_accuracy_global", "video_accuracy_local"} <= set(line)
    assert fitted.state.best_epoch == 4  # the fusion is untrained in the stages before
    assert fitted.evaluation is not None
    assert list(fitted.evaluation.parts) == ["global", "local", "fused"]
    printed = [line for line in capfd.readouterr().err.splitlines() if line.startswith("stage")]
    assert printed == [
        "stage 1/3: epochs 1 to 1", "stage 2/3: epochs 2 to 3", "stage 3/3: epochs 4 to 4",
    ]  # fmt: skip


def test_the_best_epoch_of_a_stage_is_handed_to_the_next(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As AG-CNN's paper elects the model of each stage on its validation set."""
    run = replace(run_in(tmp_path), keep_epochs=1)
    settings = {"num_epochs": 9, "stage_epochs": (4, 4, 1), "keep": "best"}
    fitted = go(run, FakeBatches(num_samples=16), make_optimizer=sgd, seed=1, **settings)
    states = [load(tmp_path / f"checkpoint-epoch-000{n}.pt")["model"] for n in range(1, 10)]
    validated = [line for line in curve(tmp_path) if line["kind"] == "validation"]
    printed = capfd.readouterr().err
    not_the_last = 0
    for stage, (first, part) in enumerate(((0, "global"), (4, "local"))):
        scores = [line[f"video_accuracy_{part}"] for line in validated[first : first + 4]]
        best = first + scores.index(max(scores))
        not_the_last += best < first + 3
        own = [name for name in states[0] if name.startswith(PARTS[stage])]
        assert all(torch.equal(states[first + 3][name], states[best][name]) for name in own)
        assert all(torch.equal(states[8][name], states[best][name]) for name in own)
        assert f"stage {stage + 1}/3: epoch {best + 1} was the best; it is kept" in printed
        assert (tmp_path / f"best-stage-{stage + 1}.safetensors").exists()
    assert not_the_last  # otherwise the last epoch is handed over, as with keep="last"
    assert fitted.state.best_epoch == 9


def test_a_stage_is_validated_at_its_end_if_its_best_epoch_is_kept(tmp_path: Path) -> None:
    run, batches = run_in(tmp_path), FakeBatches()
    model = cropping(keep="best")
    fit(
        model, sgd(model), batches, to_video=to_video, settings=optim_settings(),
        plan=EpochPlan(6, (3, 2, 1)), run=run, validation=replace(VALIDATION, every_epochs=9),
    )  # fmt: skip
    epochs = [line["epoch"] for line in curve(tmp_path) if line["kind"] == "validation"]
    assert epochs == [3, 5, 6]


def test_each_part_is_scored_as_a_network_of_its_own() -> None:
    model = cropping().eval()
    nn.init.normal_(model.fusion.weight)
    batches = FakeBatches(num_samples=13, num_views=3, failing=(4,), unlabeled=(7,), shuffle=False)
    ours = evaluate(model, batches, to_video=to_video, max_views=5, precision="float32")
    assert list(ours.parts) == ["global", "local", "fused"]

    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model.parts(x)["local"]

    for name, alone in (("global", model.global_branch), ("local", Local())):
        part = ours.parts[name]
        expected = evaluate(alone, batches, to_video=to_video, precision="float32")
        torch.testing.assert_close(part.probabilities, expected.probabilities, rtol=0, atol=1e-6)
        assert part.loss == pytest.approx(expected.loss, rel=1e-5)
        assert summarize(replace(part, loss=0.0)) == summarize(replace(expected, loss=0.0))
    assert torch.equal(ours.parts["fused"].probabilities, ours.probabilities)
    report = summarize(ours)
    assert json.loads(json.dumps(report)) == report
    assert isinstance(report["parts"], dict)
    for name, part in ours.parts.items():
        assert report["parts"][name]["video_accuracy"] == part.video_accuracy
        assert f"{name} {100 * part.video_accuracy:.2f} %" in ours.describe()
    plain = evaluate(Net(), batches, to_video=to_video)
    assert not plain.parts
    assert "parts" not in summarize(plain)
    assert "(" not in plain.describe()


def test_epochs_are_split_among_stages() -> None:
    assert split_epochs(9, 3) == (3, 3, 3)
    assert split_epochs(11, 3) == (4, 4, 3)
    assert split_epochs(7, 1) == (7,)
    assert split_epochs(10, 3, (6, 3, 1)) == (6, 3, 1)
    assert [stage_of(epoch, (2, 1, 2)) for epoch in range(7)] == [0, 0, 1, 2, 2, 2, 2]
    assert (num_stages(cropping()), num_stages(Net())) == (3, 1)


def test_the_learning_rate_restarts() -> None:
    rate = partial(cosine, base=1.0, warmup_steps=1)
    lr_at = restart_schedule(lambda num_steps: partial(rate, num_steps=num_steps), (4, 6))
    expected = [rate(step, num_steps=4) for step in range(4)]
    expected += [rate(step, num_steps=6) for step in range(6)]
    assert [lr_at(step) for step in range(10)] == expected
    one = restart_schedule(lambda num_steps: partial(rate, num_steps=num_steps), (10,))
    assert [one(step) for step in range(10)] == [rate(step, num_steps=10) for step in range(10)]


def test_epochs_that_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_epochs: got 2; need at least 3, one for each stage"):
        go(run_in(tmp_path), FakeBatches(), num_epochs=2)
    for given in ((1, 2), (2, 2, 0), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"stage_epochs: .*; need one number, 1 or more, for"):
            split_epochs(4, 3, given)
    with pytest.raises(
        ValueError, match=r"stage_epochs: got \[2, 2\]; this network is not trained in stages"
    ):
        split_epochs(4, 1, (2, 2))
