from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from videoattn.attention import NonLocal
from videoattn.attention.attach import Joined, published_positions
from videoattn.attention.blocks.cross_layer import CrossLayerNonLocal
from videoattn.attention.blocks.similarity import SimilarityAttention
from videoattn.attention.common import auxiliary_losses
from videoattn.attention.maps import HasMaps
from videoattn.attention.systems import SYSTEMS
from videoattn.engine.step import OptimSettings
from videoattn.layers import Conv3d
from videoattn.models.tsn import TSN
from videoattn.recipe import data as recipe_data
from videoattn.recipe import load as config
from videoattn.recipe.config import (
    AttentionConfig,
    AugmentConfig,
    ClipConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainConfig,
)
from videoattn.recipe.model import make_model
from videoattn.recipe.objective import make_mix
from videoattn.recipe.training import make_optimizer, make_precision, make_settings
from videoattn.types import ModelInfo

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_build(path: Path) -> None:
    loaded = config.load(path, ["data.root=x"])
    with torch.device("meta"):
        model = make_model(loaded.model, 5)
    blocks = [m for m in model.modules() if isinstance(m, HasMaps)]
    assert bool(blocks) == (loaded.model.attention.name is not None)
    assert recipe_data.test_transform(loaded).num_crops == loaded.test.num_crops
    make_settings(loaded, 10, "auto").lr_at(0)


@pytest.mark.parametrize("name", ["i3d_r18", "tsn_r18"])
def test_one_field_puts_the_same_blocks_into_both_kinds(name: str) -> None:
    attention = AttentionConfig(name="non_local", options={"form": "dot_product"})
    model = make_model(ModelConfig(name=name, attention=attention), 3)
    names = [n.removesuffix(".block") for n, m in model.named_modules() if isinstance(m, NonLocal)]
    assert names == ["layer2.1_non_local", "layer3.1_non_local"]


def test_attention_options_of_earlier_versions_keep_their_meaning() -> None:
    attention = AttentionConfig(name="similarity", options={"normaliser": "sigmoid"})
    model = make_model(ModelConfig(name="i3d_r18", attention=attention), 3)
    blocks = [module for module in model.modules() if isinstance(module, SimilarityAttention)]
    assert {block.normalizer for block in blocks} == {"sigmoid"}


def test_published_positions_and_counts() -> None:
    with torch.device("meta"):
        model = make_model(
            ModelConfig(name="i3d_r50", attention=AttentionConfig(name="non_local")), 400
        )
        deeper = make_model(
            ModelConfig(name="i3d_r101", attention=AttentionConfig(name="non_local")), 400
        )
    assert sum(p.numel() for p in model.parameters()) == 35_401_936
    assert [n for n, m in deeper.named_modules() if isinstance(m, NonLocal)] == [
        f"{position}_non_local"
        for position in ("layer2.1", "layer2.3", "layer3.6", "layer3.13", "layer3.20")
    ]


class _Stages(nn.Module):
    """A network with stages of the given numbers of blocks."""

    def __init__(self, *counts: int) -> None:
        super().__init__()
        for number, count in enumerate(counts, 1):
            blocks = [nn.Conv3d(8, 8, 1) for _ in range(count)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        stages = {
            f"layer{number}": tuple(f"layer{number}.{block}" for block in range(count))
            for number, count in enumerate(counts, 1)
        }
        self.info = ModelInfo("", stages, features=f"layer{len(counts)}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.children():
            x = stage(x)
        return x


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((1, 1, 1, 1), ["layer2.0", "layer3.0"]),
        ((2, 2, 2, 2), ["layer2.1", "layer3.1"]),
        ((2, 4, 1, 1), ["layer2.3", "layer3.0"]),
        ((2, 4, 2, 2), ["layer2.3", "layer3.1"]),
        ((2, 4, 3, 2), ["layer2.1", "layer2.3", "layer3.0", "layer3.1", "layer3.2"]),
    ],
)
def test_positions_in_stages_of_few_blocks(counts: tuple[int, ...], expected: list[str]) -> None:
    model = _Stages(*counts)
    assert published_positions(model, model.info) == expected
    joined = SYSTEMS["cross_layer"].attach(model, model.info, CrossLayerNonLocal, (), "x")
    query = f"layer4.{max(counts[3] - 2, 0)}"
    assert isinstance(joined.get_submodule(f"{query}_x"), Joined)
    assert joined(torch.zeros(1, 8, 2, 4, 4)).shape == (1, 8, 2, 4, 4)


