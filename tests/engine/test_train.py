import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.engine.fakes import (
    FakeBatches,
    PoisonedNet,
    about,
    norms,
    optim_settings,
    run_in,
    sgd,
    tiny_net,
    to_video,
)
from videoattn.engine.checkpoint import load, load_weights
from videoattn.engine.failures import TooManyFailuresError, read_failures
from videoattn.engine.plan import EpochPlan, Validation
from videoattn.engine.signals import StoppedError, StopSignals
from videoattn.engine.state import RunSettings
from videoattn.engine.step import NonFiniteError
from videoattn.engine.train import TrainResult, fit
from videoattn.types import Batch

VALIDATION = Validation(FakeBatches(num_samples=5))
KINDS = ("train", "validation")
TIMES = ("clips_per_second", "wait_share")


def train(
    model: nn.Module,
    run: RunSettings,
    batches: FakeBatches,
    *,
    num_epochs: int = 3,
    accumulate_steps: int = 1,
    validation: Validation | None = None,
    resume: bool = False,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
) -> TrainResult:
    return fit(
        model,
        make_optimizer(model),
        batches,
        to_video=to_video,
        settings=optim_settings(accumulate_steps=accumulate_steps),
        plan=EpochPlan(num_epochs),
        run=run,
        validation=validation,
        resume=load(run.folder / "checkpoint-last.pt") if resume else None,
    )


