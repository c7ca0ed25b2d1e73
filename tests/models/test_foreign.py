"""Networks of other libraries by name, and attention after their blocks."""

import copy
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tests.reference import fill
from videoattn.attention import NonLocal
from videoattn.attention.blocks.squeeze_excite import SqueezeExcite
from videoattn.models import features, head, info
from videoattn.models.libraries import PYTORCHVIDEO, FittingAvgPool3d
from videoattn.models.table import MODELS, make_network
from videoattn.recipe.config import AttentionConfig, ClipConfig, Config, DataConfig, ModelConfig
from videoattn.recipe.model import make_model
from videoattn.recipe.training import make_precision

# pytorchvideo's swish
pytestmark = pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated:DeprecationWarning")

BY_STAGE = {
    "r3d_18": ["layer2.1", "layer3.1"],
    "mc3_18": ["layer2.1", "layer3.1"],
    "r2plus1d_18": ["layer2.1", "layer3.1"],
    "s3d": ["features.6", "features.9", "features.11"],
    "tsn_timm": ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"],
    **{
        f"pytorchvideo_{name}": [
            f"blocks.{second}.res_blocks.1",
            f"blocks.{second}.res_blocks.3",
            *(f"blocks.{second + 1}.res_blocks.{block}" for block in third),
        ]
        for second, third, names in (
            (3, (1, 3, 5), ("c2d_r50", "i3d_r50")),
            (2, (1, 3, 5), ("slow_r50", "r2plus1d_r50")),
            (2, (6, 13, 20), ("csn_r101",)),
            (2, (2, 5, 8), ("x3d_s",)),
        )
        for name in names
    },
    "pytorchvideo_efficient_x3d_s": [
        *(f"s3.pathway0_res{block}" for block in (1, 3)),
        *(f"s4.pathway0_res{block}" for block in (2, 5, 8)),
    ],
}
"""The default places of non-local blocks, at which the tests below insert them."""

TRAINED = ["mc3_18", "s3d", "pytorchvideo_x3d_xs", "pytorchvideo_efficient_x3d_xs", "tsn_timm"]
"""One of each kind."""
OPTIONS: Mapping[str, dict[str, object]] = {"tsn_timm": {"backbone": "resnet26d", "shift_div": 8}}


def made(name: str, *, attention: str | None = None, num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    asked = ModelConfig(
        name=name, options=OPTIONS.get(name, {}), attention=AttentionConfig(name=attention)
    )
    return make_model(asked, num_classes)


def clip(num_clips: int = 2) -> Tensor:
    """Large enough that batch norm has more than one position in every layer."""
    return torch.randn(num_clips, 3, 8, 40, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", BY_STAGE)
def test_positions_and_logits_by_name(name: str) -> None:
    with torch.device("meta"):
        model = make_model(ModelConfig(name=name, attention=AttentionConfig(name="non_local")), 5)
        plain = make_network(name, {}, num_classes=5)
        assert model(torch.zeros(2, 3, 16, 64, 64)).shape == (2, 5)
    blocks = [n.removesuffix(".block") for n, m in model.named_modules() if type(m) is NonLocal]
    assert blocks == [f"{place}_non_local" for place in BY_STAGE[name]]
    assert [k for k in model.state_dict() if "non_local" not in k] == list(plain.state_dict())


@pytest.mark.parametrize("name", TRAINED)
def test_attention_starts_as_the_identity_and_trains(name: str) -> None:
    plain, model = made(name).eval(), made(name, attention="non_local").eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    scores = model(clip())
    assert torch.equal(scores, plain(clip()))
    assert torch.equal(copy.deepcopy(model)(clip()), scores)
    alone = torch.cat([model(one[None]) for one in clip()])
    torch.testing.assert_close(alone, scores, rtol=1e-4, atol=1e-4)
    for module in model.modules():
        if isinstance(module, NonLocal):
            nn.init.ones_(module.bn.weight)
    model.train()(clip()).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["pytorchvideo_x3d_xs", "pytorchvideo_r2plus1d_r50"])
def test_logits_come_out_in_training_and_in_evaluation(name: str) -> None:
    """These of the hub's heads end in a softmax."""
    model = made(name)
    for training in (True, False):
        assert not torch.allclose(model.train(training)(clip()).sum(1), torch.ones(2))
    assert not any(isinstance(module, nn.Softmax) for module in model.modules())


def test_r3d_18_agrees_with_its_record() -> None:
    record = fill.read("models", "torchvision_r3d_18")
    with torch.device("meta"):
        model = make_network("r3d_18", {}, num_classes=record["output_numel"])
    state = fill.state_dict(record)
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state, assign=True)
    assert sum(p.numel() for p in model.parameters()) == record["n_params"]
    with torch.inference_mode():
        logits = model.eval()(fill.clip(record)).flatten()
    assert logits.argmax() == record["output_argmax"]
    expected = torch.tensor(record["output"])
    error = (logits[: len(expected)] - expected).abs().max() / record["output_std"]
    assert error < 1e-4