def test_weights_lie_in_channels_last_memory() -> None:
    model = make_model(ModelConfig(name="i3d_r18", options={"width": 8}), 2)
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last_3d)
    model = make_model(ModelConfig(name="tsn_r18"), 2)
    assert isinstance(model, TSN)
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig(name="i3d_r5"), r"model.name: 'i3d_r5' does not exist \(did you mean i3d_r50"
         r"\?\); choose from i3d_r18,"),
        (ModelConfig(options={"widht": 8}), r"model.options: unknown 'widht' \(did you mean width"),
        (ModelConfig(name="tsn_r18", options={"width": 8}), "model.options: unknown 'width'; it may"
         " be one of consensus, dropout"),
        (ModelConfig(options={"stem": {"stride": 2}}), "model.options.stem: unknown 'stride'"),
        (ModelConfig(attention=AttentionConfig(name="nonlocal")), r"model.attention.name: 'nonlocal"
         r"' does not exist \(did you mean non_local\?\)"),
        (ModelConfig(attention=AttentionConfig(name="non_local", options={"foo": 1})),
         "model.attention.options: unknown 'foo'; it may be one of form, inner_channels"),
        (ModelConfig(attention=AttentionConfig(name="non_local", after=("layer9.0",))),
         r"cannot insert after 'layer9.0' \(did you mean .*\); choose from layer1.0"),
        (ModelConfig(attention=AttentionConfig(after=("layer2.0",))),
         "model.attention has settings but no name; choose model.attention.name from non_local"),
    ],
)  # fmt: skip
def test_wrong_names(model: ModelConfig, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        make_model(model, 2)


def recipe(**train: object) -> Config:
    return Config(
        name="x", data=DataConfig(root="x"), model=ModelConfig(name="r3d_18"),
        train=TrainConfig(**train),
    )  # fmt: skip


def test_foreign_network_trains_in_float32_if_bfloat16_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("videoattn.engine.precision.has_bfloat16", lambda device: True)
    model, cpu = torchvision.models.video.r3d_18(), torch.device("cpu")
    short = replace(recipe(), clip=ClipConfig(num_frames=8, height=32, width=32))
    precision, note = make_precision(short, model, cpu)
    assert precision == "float32"
    assert note is not None
    assert "layer3.0.conv2.0" in note
    assert note.endswith("training in float32")
    with pytest.raises(
        ValueError, match=r"train\.precision: on this CPU bfloat16 gives wrong weight"
    ):
        make_precision(replace(short, train=TrainConfig(precision="bfloat16")), model, cpu)
    long = replace(recipe(), clip=ClipConfig(num_frames=32, height=32, width=32))
    assert make_precision(long, model, cpu) == ("auto", None)


def test_norms_and_biases_are_not_decayed() -> None:
    model = nn.Sequential(Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    for name, kind in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
        optimizer = make_optimizer(model, recipe(optimizer=name, weight_decay=0.1))
        assert isinstance(optimizer, kind)
        decayed, others = optimizer.param_groups
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
        assert [p.ndim for p in decayed["params"]] == [5]
        assert len(others["params"]) == 3


def test_schedules_by_name() -> None:
    steep = make_settings(
        recipe(num_epochs=3, lr=1.0, schedule="multistep", milestones=(1, 2)), 10, "auto"
    )
    assert [round(steep.lr_at(s), 6) for s in (0, 9, 10, 20)] == [1.0, 1.0, 0.1, 0.01]
    warm = make_settings(
        recipe(num_epochs=2, lr=1.0, schedule="cosine", warmup_epochs=0.5), 10, "auto"
    )
    assert warm.lr_at(0) < warm.lr_at(4) < warm.lr_at(5) == 1.0
    assert make_settings(recipe(lr=1.0, schedule="one_cycle"), 10, "auto").lr_at(29) > 0.9


def test_weights_of_the_recipe_replace_the_systems_loss_weights(tmp_path: Path) -> None:
    def made(name: str | None, weights: dict[str, float]) -> OptimSettings:
        model = ModelConfig(name="i3d_r18", attention=AttentionConfig(name=name))
        asked = replace(recipe(auxiliary_weights=weights), model=model)
        (tmp_path / "recipe.yaml").write_text(config.to_yaml(asked))
        assert config.load(tmp_path / "recipe.yaml") == asked
        return make_settings(asked, 10, "auto")

    usual = made("interaction", {})
    assert usual.auxiliary is auxiliary_losses
    assert usual.auxiliary_weights == {"interaction": 0.1, "diversity": 0.1}
    changed = made("interaction", {"diversity": 0.5})
    assert changed.auxiliary_weights == {"interaction": 0.1, "diversity": 0.5}
    assert made("non_local", {}).auxiliary is None
    with pytest.raises(
        ValueError, match=r"the model has no auxiliary loss 'divers'; attention interaction has int"
    ):
        made("interaction", {"divers": 1.0})
    with pytest.raises(
        ValueError, match=r"no auxiliary loss 'diversity'; attention null has none; remove it, or"
    ):
        made(None, {"diversity": 1.0})


def test_mixup_and_cutmix_blend_pairs_with_their_labels() -> None:
    labels = torch.arange(4)
    video = labels.float().view(4, 1, 1, 1, 1).expand(4, 3, 2, 16, 16).contiguous()
    neighbor = torch.tensor([3, 0, 1, 2])
    torch.manual_seed(0)
    up = make_mix(AugmentConfig(mixup=1.0), 4)
    assert up is not None
    for _ in range(20):
        mixed, target = up(video, labels)
        assert type(mixed) is torch.Tensor
        assert torch.allclose(target.sum(1), torch.ones(4))
        share = target[labels, labels].view(4, 1, 1, 1, 1)
        other = neighbor.float().view(4, 1, 1, 1, 1)
        torch.testing.assert_close(mixed, share * video + (1 - share) * other)
    cut = make_mix(AugmentConfig(cutmix=1.0), 4)
    assert cut is not None
    for _ in range(20):
        mixed, target = cut(video, labels)
        own = (mixed == video)[:, 0, 0].float().mean((1, 2))
        torch.testing.assert_close(target[labels, labels], own)
        assert ((mixed == video) == (mixed == video)[:, :1, :1]).all()


def test_mixup_and_cutmix_occur_in_their_shares() -> None:
    video, labels = torch.rand(4, 3, 2, 16, 16), torch.arange(4)
    assert make_mix(AugmentConfig(), 4) is None
    mix = make_mix(AugmentConfig(mixup=0.2, cutmix=0.3), 4)
    assert mix is not None
    torch.manual_seed(0)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for _ in range(300):
        mixed, target = mix(video, labels)
        same = mixed == video
        kinds["none" if same.all() else "cutmix" if same.any() else "mixup"] += 1
        assert target.shape == (4, 4)
    assert 40 < kinds["mixup"] < 80
    assert 125 < kinds["none"] < 185  # a cut that covers nothing or everything counts here too
    with pytest.raises(
        ValueError,
        match=r"^augment.mixup=0.8 and cutmix=0.3 are fractions of the batches; need 0 or more",
    ):
        make_mix(AugmentConfig(mixup=0.8, cutmix=0.3), 4)
