"""Fine-tuning: the parameters that each option changes in each epoch, bit for bit."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.engine.fakes import FakeBatches, about, optim_settings, run_in, sgd, to_video
from tests.engine.test_train import VALIDATION, adamw, assert_same, curve
from videoattn.attention.blocks.hard_crop import HardCrop
from videoattn.data.synthetic import MOTIONS, write_demo_clips
from videoattn.engine.checkpoint import load, save_folder
from videoattn.engine.plan import EpochPlan, FineTuning
from videoattn.engine.train import fit
from videoattn.recipe import load as config
from videoattn.recipe.config import (
    AttentionConfig,
    ClipConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainConfig,
)
from videoattn.recipe.experiment import train
from videoattn.recipe.initial import load_initial_weights, new_parameters
from videoattn.recipe.model import make_model
from videoattn.recipe.training import make_fine_tuning, make_optimizer
from videoattn.types import ModelInfo


class Net(nn.Module):
    """A block, a new block after it, another block and a new classifier."""

    info = ModelInfo("fc")

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(3, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8)
        self.attention, self.attention_bn = nn.Conv3d(8, 8, 1, bias=False), nn.BatchNorm3d(8)
        self.conv2, self.bn2 = nn.Conv3d(8, 8, 1, bias=False), nn.BatchNorm3d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = x + self.attention_bn(self.attention(x))
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(x.amax(dim=(2, 3, 4)))


NEW = ("attention", "fc")
BACKBONE = frozenset(name for name, _ in Net().named_parameters() if not name.startswith(NEW))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def tune(
    folder: Path,
    tuning: FineTuning | None,
    *,
    batches: FakeBatches | None = None,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adamw,
    model: nn.Module | None = None,
    num_epochs: int = 4,
    resume: bool = False,
) -> nn.Module:
    model = model or net()
    run = replace(run_in(folder, save_every_steps=1), keep_epochs=1)
    fit(
        model,
        make_optimizer(model),
        batches or FakeBatches(),
        to_video=to_video,
        settings=optim_settings(),
        plan=EpochPlan(num_epochs, fine_tuning=tuning or FineTuning()),
        run=run,
        validation=VALIDATION,
        resume=load(folder / "checkpoint-last.pt") if resume else None,
    )
    return model


def moved_by_epoch(folder: Path, num_epochs: int, start: nn.Module) -> list[set[str]]:
    """Returns the names of the parameters and statistics that each epoch changed."""
    states = [start.state_dict()]
    for number in range(1, num_epochs + 1):
        states.append(load(folder / f"checkpoint-epoch-{number:04d}.pt")["model"])
    return [
        {name for name, value in after.items() if not torch.equal(value, before[name])}
        for before, after in pairwise(states)
    ]


@pytest.mark.parametrize("make_optimizer", [sgd, adamw])
@pytest.mark.parametrize("freeze_batch_norm", [False, True])
@pytest.mark.parametrize("frozen_epochs", [0, 2, 4])
def test_each_option_freezes_its_parameters(
    tmp_path: Path,
    frozen_epochs: int,
    freeze_batch_norm: bool,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
) -> None:
    tuning = FineTuning(BACKBONE, frozen_epochs, freeze_batch_norm)
    tune(tmp_path, tuning, make_optimizer=make_optimizer)
    everything = set(net().state_dict())
    new = {name for name in everything if name.startswith(NEW)}
    norms = {name for name in everything - new if name.startswith("bn")}
    for epoch, moved in enumerate(moved_by_epoch(tmp_path, 4, net())):
        if epoch < frozen_epochs:
            assert moved == new
        else:
            assert moved == (everything - norms if freeze_batch_norm else everything)


@pytest.mark.parametrize("stop_at", [(0, 1), (1, 0), (1, 1), (2, 1)])
@pytest.mark.parametrize("freeze_batch_norm", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, stop_at: tuple[int, int], freeze_batch_norm: bool
) -> None:
    """Resumes inside the frozen epoch, at its end, and later."""
    tuning = FineTuning(BACKBONE, 1, freeze_batch_norm)
    tune(tmp_path / "whole", tuning, num_epochs=3)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "halved", tuning, batches=FakeBatches(stop_at=stop_at), num_epochs=3)
    tune(tmp_path / "halved", tuning, model=net(1), num_epochs=3, resume=True)
    assert curve(tmp_path / "whole") == curve(tmp_path / "halved")
    assert_same(*(load(tmp_path / name / "checkpoint-last.pt") for name in ("halved", "whole")))


def test_no_graph_is_kept_for_frozen_parameters(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before the first new block there is no graph; after it, gradients pass but are not summed."""
    model, seen = net(), []
    model.bn1.register_forward_hook(lambda m, i, out: seen.append(out.requires_grad))
    batches = FakeBatches(num_samples=4)
    tune(tmp_path, FineTuning(BACKBONE, 1), model=model, batches=batches, num_epochs=2)
    trained, validated = [False, True], [False, False]  # a batch, and two in between
    assert seen == [trained[0], *validated, trained[1], *validated]
    said = [line for line in capfd.readouterr().err.splitlines() if "backbone" in line]
    assert said == [
        "epoch 1: the backbone is frozen up to epoch 1", "epoch 2: the backbone is trained now",
    ]  # fmt: skip


