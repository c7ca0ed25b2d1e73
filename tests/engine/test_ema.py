"""The moving average of the weights: its formula, files, and resumed runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.attention.test_hygiene import build
from tests.engine.fakes import FakeBatches, TinyNet, optim_settings, run_in, sgd, to_video
from videoattn.engine.checkpoint import load, load_weights, read
from videoattn.engine.plan import EpochPlan, Validation
from videoattn.engine.precise import PreciseBatchNorm
from videoattn.engine.train import TrainResult, fit

DECAY = 0.6


class NormedNet(TinyNet):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(dropout=0.3)
        self.conv = nn.Sequential(self.conv, nn.BatchNorm3d(8))


def train(folder: Path, batches: FakeBatches, *, resume: bool = False) -> TrainResult:
    model = NormedNet()
    return fit(
        model,
        sgd(model),
        batches,
        to_video=to_video,
        settings=optim_settings(),
        plan=EpochPlan(2, ema_decay=DECAY),
        run=replace(run_in(folder, save_every_steps=1), keep_epochs=1),
        validation=Validation(FakeBatches(num_samples=5)),
        resume=load(folder / "checkpoint-last.pt") if resume else None,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, FakeBatches(num_samples=12))
    return folder


def test_the_average_follows_its_formula(tmp_path: Path) -> None:
    """The run stops before each step in turn: checkpoints hold the weights after the step."""
    states = []
    for epoch, batch in [(0, 1), (0, 2), (1, 0), (1, 1)]:
        with pytest.raises(KeyboardInterrupt):
            train(
                tmp_path,
                FakeBatches(num_samples=12, stop_at=(epoch, batch)),
                resume=bool(states),
            )
        states.append(load(tmp_path / "checkpoint-last.pt"))
    for name, first in states[0]["model"].items():
        average = first.double()
        for state in states[1:]:
            average = DECAY * average + (1 - DECAY) * state["model"][name].double()
        if first.is_floating_point():
            torch.testing.assert_close(states[-1]["ema"][name].double(), average)
    assert torch.equal(states[0]["ema"]["fc.weight"], states[0]["model"]["fc.weight"])


def test_the_average_is_validated_saved_and_loaded(whole: Path) -> None:
    last = load(whole / "checkpoint-last.pt")
    kept = [load(whole / f"checkpoint-epoch-000{epoch}.pt") for epoch in (1, 2)]
    best = kept[int(str(last["best"]["epoch"])) - 1]
    assert_same(load_weights(whole / "best.safetensors")[0], best["ema"])
    assert_same(read(whole)[1], last["ema"])
    assert not torch.equal(last["ema"]["fc.weight"], last["model"]["fc.weight"])
    assert set(last["ema"]) == set(last["model"])


@pytest.mark.parametrize("stop_at", [(0, 2), (1, 0), (1, 1)])
def test_a_resumed_average_is_the_same_bit_for_bit(
    whole: Path, tmp_path: Path, stop_at: tuple[int, int]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, FakeBatches(num_samples=12, stop_at=stop_at))
    train(tmp_path, FakeBatches(num_samples=12), resume=True)
    ours, theirs = (load(folder / "checkpoint-last.pt") for folder in (tmp_path, whole))
    assert_same(ours["ema"], theirs["ema"])
    assert_same(ours["model"], theirs["model"])
    assert ours["best"] == theirs["best"]


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_wrong_decays(decay: float) -> None:
    with pytest.raises(ValueError, match=r"^ema: got .*; need a decay above 0 and below 1$"):
        EpochPlan(1, ema_decay=decay)


def test_combinations_that_are_refused() -> None:
    precise = PreciseBatchNorm(FakeBatches(), 8)
    with pytest.raises(ValueError, match=r"^ema: averages batch-norm statistics, too; remove "):
        EpochPlan(1, precise_bn=precise, ema_decay=0.9)
    with pytest.raises(ValueError, match=r"^ema: this network is trained in stages; remove ema$"):
        EpochPlan(3, ema_decay=0.9).fitted_to(build("hard_crop", "i3d"))
