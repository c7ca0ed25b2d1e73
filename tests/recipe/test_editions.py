"""Stored runs keep the defaults they were made with, and options without effect are refused."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from tests.cli.test_commands import command, refused
from videoattn.attention.blocks.hard_crop import GlobalMaxPool, HardCrop
from videoattn.attention.blocks.interaction import InteractionPyramid
from videoattn.attention.systems import EDITIONS, SYSTEMS
from videoattn.data.synthetic import write_demo_clips
from videoattn.engine.checkpoint import load
from videoattn.recipe.config import AttentionConfig, Config, DataConfig, ModelConfig
from videoattn.recipe.load import from_stored, to_dict
from videoattn.recipe.load import load as load_recipe
from videoattn.recipe.model import make_model
from videoattn.recipe.training import make_settings


def stored(name: str, **options: object) -> dict[str, object]:
    """Returns a config as runs stored it before the key `model.edition` existed."""
    attention = AttentionConfig(name=name, options=options)
    config = Config("old", data=DataConfig("x"), model=ModelConfig("i3d_r18", attention=attention))
    values = to_dict(config)
    del values["model"]["edition"]
    return values


def model_of(config: Config) -> nn.Module:
    with torch.device("meta"):
        return make_model(config.model, 3)


def masks(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith(".residual_attention")]


def gates(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith(".self_gating")]


def test_a_stored_run_has_the_former_defaults_and_a_recipe_the_present_ones() -> None:
    found = {}
    for edition in (1, 2):
        models = {}
        for name in ("interaction", "hard_crop", "residual_attention", "self_gating"):
            recipe = {
                "name": "new",
                "data": {"root": "x"},
                "model": {"name": "i3d_r18", "attention": {"name": name}},
            }
            config = from_stored(stored(name)) if edition == 1 else load_recipe(recipe)
            assert config.model.edition == edition
            models[name] = model_of(config)
            if name == "interaction":
                found[edition] = make_settings(config, 10, "auto").auxiliary_weights
        head, crop = models["interaction"].fc.block, models["hard_crop"]
        assert isinstance(head, InteractionPyramid)
        assert isinstance(crop, HardCrop)
        former = edition == 1
        assert (head.classify, head.pyramid.loss) == (
            ("mean", "normalized") if former else ("rows", "balanced")
        )
        assert isinstance(crop.global_branch.avgpool, GlobalMaxPool) != former
        assert crop.keeps_best != former
        stages = ("layer2", "layer3") if former else ("layer1", "layer2", "layer3")
        assert masks(models["residual_attention"]) == [f"{s}.residual_attention" for s in stages]
        end = "bn2" if former else "bn1"
        assert f"layer1.0.{end}.self_gating" in gates(models["self_gating"])
    assert found[1] == {"interaction": 0.01, "diversity": 0.01}
    assert found[2] == SYSTEMS["interaction"].losses


def test_a_recipe_with_a_seed_is_not_a_stored_run() -> None:
    recipe = Path(__file__).parents[2] / "configs/demo.yaml"
    values = yaml.safe_load(recipe.read_text())
    for changes in ({}, {"seed": 1}):
        config = load_recipe(values | changes)
        assert (config.model.edition, config.clip.square_pixels) == (2, True)


def test_options_that_are_given_are_the_same_in_every_edition() -> None:
    for edition in EDITIONS:
        attention = AttentionConfig(
            name="interaction", options={"classify": "rows", "loss": "literal", "rows": 3}
        )
        config = ModelConfig("i3d_r18", attention=attention, edition=edition)
        with torch.device("meta"):
            head = make_model(config, 3).fc.block
        assert (head.classify, head.pyramid.loss, head.pyramid.num_rows) == ("rows", "literal", 3)
    with pytest.raises(ValueError, match=r"model\.edition: got 3; choose 1 or 2"):
        make_model(ModelConfig("i3d_r18", attention=AttentionConfig("cbam"), edition=3), 3)


def test_a_config_of_the_present_edition_is_stored_with_it() -> None:
    values = to_dict(load_recipe({"name": "new", "data": {"root": "x"}}))
    assert from_stored(values).model.edition == 2
    assert from_stored({**values, "model": {"name": "i3d_r18", "edition": 1}}).model.edition == 1


TINY = """\
name: tiny
data: {num_workers: 0}
clip: {sampling: segments, num_frames: 4, height: 32, width: 32}
augment: {flip: false}
test: {short_side: 36}
model:
  name: i3d_r18
  options: {width: 4}
  attention: {name: interaction}
  edition: 1
