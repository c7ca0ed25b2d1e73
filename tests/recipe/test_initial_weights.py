"""The initial weights of a network: `model.weights`, and notes about other parameters."""

import os
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from tests.engine.fakes import about
from videoattn.engine.checkpoint import save_folder
from videoattn.models.table import make_network
from videoattn.recipe.config import AttentionConfig, ClipConfig, Config, DataConfig, ModelConfig
from videoattn.recipe.initial import load_initial_weights
from videoattn.recipe.model import make_model
from videoattn.weights import PUBLIC, to_public

CLIP = ClipConfig(num_frames=4, height=32, width=32)


def recipe(weights: Path | str, **model: object) -> Config:
    return Config(
        name="x",
        data=DataConfig(root="x"),
        clip=CLIP,
        model=ModelConfig(weights=str(weights), **model),
    )


def started(config: Config, num_classes: int = 3) -> tuple[nn.Module, list[str]]:
    model = make_model(config.model, num_classes)
    return model, load_initial_weights(model, config)[1]


@pytest.fixture
def images(tmp_path: Path) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=7)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    return f"torchvision/resnet18:{tmp_path / 'resnet18.pth'}", network


def test_a_file_in_the_home_folder(
    images: tuple[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model, _ = started(recipe("torchvision/resnet18:~/resnet18.pth", name="tsn_r18"), 7)
    assert torch.equal(model.fc.bias, images[1].fc.bias)


@pytest.mark.parametrize("name", ["i3d_r18", "tsn_r18"])
def test_image_weights_leave_attention_blocks_at_their_initialization(
    images: tuple[str, nn.Module], name: str
) -> None:
    source, network = images
    attention = AttentionConfig(name="non_local", after=("layer2.1", "layer3.0"))
    model, notes = started(recipe(source, name=name, attention=attention))
    assert notes == [
        f"{source} has 7 classes, the data 3: fc starts from random weights",
        f"{source} has no layer2.1_non_local, layer3.0_non_local: they start as the identity",
    ]
    assert model.training
    got, expected = model.layer1[0].conv1.weight, network.layer1[0].conv1.weight
    torch.testing.assert_close(got.sum(2) if got.ndim == 5 else got, expected)
    assert started(recipe(source, name=name), num_classes=7)[1] == []


@pytest.mark.parametrize(("inflate", "frames"), [("mean", [1, 1, 1]), ("centre", [0, 3, 0])])
def test_the_recipe_selects_the_inflation(
    images: tuple[str, nn.Module], inflate: str, frames: list[int]
) -> None:
    source, network = images
    model, _ = started(recipe(source, name="i3d_r18", inflate=inflate))
    kernel = network.layer1[0].conv1.weight / 3
    for index, factor in enumerate(frames):
        torch.testing.assert_close(model.layer1[0].conv1.weight[:, :, index], kernel * factor)


def test_gates_do_not_start_as_the_identity(images: tuple[str, nn.Module]) -> None:
    source, _ = images
    gates = AttentionConfig(name="squeeze_excite")
    _, notes = started(recipe(source, name="tsn_r18", attention=gates), num_classes=7)
    names = ", ".join(f"layer{1 + i // 2}.{i % 2}.bn2.squeeze_excite" for i in range(5))
    assert notes == [f"{source} has no {names} and 3 more: they start from random weights"]
    warm = replace(gates, options={"gate_start": "identity"})
    _, notes = started(recipe(source, name="tsn_r18", attention=warm), num_classes=7)
    assert notes == [f"{source} has no {names} and 3 more: they start as the identity"]
    head = AttentionConfig(name="pay_attention")
    _, notes = started(recipe(source, name="tsn_r18", attention=head), num_classes=7)
    assert notes == [f"{source} has no such classifier: fc starts from random weights"]


@pytest.mark.parametrize(
    "name", ["pyslowfast/I3D_8x8_R50", "mmaction2/tsm_r50", "piergiaj/i3d_rgb"]
)
def test_public_video_weights_of_other_classes(name: str, tmp_path: Path) -> None:
    row = PUBLIC[name]
    theirs = make_network(row.network, row.options, num_classes=7)
    torch.save(to_public(name, theirs), tmp_path / "weights.pth")
    source = f"{name}:{tmp_path / 'weights.pth'}"
    attention = AttentionConfig(name="non_local")
    asked = recipe(source, name=row.network, options=dict(row.options), attention=attention)
    model, (classes, blocks) = started(asked)
    assert classes == f"{source} has 7 classes, the data 3: fc starts from random weights"
    assert blocks.startswith(f"{source} has no ")
    assert blocks.endswith("_non_local: they start as the identity")
    own, state = model.state_dict(), theirs.state_dict()
    assert all(torch.equal(own[k], v) for k, v in state.items() if not k.startswith("fc."))


def test_another_library_s_classifier_has_its_own_name(tmp_path: Path) -> None:
    model = ModelConfig(name="s3d")
    theirs = make_model(model, 7).state_dict()
    save_folder(tmp_path / "shared", theirs, about())
    asked = recipe(tmp_path / "shared", name="s3d")
    network = make_model(asked.model, 3)
    network.forward = lambda x: x  # its own needs long clips, and nothing is asked of it here
    notes = load_initial_weights(network, asked)[1]
    assert notes == [
        f"{tmp_path / 'shared'} has 7 classes, the data 3: classifier.1 starts from random weights"
    ]


def test_both_branches_of_a_hard_crop_start_alike(images: tuple[str, nn.Module]) -> None:
    source, _ = images
    model, notes = started(
        recipe(source, name="tsn_r18", attention=AttentionConfig(name="hard_crop"))
    )
    assert notes == [
        f"{source} has 7 classes, the data 3: {branch}.fc starts from random weights"
        for branch in ("global_branch", "local_branch")
    ]
    both = model.global_branch.conv1.weight, model.local_branch.conv1.weight
    assert torch.equal(*both)


def test_weights_that_do_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"model.weights: 'nowhere' is not a run, a shared folder, a checkpoint, or the name "
        r"of a public model, NAME or NAME:FILE; names are .*torchvision/resnet50",
    ):
        started(recipe("nowhere", name="tsn_r18"))
    with pytest.raises(ValueError, match=r"a public model \(did you mean torchvision/resnet18\?\)"):
        started(recipe("torchvision/resnet19", name="tsn_r18"))

    def offline(*args: object, **options: object) -> None:
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("VIDEOATTN_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        ValueError,
        match=r"model.weights: torchvision/resnet18: https:.*-f37072fd.pth could not be downloaded "
        r"\(no route\); if you have the file, use torchvision/resnet18:FILE",
    ):
        started(recipe("torchvision/resnet18", name="tsn_r18"))


def test_a_planted_file_in_the_cache_of_torch_hub_is_refused_and_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Planted:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(Planted(), cache / "resnet18-f37072fd.pth")
    with pytest.raises(ValueError, match=r"resnet18-f37072fd\.pth: is not the published one: its"):
        started(recipe("torchvision/resnet18", name="tsn_r18"))
    assert not (tmp_path / "ran").exists()

    def download(url: str, file: str, progress: bool) -> None:
        assert url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
        torch.save(Planted(), file)

    (cache / "resnet18-f37072fd.pth").unlink()
    monkeypatch.setenv("VIDEOATTN_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ValueError, match=r"its SHA-256 starts with \w{8}, not f37072fd; if you ha"):
        started(recipe("torchvision/resnet18", name="tsn_r18"))
    assert not (tmp_path / "ran").exists()