def test_the_hub_is_covered() -> None:
    """Every network of one clip in the hub has a name here."""
    hub = sys.modules["pytorchvideo.models.hub"]
    entries = {n for n, value in vars(hub).items() if callable(value)}
    others = {n for n in entries if n.startswith(("slowfast", "mvit")) or n.endswith("detection")}
    assert entries - others == set(PYTORCHVIDEO)
    assert {f"pytorchvideo_{name}" for name in PYTORCHVIDEO} | {"r3d_18", "tsn_timm"} <= set(MODELS)


def test_timm_s_network_is_the_same_in_tsn() -> None:
    """For one frame, the logits and parameter names are timm's."""
    torch.manual_seed(0)
    theirs = timm.create_model("resnet26d", num_classes=3).eval()
    ours = make_network("tsn_timm", {"backbone": "resnet26d"}, num_classes=3).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 1, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x[:, :, 0]))


def test_resnets_of_timm_fit_in_tsn() -> None:
    """Their stems, pools and norms differ."""
    x = torch.zeros(1, 3, 2, 64, 64, device="meta")
    for backbone in ("resnetblur18", "seresnext26t_32x4d", "resnet50_gn"):  # fmt: skip
        with torch.device("meta"):
            asked = ModelConfig(
                name="tsn_timm",
                options={"backbone": backbone, "shift_div": 8},
            )
            model = make_model(asked, 2)
        assert model(x).shape == (1, 2), backbone


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("i3d_r18", "layer4"),
        ("tsn_r18", "layer4"),
        ("inception_i3d", "Mixed_5c"),
        ("r2plus1d_18", "layer4"),
        ("s3d", "features.15"),
        ("pytorchvideo_slow_r50", "blocks.4.res_blocks.2"),
        ("pytorchvideo_x3d_s", "blocks.4.res_blocks.6"),
        ("pytorchvideo_efficient_x3d_s", "s5"),
    ],
)
def test_the_head_reads_the_last_stage(name: str, stage: str) -> None:
    with torch.device("meta"):
        assert info(make_network(name, {}, num_classes=3)).features == stage


@pytest.mark.parametrize(
    "name",
    ["i3d_r18", "tsn_r18", "inception_i3d", "r3d_18", "s3d", "tsn_timm", "pytorchvideo_x3d_xs"],
)
def test_the_head_of_the_features_is_the_network(name: str) -> None:
    model, x = made(name).eval(), clip()
    with torch.no_grad():
        found = features(model, x)
        assert found.ndim == 5
        assert len(found) == len(x)
        torch.testing.assert_close(head(model, found), model(x))


def test_a_head_that_reads_other_layers_needs_the_whole_network() -> None:
    model = made("i3d_r18", attention="pay_attention").eval()
    with torch.no_grad(), pytest.raises(ValueError, match="'layer2' did not run in this forward p"):
        head(model, torch.zeros(2, 512, 4, 2, 2))


def test_heads_that_do_not_read_a_vector_are_not_replaced() -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"Net: got the classifier `blocks.5.proj"),
    ):
        made("pytorchvideo_slow_r50", attention="pay_attention")


def test_networks_of_unknown_structure() -> None:
    with pytest.raises(ValueError, match="the structure of Identity is unknown; name a layer, or"):
        info(nn.Identity())
    with pytest.raises(ValueError, match="the head of ResNet cannot run alone; give it a method"):
        head(torchvision.models.resnet18(), torch.zeros(1, 512, 1, 2, 2))