def curve(folder: Path) -> list[dict[str, float]]:
    """Returns the records of metrics.jsonl, without timings."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.1)


def test_eight_clips_can_be_memorized(tmp_path: Path) -> None:
    model = tiny_net()
    batches = FakeBatches(num_samples=8)
    validation = Validation(FakeBatches(num_samples=8, shuffle=False), every_epochs=25)
    fitted = train(model, run_in(tmp_path), batches, num_epochs=50, validation=validation)
    assert fitted.state.step_of_run == 100
    assert fitted.state.best_accuracy == 1.0
    assert fitted.evaluation is not None
    assert fitted.evaluation.clip_accuracy == 1.0
    last = [line for line in curve(tmp_path) if line["kind"] == "train"][-1]
    assert last["accuracy"] == 1.0
    assert last["loss"] < 0.2


def test_the_same_seed_gives_the_same_curve(tmp_path: Path) -> None:
    curves = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = replace(run_in(tmp_path / name), seed=seed)
        train(tiny_net(dropout=0.5), run, FakeBatches())
        curves.append(curve(tmp_path / name))
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


@pytest.mark.parametrize(("stop_at", "accumulate_steps"), [((2, 0), 1), ((1, 3), 1), ((1, 3), 2)])
@pytest.mark.parametrize("make_optimizer", [sgd, adamw])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path,
    stop_at: tuple[int, int],
    accumulate_steps: int,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
) -> None:
    """Bit for bit, after an epoch and inside one: weights, optimizer, log, best weights."""
    whole, halved = (
        run_in(tmp_path / name, log_every_steps=3, save_every_steps=2) for name in ("a", "b")
    )
    settings = {"accumulate_steps": accumulate_steps}
    batches = FakeBatches(num_samples=19)

    def go(
        run: RunSettings, batches: FakeBatches, *, seed: int, resume: bool = False
    ) -> TrainResult:
        return train(
            tiny_net(dropout=0.3, seed=seed).to(memory_format=torch.channels_last_3d),
            run,
            batches,
            validation=VALIDATION,
            make_optimizer=make_optimizer,
            resume=resume,
            **settings,
        )

    expected = go(whole, batches, seed=0)
    with pytest.raises(KeyboardInterrupt):
        go(halved, replace(batches, stop_at=stop_at), seed=0)
    resumed = go(halved, batches, seed=1, resume=True)
    assert resumed.state.step_of_run == expected.state.step_of_run
    assert resumed.state.best_accuracy == expected.state.best_accuracy
    assert curve(whole.folder) == curve(halved.folder)
    ours, theirs = (load(run.folder / "checkpoint-last.pt") for run in (halved, whole))
    assert_same(ours, theirs)
    states = [load_weights(run.folder / "best.safetensors")[0] for run in (halved, whole)]
    assert_same(states[0], states[1])


@dataclass
class SignaledBatches(FakeBatches):
    """Sends a signal to this process before a batch, as a cluster manager does."""

    signal_at: tuple[int, int] = (0, 0)  # (epoch, batch)
    stop: StopSignals | None = None

    def epoch(self, epoch: int, skip_batches: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(super().epoch(epoch, skip_batches), start=skip_batches):
            if (epoch, number) == self.signal_at and self.stop is not None:
                os.kill(os.getpid(), signal.SIGUSR1)
                while self.stop.received is None:
                    time.sleep(0.001)
            yield batch


@pytest.mark.parametrize(
    ("signal_at", "message", "step"),
    [
        ((1, 1), r"^stopped by a signal after step 7$", 7),  # in the second epoch
        ((0, 4), r"^stopped by a signal after step 5$", 5),  # the last step of an epoch
    ],
)
def test_a_signal_completes_the_step_and_writes_a_checkpoint(
    tmp_path: Path, signal_at: tuple[int, int], message: str, step: int
) -> None:
    """The resumed run is the uninterrupted one, bit for bit."""
    batches = FakeBatches(num_samples=19)
    whole, halved = (run_in(tmp_path / name, log_every_steps=3) for name in ("a", "b"))
    train(tiny_net(dropout=0.3), whole, batches, validation=VALIDATION)
    signaled = SignaledBatches(num_samples=19, signal_at=signal_at, stop=halved.stop)
    with halved.stop, pytest.raises(StoppedError, match=message):
        train(tiny_net(dropout=0.3), halved, signaled, validation=VALIDATION)
    halved = replace(halved, stop=StopSignals())
    progress = load(halved.folder / "checkpoint-last.pt")["progress"]
    assert progress["epoch"] * 5 + progress["step"] == step  # type: ignore[operator]
    train(tiny_net(seed=1, dropout=0.3), halved, batches, validation=VALIDATION, resume=True)
    assert curve(whole.folder) == curve(halved.folder)
    assert_same(*(load(run.folder / "checkpoint-last.pt") for run in (halved, whole)))


def test_a_signal_ends_a_validation(tmp_path: Path) -> None:
    """The checkpoint from before the validation is complete, and the validation is repeated."""
    whole, halved = (run_in(tmp_path / name) for name in ("a", "b"))
    train(tiny_net(), whole, FakeBatches(), num_epochs=1, validation=VALIDATION)
    signaled = Validation(SignaledBatches(num_samples=5, signal_at=(0, 1), stop=halved.stop))
    with halved.stop, pytest.raises(StoppedError, match="signal during a validation"):
        train(tiny_net(), halved, FakeBatches(), num_epochs=1, validation=signaled)
    halved = replace(halved, stop=StopSignals())
    assert load(halved.folder / "checkpoint-last.pt")["progress"]["step"] == 2
    train(tiny_net(seed=1), halved, FakeBatches(), num_epochs=1, validation=VALIDATION, resume=True)
    assert curve(whole.folder) == curve(halved.folder)


@pytest.mark.parametrize(("every", "last"), [(1, 4), (2, 8), (3, 10)])
def test_patience_ends_a_run_without_better_validations(
    tmp_path: Path, every: int, last: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate of 0, the first validation is the best one."""
    validation = replace(VALIDATION, every_epochs=every, patience=3)

    def go(patience: int, *, resume: bool = False) -> TrainResult:
        model = tiny_net()
        return fit(
            model,
            sgd(model),
            FakeBatches(),
            to_video=to_video,
            settings=optim_settings(lr=0.0),
            plan=EpochPlan(10),
            run=run_in(tmp_path),
            validation=replace(validation, patience=patience),
            resume=load(tmp_path / "checkpoint-last.pt") if resume else None,
        )

    assert go(3).state.epoch == last
    assert go(3, resume=True).state.epoch == last
    expected = f"no better validation since epoch {every}: training ends"
    assert capsys.readouterr().err.count(expected) == 2 * (last < 10)
    assert go(4, resume=True).state.epoch == min(last + every, 10)


def test_an_epoch_ends_its_batches(tmp_path: Path) -> None:
    """A loader would stop its processes if its iterator were dropped before the end."""
    ended = []

    class Watched(FakeBatches):
        def epoch(self, epoch: int, skip_batches: int = 0) -> Iterator[Batch]:
            yield from super().epoch(epoch, skip_batches)
            ended.append(epoch)

    model = tiny_net()
    fit(
        model,
        sgd(model),
        Watched(),
        to_video=to_video,
        settings=optim_settings(),
        plan=EpochPlan(3),
        run=run_in(tmp_path),
    )
    assert ended == [0, 1, 2]