train: {num_epochs: 2, batch_size: 5, validate_every: 0, save_every_steps: 1}
"""


def test_an_old_run_is_resumed_and_loaded_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_demo_clips(tmp_path / "clips", num_train_per_class=1, num_test_per_class=1)
    Path("old.yaml").write_text(TINY)
    assert command("train", "old.yaml", "data.root=clips", "train.num_epochs=1") == 0
    path = Path("runs/tiny/checkpoint-last.pt")
    payload = load(path)
    del payload["config"]["model"]["edition"]  # as a run from before
    payload["config"]["train"]["num_epochs"] = 2
    torch.save(payload, path)
    stored_config = Path("runs/tiny/config.yaml")
    stored_config.write_text(stored_config.read_text().replace("  edition: 1\n", ""))
    Path("recipe.yaml").write_text(TINY.replace("  edition: 1\n", ""))
    assert command("train", "recipe.yaml", "data.root=clips", "--resume") == 0
    resumed = load(path)
    assert resumed["config"]["model"]["edition"] == 1
    assert resumed["model"]["fc.block.linear.weight"].shape == (8, 32)  # not one part for each row
    assert command("test", "runs/tiny") == 0
    assert command("train", "recipe.yaml", "data.root=clips", "name=new", "train.num_epochs=1") == 0
    new = load(Path("runs/new/checkpoint-last.pt"))
    assert new["config"]["model"]["edition"] == 2
    assert new["model"]["fc.block.linear.weight"].shape == (8, 8 * 32)


@pytest.mark.parametrize(
    ("network", "options", "attention", "message"),
    [
        ("i3d_r18", {"dropout": 0.5}, {}, r"model\.options\.dropout: got 0\.5; it has no effect, "),
        ("tsn_r18", {"consensus": "max"}, {}, r"model\.options\.consensus: got max; .*; remove it"),
        (
            "tsn_r18",
            {"consensus": "attention"},
            {"name": "interaction"},
            "this form of the attention",
        ),
        ("i3d_r18", {"dropout": 0.5}, {"compatibility": "dp", "global_layers": 1}, "has no effect"),
        ("i3d_r18", {"dropout": 0.5}, {"compatibility": "local"}, "has no effect"),
    ],
)
def test_options_without_effect_are_refused(
    network: str, options: dict[str, object], attention: dict[str, object], message: str
) -> None:
    def config(edition: int) -> ModelConfig:
        chosen = {key: value for key, value in attention.items() if key != "name"}
        name = str(attention.get("name", "pay_attention"))
        return ModelConfig(
            network, options, attention=AttentionConfig(name, options=chosen), edition=edition
        )

    with torch.device("meta"):
        with pytest.raises(ValueError, match=message):
            make_model(config(2), 3)
        make_model(config(1), 3)  # a stored run keeps its settings


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pay_attention", {"compatibility": "dp"}),
        ("pay_attention", {"normalizer": "sigmoid"}),
        ("interaction", {"residual": True}),
        ("cbam", {}),
        ("interaction_layer", {}),
    ],
)
def test_options_with_an_effect_are_accepted(name: str, options: dict[str, object]) -> None:
    attention = AttentionConfig(name, options=options)
    with torch.device("meta"):
        model = make_model(ModelConfig("tsn_r18", {"dropout": 0.5}, attention=attention), 3)
        assert any(isinstance(part, nn.Dropout) and part.p == 0.5 for part in model.modules())
        make_model(ModelConfig("i3d_r18", {"dropout": 0.0}, attention=attention), 3)


def test_a_loss_per_frame_is_logged_and_refused_for_networks_of_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_demo_clips(tmp_path / "clips", num_train_per_class=1, num_test_per_class=1)
    recipe = TINY.replace("i3d_r18", "tsn_r18").replace("  options: {width: 4}\n", "")
    Path("tsn.yaml").write_text(recipe.replace("  attention: {name: interaction}\n", ""))
    words = ("train", "tsn.yaml", "data.root=clips", "train.num_epochs=1")
    losses = []
    for name, per_frame in (("clip", "false"), ("frame", "true")):
        assert command(*words, f"name={name}", f"train.per_frame_loss={per_frame}") == 0
        lines = Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()
        losses.append(json.loads(lines[0])["loss"])
    assert losses[1] > losses[0]  # the loss of a mean is at most the mean of the losses
    message = "train.per_frame_loss: the classifier of this network returns (1, 8) for a clip"
    words = (*words[:3], "name=no", "train.per_frame_loss=true")
    assert message in refused(*words, "model.name=i3d_r18")
    message = message.replace("(1, 8)", "(1, 1, 8)")
    assert message in refused(*words, "model.attention.name=interaction", "model.edition=2")
    assert message in refused(*words, "model.options.consensus=attention")