def test_classifiers_are_layers_of_their_networks() -> None:
    for name in BY_STAGE:
        with torch.device("meta"):
            model = make_network(name, {}, num_classes=7)
        structure = info(model)
        assert len(model.get_submodule(structure.classifier).bias) == 7, name
        assert len(structure.stages) >= 3, name
        assert all(model.get_submodule(block) for block in structure.blocks), name


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("r2plus1d_18", "conv2.1"),
        ("pytorchvideo_x3d_s", "branch2.norm_c"),
        ("pytorchvideo_efficient_x3d_s", "layers.conv_2.kernel.bn"),
        ("tsn_timm", "bn3"),
        ("s3d", ""),
    ],
)
def test_gates_are_at_the_end_of_each_branch(name: str, end: str) -> None:
    """Not after the shortcut's norm; after whole blocks if branches are concatenated."""
    with torch.device("meta"):
        model = make_network(name, {}, num_classes=3)
        blocks, ends = info(model).blocks, info(model).branch_ends
        assert [ends.get(block, block) for block in blocks] == [
            f"{block}.{end}".rstrip(".") for block in blocks
        ]
        gates = AttentionConfig(name="self_gating")
        gated = make_model(ModelConfig(name=name, attention=gates, edition=1), 3)
    assert len([m for m in gated.modules() if type(m) is SqueezeExcite]) == len(blocks)


def test_a_pool_accepts_inputs_smaller_than_its_window() -> None:
    x = torch.randn(1, 2, 3, 9, 5)
    pool = FittingAvgPool3d((4, 7, 7), 1)
    torch.testing.assert_close(pool(x), nn.AvgPool3d((3, 7, 5), 1)(x))
    large = torch.randn(1, 2, 5, 8, 9)
    assert torch.equal(pool(large), nn.AvgPool3d((4, 7, 7), 1)(large))


def test_positions_without_features() -> None:
    attention = AttentionConfig(name="non_local", after=("blocks.5",))
    with (
        torch.device("meta"),
        pytest.raises(
            ValueError, match=r"'blocks.5' returns \(1, 3\); attention needs features \("
        ),
    ):
        make_model(ModelConfig(name="pytorchvideo_slow_r50", attention=attention), 3)


@pytest.mark.parametrize("name", ["mc3_18", "s3d", "pytorchvideo_slow_r50"])
def test_networks_with_wrong_bfloat16_gradients_train_in_float32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel over 3 frames or more, on clips of fewer: on a CPU its bfloat16 gradient is wrong,
    and there only."""
    monkeypatch.setattr("videoattn.engine.precision.has_bfloat16", lambda device: True)
    short, long = (
        ClipConfig(num_frames=frames, height=32, width=32)
        for frames in (8 if name == "s3d" else 2, 32)
    )
    recipe = Config(name="x", data=DataConfig(root="x"), model=ModelConfig(name=name))
    model, cpu = made(name), torch.device("cpu")
    precision, note = make_precision(replace(recipe, clip=short), model, cpu)
    assert precision == "float32"
    assert note is not None
    assert f"convolutions of {name} (kernel longer than its clip" in note
    assert make_precision(replace(recipe, clip=long), model, cpu) == ("auto", None)
    gpu = torch.device("cuda")
    assert make_precision(replace(recipe, clip=short), model, gpu) == ("auto", None)


def test_missing_packages_and_wrong_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"options.backbone: 'resnet26x' does not exist \(did you mean"
    ):
        make_network("tsn_timm", {"backbone": "resnet26x"}, num_classes=2)
    with pytest.raises(ValueError, match=r"name: 'pytorchvideo_slow_r5' does not exist \(did"):
        make_network("pytorchvideo_slow_r5", {}, num_classes=2)
    for name, package in (("pytorchvideo_slow_r50", "pytorchvideo"), ("tsn_timm", "timm")):
        for module in [m for m in sys.modules if m.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "path", [])
        with pytest.raises(
            ValueError, match=rf"{package} is not installed.*videoattn\[{package}\]"
        ):
            make_network(name, {}, num_classes=2)
        monkeypatch.undo()


def test_importing_a_library_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in [m for m in sys.modules if m.partition(".")[0] == "pytorchvideo"]:
            del sys.modules[name]
        with torch.device("meta"):
            assert make_network("pytorchvideo_slow_r50", {}, num_classes=2)


def test_torchvision_s_networks_are_torchvision_s() -> None:
    for name in ("mc3_18", "r2plus1d_18", "s3d"):
        with torch.device("meta"):
            theirs = torchvision.models.get_model(name, num_classes=7)
            ours = make_network(name, {}, num_classes=7)
        assert list(ours.state_dict()) == list(theirs.state_dict())