def test_auxiliary_losses_are_logged_by_name_and_resumed(tmp_path: Path) -> None:
    weights = {"wide": 0.5, "deep": 0.25}
    settings = replace(optim_settings(), auxiliary=norms, auxiliary_weights=weights)

    def go(folder: Path, batches: FakeBatches, *, resume: bool = False) -> None:
        model = tiny_net()
        run = run_in(folder, log_every_steps=3, save_every_steps=1)
        stored = load(folder / "checkpoint-last.pt") if resume else None
        fit(
            model, sgd(model), batches, to_video=to_video, settings=settings,
            plan=EpochPlan(3), run=run, resume=stored,
        )  # fmt: skip

    batches = FakeBatches(num_samples=19)
    go(tmp_path / "whole", batches)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "halved", replace(batches, stop_at=(1, 2)))
    go(tmp_path / "halved", batches, resume=True)
    lines = curve(tmp_path / "whole")
    assert lines == curve(tmp_path / "halved")
    assert len(lines) == 7
    for line in lines:
        total = 0.5 * line["wide"] + 0.25 * line["deep"]
        assert line["auxiliary_loss"] == pytest.approx(total, rel=1e-6)
    assert lines[-1]["wide"] < lines[0]["wide"]
    (events,) = (tmp_path / "whole/tensorboard").iterdir()
    for name in ("wide", "deep"):
        assert f"train/{name}".encode() in events.read_bytes()


def test_a_validation_that_fails_costs_no_training(tmp_path: Path) -> None:
    train(tiny_net(), run_in(tmp_path / "whole"), FakeBatches(), validation=VALIDATION)
    run = run_in(tmp_path / "halved")
    crash = Validation(FakeBatches(num_samples=5, stop_at=(0, 1)))
    with pytest.raises(KeyboardInterrupt):
        train(tiny_net(), run, FakeBatches(), validation=crash)
    train(tiny_net(seed=1), run, FakeBatches(), validation=VALIDATION, resume=True)
    assert curve(run.folder) == curve(tmp_path / "whole")


def assert_same(ours: object, theirs: object) -> None:
    """Compares nested values bit for bit."""
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict) and isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list) and isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    else:
        assert ours == theirs


def test_a_finished_run_can_be_extended(tmp_path: Path) -> None:
    run = replace(run_in(tmp_path), keep_epochs=2)
    train(tiny_net(), run, FakeBatches(), num_epochs=1)
    assert train(tiny_net(), run, FakeBatches(), num_epochs=1, resume=True).state.step_of_run == 2
    assert train(tiny_net(), run, FakeBatches(), num_epochs=3, resume=True).state.step_of_run == 6
    assert [line["step"] for line in curve(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "checkpoint-epoch-0002.pt").exists()
    assert not (tmp_path / "checkpoint-epoch-0003.pt").exists()


def test_other_batches_cannot_resume_inside_an_epoch(tmp_path: Path) -> None:
    run = run_in(tmp_path, save_every_steps=1)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_net(), run, FakeBatches(num_samples=12, stop_at=(0, 1)))
    with pytest.raises(ValueError, match=r"inside an epoch of 3 steps, but an epoch now has 2; re"):
        train(tiny_net(), run, FakeBatches(num_samples=8), resume=True)


def test_a_checkpoint_of_another_model_does_not_resume(tmp_path: Path) -> None:
    train(tiny_net(), run_in(tmp_path), FakeBatches(), num_epochs=1)
    with pytest.raises(ValueError, match=r"fc.weight is \(4, 8\), the model's is \(6, 8\)"):
        train(tiny_net(num_classes=6), run_in(tmp_path), FakeBatches(), resume=True)


def test_a_run_writes_its_files(tmp_path: Path) -> None:
    validation = Validation(FakeBatches(num_samples=5, num_views=2, failing=(2,)))
    train(tiny_net(), run_in(tmp_path), FakeBatches(), num_epochs=2, validation=validation)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.safetensors",
        "checkpoint-last.pt",
        "metrics.jsonl",
        "tensorboard",
    ]
    _, known = load_weights(tmp_path / "best.safetensors")
    assert known == about()
    lines = [line for line in curve(tmp_path) if line["kind"] == "validation"]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [(line["videos"], line["views"], line["failed"]) for line in lines] == [(4, 2, 1)] * 2


