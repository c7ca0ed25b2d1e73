"""compile, ema and sync_norm from a recipe."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.data.conftest import make_clip as make_clip
from tests.recipe.test_views import recipe as recipe
from videoattn.engine import checkpoint
from videoattn.engine.parallel import Parallel
from videoattn.recipe import run
from videoattn.recipe.experiment import assemble, train
from videoattn.recipe.load import load

ONE_EPOCH = ["name=x", "train.num_epochs=1"]


def test_the_average_is_what_predictions_use(recipe: Path, tmp_path: Path) -> None:
    result = train(recipe, *ONE_EPOCH, "train.ema=0.5", folder=tmp_path / "x")
    assert result.evaluation is not None
    stored = checkpoint.load(tmp_path / "x/checkpoint-last.pt")
    predictor = run.load(tmp_path / "x")
    name = next(name for name in stored["ema"] if name.endswith("fc.weight"))
    assert torch.equal(predictor.model.state_dict()[name], stored["ema"][name])
    assert not torch.equal(stored["model"][name], stored["ema"][name])
    with pytest.raises(
        ValueError, match=r"was trained with another config: train\.ema was 0\.5, is"
    ):
        train(recipe, *ONE_EPOCH, "train.ema=0.6", folder=tmp_path / "x", resume=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.ema=1"], r"^train\.ema: got 1\.0; need a decay above 0 and below 1$"),
        (["train.ema=0.9", "train.precise_norm_clips=4"], r"^train\.ema: averages batch-norm"),
        (["train.compile=yes"], r"train\.compile"),
        (
            ["train.compile=on"],
            r"^train\.compile: got on, which needs a C\+\+ compiler, and absent",
        ),
    ],
)
def test_wrong_values(
    recipe: Path, tmp_path: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "absent")
    with pytest.raises(ValueError, match=message):
        train(recipe, *ONE_EPOCH, *words, folder=tmp_path / "x")


def test_synchronized_norms_need_gpus(recipe: Path) -> None:
    config = load(recipe, [*ONE_EPOCH, "train.sync_norm=true"])
    assert assemble(config, Parallel()).config.train.sync_norm  # no effect on one process
    with pytest.raises(
        ValueError, match=r"^train\.sync_norm: torch synchronizes batch norms on GPUs only; remove"
    ):
        assemble(config, replace(Parallel(), world_size=2))
    config = load(recipe, [*ONE_EPOCH, "train.sync_norm=true", "data.on_error=skip"])
    with pytest.raises(
        ValueError, match=r"^train\.sync_norm: skipped videos would block it; use data.on_error="
    ):
        assemble(config, replace(Parallel(), world_size=2))


def test_runs_stored_without_these_keys_keep_the_defaults(recipe: Path) -> None:
    train_config = load(recipe, ONE_EPOCH).train
    assert (train_config.compile, train_config.ema, train_config.sync_norm) == ("off", None, False)
