"""Several attention systems in one network: names, order, copies, maps, and places that collide."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from tests.attention.test_hygiene import clip, leave_the_start
from videoattn.attention import insert_attention, record_attention
from videoattn.attention.attach import MaskedStage, attach_masks, replace_convolutions
from videoattn.attention.blocks.cross_layer import CrossLayerNonLocal
from videoattn.attention.blocks.refinement import AttentionRefinement
from videoattn.attention.blocks.residual_attention import ResidualMask
from videoattn.attention.blocks.stand_alone import StandAloneAttention
from videoattn.attention.maps import GateMap, HasMaps
from videoattn.models import info
from videoattn.recipe.config import AttentionConfig, ModelConfig, SystemConfig
from videoattn.recipe.model import make_model

CASCADES = [
    "non_local+cbam+interaction",
    "stand_alone+residual_attention+pay_attention",
    "residual_attention+cross_layer+refinement",
    "squeeze_excite+sagan+hard_crop",
]
OPTIONS = {"i3d_r18": {"width": 16, "dropout": 0.0}, "tsn_r18": {"dropout": 0.0}}
EVERY = [(CASCADES[0], "tsn_r18"), *((names, "i3d_r18") for names in CASCADES)]

COMPILED = EVERY[::2]


def build(names: str | None, network: str = "i3d_r18") -> nn.Module:
    torch.manual_seed(0)
    systems = [SystemConfig(name) for name in names.split("+")] if names else [SystemConfig()]
    return make_model(config(*systems, network=network), 3)


def config(first: SystemConfig, *others: SystemConfig, network: str = "i3d_r18") -> ModelConfig:
    then = {str(number): system for number, system in enumerate(others, start=1)}
    attention = AttentionConfig(first.name, first.after, first.options, then)
    return ModelConfig(network, OPTIONS[network], attention=attention)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def recorded(model: nn.Module) -> dict[str, torch.Size]:
    with torch.no_grad(), record_attention(model, queries=[(1, 16, 16)]) as maps:
        model(clip(1))
    return {name: found.weights.shape for name, found in maps.items()}


@pytest.mark.parametrize(("names", "network"), EVERY[:-1])
def test_parameters_and_maps_are_those_of_the_single_systems(names: str, network: str) -> None:
    model = build(names, network).eval()
    base = shapes(build(None, network))
    found, maps = shapes(model), recorded(model)
    expected: dict[str, torch.Size] = dict(base)
    expected_maps: dict[str, torch.Size] = {}
    for name in names.split("+"):
        single = build(name, network).eval()
        removed = base.keys() - shapes(single).keys()  # replaced convolutions, and the classifier
        expected = {key: size for key, size in expected.items() if key not in removed}
        expected |= {key: size for key, size in shapes(single).items() if key not in base}
        expected_maps |= recorded(single)
    assert found == expected
    assert maps == expected_maps


def test_both_branches_of_a_crop_have_the_other_systems() -> None:
    model = build("non_local+hard_crop").eval()
    blocks = [name for name, m in model.named_modules() if isinstance(m, HasMaps)]
    assert blocks == [
        "",
        *(f"{branch}_branch.layer{stage}.1_non_local"
          for branch in ("global", "local") for stage in (2, 3)),
    ]  # fmt: skip
    assert {"hard_crop", "global_branch.layer2.1_non_local"} <= set(recorded(model))


@pytest.mark.parametrize(("names", "network"), EVERY)
def test_gradients_copies_and_recording(names: str, network: str) -> None:
    model = leave_the_start(build(names, network)).train()
    nn.functional.cross_entropy(model(clip(4)), torch.tensor([0, 1, 2, 0])).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
    model.eval()
    x = clip()
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        other = build(names, network).eval()
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x), expected)
        with record_attention(model, queries=[(0, 0, 0)]):
            assert torch.equal(model(x), expected)


class Times(nn.Module):
    """A gate with a map, whose order relative to another one is visible in the output."""

    def __init__(self, factor: float, shift: float) -> None:
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x + self.shift

    def maps(self, x: Tensor) -> dict[str, GateMap]:
        return {"": GateMap("channel", x.mean((2, 3, 4)))}


@pytest.mark.parametrize("place", ["layer2.1", "layer2.1.bn2", "layer2"])
def test_blocks_at_one_place_run_in_the_order_of_insertion(place: str) -> None:
    model = build(None).eval()
    seen = []
    for name, factor in (("a", 2.0), ("b", 3.0), ("c", 5.0)):
        (full,) = insert_attention(model, lambda _, f=factor: Times(f, 1.0), [place], name=name)
        block = model.get_submodule(full)
        block.register_forward_hook(lambda m, args, out: seen.append((m.factor, args[0], out)))
    seen.clear()  # insertion runs copies of the network
    with torch.no_grad():
        model(clip(1))
    assert [factor for factor, _, _ in seen] == [2.0, 3.0, 5.0]
    assert torch.equal(seen[1][1], seen[0][2])
    assert torch.equal(seen[2][1], seen[1][2])


@pytest.mark.parametrize("place", ["layer2.1", "layer2.1.bn2"])
def test_a_system_reads_layers_after_the_systems_before_it(place: str) -> None:
    reader = SystemConfig("cross_layer", (place, "layer3.1"))
    torch.manual_seed(0)
    model = make_model(config(SystemConfig("refinement", (place,)), reader), 3)
    leave_the_start(model).eval()
    (gate,) = [m for m in model.modules() if isinstance(m, AttentionRefinement)]
    (block,) = [m for m in model.modules() if isinstance(m, CrossLayerNonLocal)]
    gated, read = [], []
    gate.register_forward_hook(lambda m, args, out: gated.append(out))
    block.register_forward_hook(lambda m, args, out: read.append(args[1]))
    with torch.no_grad():
        model(clip(1))
    assert torch.equal(gated[0], read[0])


def test_layers_that_are_read_include_blocks_that_come_later() -> None:
    """Cross-layer attention reads layer3.1.bn2 before and after a gate is put there: the same."""
    places = SystemConfig("cross_layer", ("layer2.1.bn2", "layer3.1"))
    gate = SystemConfig("squeeze_excite", ("layer2.1.bn2",))
    torch.manual_seed(0)
    first = leave_the_start(make_model(config(places, gate), 3)).eval()
    torch.manual_seed(0)
    second = make_model(config(gate, places), 3).eval()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        x = clip(1)
        assert torch.equal(first(x), second(x))


def test_a_mask_keeps_the_readers_of_its_stage_and_what_follows_it() -> None:
    """out = SE(F + M F), and the head reads it, for masks that come before and after."""
    model = build(None).eval()
    read = []
    model.layer3.register_forward_hook(lambda m, args, out: read.append(out))
    torch.manual_seed(0)
    attach_masks(model, info(model), ResidualMask, ["layer3"], "mask")
    insert_attention(model, lambda _: Times(2.0, 0.0), ["layer3"], name="twice")
    assert isinstance(model.layer3, MaskedStage)
    u = torch.randn(1, 32, 4, 8, 8)
    with torch.no_grad():
        first = model.layer3[0](u)
        expected = 2 * model.layer3.mask(first, model.layer3[1](first))
        read.clear()  # insertion runs copies of the network
        got = model.layer3(u)
    assert torch.equal(got, expected)
    assert len(read) == 1
    assert torch.equal(read[0], expected)


def test_convolutions_of_attention_blocks_are_not_replaced() -> None:
    model = build("residual_attention")
    stages = ["layer3.residual_attention", "layer3"]
    with pytest.raises(ValueError, match=r"layer3.residual_attention' has no 3x3 convolution"):
        replace_convolutions(model, StandAloneAttention, stages[:1])
    replaced = replace_convolutions(model, StandAloneAttention, stages[1:])
    assert replaced == [f"layer3.{block}.conv{n}" for block in (0, 1) for n in (1, 2)]


COLLISIONS = [
    ("pay_attention+interaction", "attention: pay_attention and interaction each replace the cl"),
    ("interaction+hard_crop", "attention: interaction and hard_crop each replace the classifier"),
    ("interaction+cbam", "attention: interaction reads what the other systems return; put it last"),
    ("hard_crop+cbam", "attention: hard_crop reads what the other systems return; put it last"),
    ("non_local+non_local", "'1_non_local' already exists; choose another name or position"),
    ("cbam+cbam", "'layer1.0.bn2' already has a block 'cbam'; choose another name or position"),
    ("residual_attention+residual_attention", "already has residual_attention; choose another po"),
    ("stand_alone+stand_alone", "has no 3x3 convolution to replace"),
    ("cbam+nonlocal", r"attention: 'nonlocal' does not exist \(did you mean non_local\?\)"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "message"), COLLISIONS)
def test_systems_that_need_the_same_place_are_refused(names: str, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        make_model("i3d_r18", 3, attention=names)


def test_a_block_on_a_convolution_is_not_lost() -> None:
    gate = SystemConfig("squeeze_excite", ("layer3.0.conv2",))
    window = SystemConfig("stand_alone", ("layer3.0",))
    with pytest.raises(
        ValueError, match=r"'layer3.0.conv2' has a block after it, which would be l"
    ):
        make_model(config(gate, window), 3)
    model = make_model(config(window, gate), 3).eval()
    assert list(recorded(model)) == ["layer3.0.conv1", "layer3.0.conv2.squeeze_excite",
                                     "layer3.0.conv2"]  # fmt: skip


def test_settings_of_a_system_in_a_list_are_checked() -> None:
    wrong = SystemConfig("cbam", options={"reductions": 4})
    with pytest.raises(ValueError, match=r"model.attention.1.options: unknown 'reductions' \(did"):
        make_model(config(SystemConfig("non_local"), wrong), 3)
    with pytest.raises(ValueError, match=r"model.attention.1.name: 'cbma' does not exist \(did"):
        make_model(config(SystemConfig("non_local"), SystemConfig("cbma")), 3)
    with pytest.raises(ValueError, match=r"model.attention.0 has settings but no name; choose mod"):
        make_model(config(SystemConfig(None, ("layer1.0",)), SystemConfig("cbam")), 3)


# In a process of its own, for the reason given in test_hygiene.py.
WHOLE = """
import videoattn, torch, sys
sys.path.insert(0, {root!r})
from tests.attention.test_cascade import COMPILED, build, clip, leave_the_start
x = clip()
for names, network in COMPILED:
    model = leave_the_start(build(names, network)).eval()
    with torch.no_grad():
        expected = model(x)
        tolerance = 1e-4 * float(expected.abs().max())
        exported = torch.export.export(model, (x,)).module()(x)
        assert (exported - expected).abs().max() <= tolerance, ("export", names)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        assert (compiled - expected).abs().max() <= tolerance, ("compile", names)
    print(names, network)
"""


def test_cascades_compile_and_export(request: pytest.FixtureRequest) -> None:
    root = str(request.config.rootpath)
    done = subprocess.run(
        [sys.executable, "-c", WHOLE.format(root=root)], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [" ".join(pair) for pair in COMPILED]