def test_a_non_finite_loss_names_epoch_step_and_sample(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(NonFiniteError, match=r"epoch 1, step \d: the loss is not finite; sam.* 6"):
        train(PoisonedNet(), run_in(tmp_path), FakeBatches(blank=(6,)))


def test_skipped_samples_are_listed_once_and_counted(tmp_path: Path) -> None:
    batches = FakeBatches(num_samples=8, failing=(3, 6))
    train(tiny_net(), replace(run_in(tmp_path), max_failures=2), batches)
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted(line["index"] for line in skipped) == [3, 6]
    assert skipped[0]["reason"] == "broken"
    last = curve(tmp_path)[-1]
    assert (last["seen"], last["skipped"], last["failed"]) == (18, 6, 2)


def test_samples_skipped_after_the_last_checkpoint_are_listed_once(tmp_path: Path) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    failing = (order[1], order[8])  # in the first and the third of four steps
    batches = FakeBatches(num_samples=16, failing=failing)
    run = run_in(tmp_path, save_every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_net(), run, replace(batches, stop_at=(0, 3)), num_epochs=1)
    assert [failure.index for failure in read_failures(tmp_path / "skipped.jsonl")] == [*failing]
    fitted = train(tiny_net(), run, batches, num_epochs=1, resume=True)
    assert [failure.index for failure in read_failures(tmp_path / "skipped.jsonl")] == [*failing]
    assert (fitted.state.num_seen, fitted.state.num_skipped) == (14, 2)
    assert fitted.state.failed == sorted(failing)


def test_a_run_stops_after_too_many_failures(tmp_path: Path) -> None:
    batches = FakeBatches(num_samples=8, failing=(1, 3, 6))
    run = replace(run_in(tmp_path), max_failures=2)
    with pytest.raises(
        TooManyFailuresError,
        match=r"3 videos could not be decoded; at most 2 may fail; see",
    ):
        train(tiny_net(), run, batches)


def test_a_pipe_gets_whole_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tiny_net(), run_in(tmp_path), FakeBatches(), num_epochs=2)
    out, err = capfd.readouterr()
    assert not out
    assert "\r" not in err
    assert "\x1b" not in err
    first, second = err.splitlines()
    assert first.startswith("epoch 1/2  step 2/2  loss 1.")
    for word in ("accuracy", "clips/s", "data", "left 0:00:0"):
        assert word in second
    assert "skipped" not in second


def test_the_progress_line_counts_skipped_samples(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tiny_net(), run_in(tmp_path), FakeBatches(failing=(2, 5)), num_epochs=2)
    first, second = capfd.readouterr().err.splitlines()
    assert " %  skipped 2  " in first
    assert " %  skipped 4  " in second


def test_nothing_to_train_on_and_batches_that_end_early(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is nothing to train on: an epoch has 0 batches"):
        train(tiny_net(), run_in(tmp_path), FakeBatches(num_samples=0))
    with pytest.raises(ValueError, match=r"epoch 1: the batches ended after 2 of 3 steps; correct"):
        train(tiny_net(), run_in(tmp_path), Lying(num_samples=8))


class Lying(FakeBatches):
    def __len__(self) -> int:
        return 2 + (self.num_samples == 8)

    def epoch(self, epoch: int, skip_batches: int = 0):
        return iter([self.batch([0, 1]), self.batch([2])])


@dataclass(frozen=True)
class Margin:
    """An objective that is not cross entropy: the squared distance to one-hot targets."""

    metric: ClassVar[str] = "hit"
    progress: ClassVar[str] = "hit"

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return (logits - nn.functional.one_hot(target, logits.shape[1])).square().sum(1)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def metrics(self, scores: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"hit": scores.argmax(1) == target}

    def summary(self, scores: Tensor, target: Tensor) -> dict[str, float]:
        return {}


class Records:
    """A tracker that keeps its records."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.is_closed = False

    def write(self, kind: str, step: int, record: dict[str, float]) -> None:
        self.kinds.append(kind)

    def close(self) -> None:
        self.is_closed = True


def test_another_objective_and_tracker(tmp_path: Path) -> None:
    model, records = tiny_net(), Records()
    fitted = fit(
        model,
        sgd(model),
        FakeBatches(num_samples=8),
        to_video=to_video,
        settings=replace(optim_settings(), objective=Margin()),
        plan=EpochPlan(20),
        run=replace(run_in(tmp_path), trackers=(records,)),
        validation=Validation(FakeBatches(num_samples=8), every_epochs=10, objective=Margin()),
    )
    assert fitted.evaluation is not None
    assert fitted.evaluation.video_metrics["hit"] == fitted.state.best_accuracy > 0.5
    assert fitted.evaluation.describe().startswith("video hit ")
    train, validation = ([x for x in curve(tmp_path) if x["kind"] == kind] for kind in KINDS)
    assert train[-1]["loss"] < train[0]["loss"]
    assert {"hit"} < set(train[0])
    assert {"video_hit", "clip_hit"} < set(validation[0])
    assert records.kinds.count("train") == 40
    assert records.kinds.count("validation") == 2
    assert records.is_closed
