"""Trains on a few demo clips: the losses decrease, and the literal one collapses."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from videoattn.attention.blocks.pyramid import unit_rows
from videoattn.attention.systems import SYSTEMS
from videoattn.data.synthetic import write_demo_clips
from videoattn.engine.checkpoint import load
from videoattn.recipe.experiment import train
from videoattn.recipe.load import from_stored
from videoattn.recipe.model import make_model

RECIPE = Path(__file__).parents[2] / "configs/demo.yaml"
SMALL = (
    "data.num_workers=0", "clip.height=32", "clip.width=32", "test.short_side=32",
    "model.options.width=8", "model.attention.name=interaction", "train.precision=float32",
    "train.num_epochs=6", "train.batch_size=8", "train.schedule=cosine", "train.validate_every=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_demo_clips(root, num_train_per_class=3, num_test_per_class=1)
    return root


def trained(clips: Path, folder: Path, *overrides: str) -> list[dict[str, float]]:
    """Trains a network and returns the last record of each epoch."""
    train(RECIPE, *SMALL, f"data.root={clips}", *overrides, folder=folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return list({line["epoch"]: line for line in lines}.values())


def overlap(folder: Path) -> float:
    """Returns the mean cosine between rows of the fused map, over noise and moving bars."""
    payload = load(folder / "checkpoint-last.pt")
    model = make_model(from_stored(payload["config"]).model, 8)
    model.load_state_dict(payload["model"])
    captured: list[Tensor] = []
    pyramid = model.fc.block.pyramid
    fuse = pyramid.fuse

    def spied(scores: list[Tensor]) -> Tensor:
        captured.append(fuse(scores))
        return captured[-1]

    pyramid.fuse = spied
    with torch.no_grad():
        model.eval()(torch.randn(8, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0)))
    rows = unit_rows(captured[0])
    gram = rows @ rows.transpose(1, 2)
    d = gram.shape[1]
    return ((gram.sum((1, 2)) - d) / (d * (d - 1))).mean().item()


@pytest.mark.parametrize("system", ["interaction", "interaction_layer"])
def test_both_losses_decrease_in_the_log(clips: Path, tmp_path: Path, system: str) -> None:
    log = trained(clips, tmp_path / "run", f"model.attention.name={system}")
    for name in ("loss", "interaction", "diversity"):
        assert log[-1][name] < log[0][name], name
    assert log[-1]["interaction"] < 0.95 * log[0]["interaction"]
    assert log[0]["diversity"] - log[-1]["diversity"] > 0.01
    weights = SYSTEMS[system].losses
    for line in log:
        total = sum(weights[name] * line[name] for name in ("interaction", "diversity"))
        assert line["auxiliary_loss"] == pytest.approx(total, rel=1e-6)
        assert 0 <= line["diversity"] <= 1
        assert -1 <= line["interaction"] <= 1
    events = list((tmp_path / "run/tensorboard").iterdir())
    assert any(b"train/interaction" in path.read_bytes() for path in events)


def test_literal_loss_on_raw_features_collapses(clips: Path, tmp_path: Path) -> None:
    """All rows become the first component and the features grow, so the loss decreases without
    bound, far below the minimum for features of constant size."""
    edition = "model.edition=1"  # one classifier of the mean row
    log = trained(clips, tmp_path / "literal", edition, "model.attention.options.loss=literal")
    trained(clips, tmp_path / "normalized", edition)
    assert log[-1]["interaction"] < 2 * log[0]["interaction"] < 0
    assert overlap(tmp_path / "literal") > 0.97
    assert overlap(tmp_path / "normalized") < 0.85