def test_stages_and_a_frozen_backbone(tmp_path: Path) -> None:
    """A network of two branches, trained one after the other: what the stage trains, less what is
    frozen in the epoch."""

    def cropping() -> HardCrop:
        return HardCrop(net(), after="bn2", pool="backbone", keep="last")

    model = cropping()
    backbone = {f"{branch}_branch.{name}" for branch in ("global", "local") for name in BACKBONE}
    tune(tmp_path, FineTuning(frozenset(backbone), 3), model=model, num_epochs=5)
    parts = ["global", "global", "local", "local", "fusion"]
    for epoch, moved in enumerate(moved_by_epoch(tmp_path, 5, cropping())):
        own = {name for name in model.state_dict() if name.startswith(parts[epoch])}
        kept = {n for n in own if n.split(".")[1].startswith(("conv", "bn"))} if epoch < 3 else ()
        assert moved == own - set(kept), epoch


def test_nothing_left_to_train(tmp_path: Path) -> None:
    everything = frozenset(name for name, _ in net().named_parameters())
    with pytest.raises(ValueError, match=r"epoch 1 would train nothing, because every parameter"):
        tune(tmp_path, FineTuning(everything, 1))


def recipe(weights: Path | None, **train: object) -> Config:
    return Config(
        name="x",
        data=DataConfig(root="x"),
        clip=ClipConfig(num_frames=4, height=32, width=32),
        model=ModelConfig(
            name="i3d_r18",
            options={"width": 8, "dropout": 0.0},
            weights=str(weights) if weights else None,
            attention=AttentionConfig(name="non_local", after=("layer2.1",)),
        ),
        train=TrainConfig(**train),
    )


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network of six classes, without attention."""
    model = ModelConfig(name="i3d_r18", options={"width": 8})
    save_folder(tmp_path / "weights", make_model(model, 6).state_dict(), about())
    return tmp_path / "weights"


def begun(asked: Config, num_classes: int = 4) -> tuple[nn.Module, FineTuning]:
    torch.manual_seed(0)
    model = make_model(asked.model, num_classes)
    new = load_initial_weights(model, asked)[0] if asked.model.weights else None
    return model, make_fine_tuning(asked, model, new)


def test_the_backbone_is_all_pretrained_parameters(weights: Path) -> None:
    asked = recipe(weights, freeze_backbone_epochs=2, freeze_batch_norm=True, num_epochs=3)
    model, tuning = begun(asked)
    names = {name for name, _ in model.named_parameters()}
    new = {name for name in names if name.startswith(("fc.", "layer2.1_non_local."))}
    assert tuning == FineTuning(frozenset(names - new), 2, True)
    model, tuning = begun(asked, num_classes=6)
    assert names - tuning.backbone == {n for n in new if not n.startswith("fc.")}
    assert begun(recipe(weights))[1] == FineTuning()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_group_has_its_rate(weights: Path, tmp_path: Path, optimizer: str) -> None:
    asked = recipe(weights, backbone_lr_scale=0.1, lr=0.5, weight_decay=0.2, optimizer=optimizer)
    model, tuning = begun(asked)
    made = make_optimizer(model, asked, tuning.backbone)
    tune(tmp_path, tuning, model=model, make_optimizer=lambda _: made, num_epochs=1)
    last = 0.05 * 0.97  # the second step of tests.engine.fakes.optimisation
    assert [(g["part"], g["weight_decay"], g["lr"]) for g in made.param_groups] == [
        ("new", 0.2, last), ("new", 0.0, last),
        ("backbone", 0.2, pytest.approx(0.1 * last)), ("backbone", 0.0, pytest.approx(0.1 * last)),
    ]  # fmt: skip
    names = [name for group in made.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert made.param_groups[0]["param_names"][-1] == "fc.weight"
    stored = load(tmp_path / "checkpoint-last.pt")
    assert new_parameters(stored) == [
        name for group in made.param_groups[:2] for name in group["param_names"]
    ]
    plain = make_optimizer(model, recipe(None))
    assert [(g["weight_decay"], g["lr_scale"]) for g in plain.param_groups] == [(1e-4, 1), (0, 1)]


def test_a_tenth_of_the_rate_moves_a_tenth(weights: Path, tmp_path: Path) -> None:
    def change(scale: float) -> dict[str, Tensor]:
        model, tuning = begun(asked := recipe(weights, backbone_lr_scale=scale, weight_decay=0.0))
        before = {name: value.clone() for name, value in model.named_parameters()}
        tune(
            tmp_path / str(scale), tuning, model=model, num_epochs=1,
            make_optimizer=lambda model: make_optimizer(model, asked, tuning.backbone),
            batches=FakeBatches(num_samples=4),
        )  # fmt: skip
        return {name: value.detach() - before[name] for name, value in model.named_parameters()}

    whole, tenth = change(1.0), change(0.1)
    for name, value in whole.items():
        scale = 1.0 if name.startswith(("fc.", "layer2.1_non_local.")) else 0.1
        torch.testing.assert_close(tenth[name], scale * value, rtol=1e-3, atol=1e-6)
    assert whole["layer1.0.conv1.weight"].abs().max() > 1e-4


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"freeze_backbone_epochs": 4, "num_epochs": 3},
            "freeze_backbone_epochs: got 4; need 0 to num_epochs",
        ),
        (
            {"freeze_backbone_epochs": -1},
            "freeze_backbone_epochs: got -1; need 0 to num_epochs, which is 10",
        ),
        (
            {"backbone_lr_scale": 0.0},
            "backbone_lr_scale: got 0.0; need more than 0; to freeze the backb",
        ),
    ],
)
def test_settings_out_of_range(weights: Path, train: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        begun(recipe(weights, **train))


@pytest.mark.parametrize(
    "train",
    [{"freeze_backbone_epochs": 1}, {"freeze_batch_norm": True}, {"backbone_lr_scale": 0.1}],
)
def test_settings_without_weights(train: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"apply to pretrained parameters; set model.weights, or"):
        begun(recipe(None, **train))


def test_misspelt_settings(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\ndata: {root: x}\ntrain: {freeze_epochs: 2}\n")
    with pytest.raises(ValueError, match=r"unknown key 'train.freeze_epochs' \(did you mean"):
        config.load(tmp_path / "x.yaml")


def test_the_recipe_starts_from_the_demo_s_network() -> None:
    """Only the classifier has another shape."""
    folder = Path(__file__).parents[2] / "configs"
    demo, tuned = (
        config.load(folder / name, ["data.root=x"])
        for name in ("demo.yaml", "finetune_ucf101_11.yaml")
    )
    with torch.device("meta"):
        theirs, ours = (
            {n: v.shape for n, v in make_model(c.model, k).state_dict().items()}
            for c, k in ((demo, 8), (tuned, 11))
        )
    assert list(theirs) == list(ours)
    assert {n for n in ours if ours[n] != theirs[n]} == {"fc.weight", "fc.bias"}
    assert tuned.train.freeze_backbone_epochs == 3
    assert tuned.train.backbone_lr_scale == 0.1


RECIPE = """\
name: {name}
data: {{root: {root}, num_workers: 0}}
clip: {{sampling: segments, num_frames: 4, height: 32, width: 32}}
augment: {{flip: false}}
test: {{short_side: 36}}
model: {{name: i3d_r18, options: {{width: 8}}, attention: {{name: non_local}}}}
train: {{num_epochs: 1, batch_size: 5, validate_every: 0}}
"""


def test_a_run_is_fine_tuned_on_other_classes(tmp_path: Path) -> None:
    """As a user does it: train, then train with `model.weights=` the run. Going on with a
    fine-tuned run needs its own folder alone."""
    write_demo_clips(tmp_path / "demo", num_train_per_class=1, num_test_per_class=1)
    for split in ("train", "test"):
        for motion in sorted(MOTIONS)[:3]:
            shutil.copytree(tmp_path / "demo" / split / motion, tmp_path / "three" / split / motion)
    for name in ("demo", "three"):
        text = RECIPE.format(name=name, root=tmp_path / name)
        (tmp_path / f"{name}.yaml").write_text(text)
    source, folder = tmp_path / "runs/demo", tmp_path / "runs/three"
    train(tmp_path / "demo.yaml", folder=source)
    words = [
        f"model.weights={source}", "train.freeze_backbone_epochs=1", "train.freeze_batch_norm=true",
        "train.backbone_lr_scale=0.1", "train.num_epochs=1",
    ]  # fmt: skip
    train(tmp_path / "three.yaml", *words, folder=folder)
    before, after = (load(path / "checkpoint-last.pt") for path in (source, folder))
    assert len(after["model"]["fc.bias"]) == 3
    for name, value in after["model"].items():
        if not name.startswith("fc."):
            assert torch.equal(value, before["model"][name]), name
    assert new_parameters(after) == ["fc.weight", "fc.bias"]
    shutil.rmtree(source)
    assert train(tmp_path / "three.yaml", *words, folder=folder, resume=True).state.step_of_run == 1
