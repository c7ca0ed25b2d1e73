"""Every attention system in a narrow Inception-I3D: its positions and general properties."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from tests.attention.test_hygiene import clip, leave_the_start
from videoattn.attention import insert_attention, insertion_places, record_attention
from videoattn.attention.systems import SYSTEMS
from videoattn.models.i3d import InceptionI3d

MIXED = [f"Mixed_{end}" for end in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")]
EVERY_SECOND = ["Mixed_3c", "Mixed_4c", "Mixed_4e"]
REPLACED = [f"{block}.{unit}.conv3d" for block in MIXED[2:] for unit in ("b1b", "b2b")]
HEAD = ["fc", "fc.0", "fc.1", "fc.2"]


def map_names(positions: list[str], name: str, *ends: str) -> list[str]:
    return [f"{position}_{name}{end}" for position in positions for end in ends or ("",)]


# The names of the maps show the positions of the blocks.
MAPS = {
    **{
        name: map_names(EVERY_SECOND, name) for name in ("non_local", "cgnl", "sagan", "similarity")
    },
    "channel_attention": map_names(EVERY_SECOND, "channel_attention"),
    "cross_layer": map_names(["Mixed_5b"], "cross_layer", ".source0", ".source1", ".source2"),
    "stand_alone": REPLACED,
    "hard_crop": ["hard_crop", "hard_crop.heat"],
    "squeeze_excite": map_names(MIXED, "squeeze_excite"),
    "self_gating": [
        f"{mixed}.{branch}.self_gating" for mixed in MIXED for branch in ("b1b", "b2b")
    ],
    "cbam": map_names(MIXED, "cbam", ".channel", ".spatial", ".temporal"),
    "refinement": map_names(["Mixed_4f", "Mixed_5c"], "refinement"),
    "interaction": HEAD,
    "interaction_layer": map_names(["Mixed_4f"], "interaction_layer", "", ".0", ".1"),
    "pay_attention": HEAD[1:],
}
# Residual blocks that start as the identity, and gates with that option.
IDENTITY = {
    **{name: {} for name in ("non_local", "cgnl", "cross_layer", "sagan", "similarity")},
    "channel_attention": {},
    "interaction_layer": {},
    "squeeze_excite": {"gate_start": "identity"},
    "cbam": {"gate_start": "identity"},
}


def plain() -> InceptionI3d:
    torch.manual_seed(0)
    return InceptionI3d(num_classes=3, width=0.125, dropout=0.0)


def build(name: str, **options: object) -> nn.Module:
    system = SYSTEMS[name]
    model = plain()
    return system.attach(model, model.info, partial(system.make, **options), (), name)


def test_every_system_is_covered() -> None:
    assert SYSTEMS.keys() == MAPS.keys() | {"residual_attention"}


@pytest.mark.parametrize("name", MAPS)
def test_hygiene(name: str) -> None:
    model = leave_the_start(build(name)).train()
    x = clip(2, 8, 32, 64)
    logits = model(x)
    assert logits.shape == (2, 3)
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key

    model.eval()
    with torch.no_grad():
        together = model(x)
        for index in range(2):
            alone = model(x[index : index + 1])
            torch.testing.assert_close(alone, together[index : index + 1], rtol=1e-4, atol=1e-5)
        other = copy.deepcopy(model)
        for value in other.state_dict().values():
            value.zero_()
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x), together)
        with record_attention(model, queries=[(1, 16, 16)]) as maps:
            assert torch.equal(model(x), together)
    assert list(maps) == MAPS[name]
    assert all(torch.isfinite(found.weights).all() for found in maps.values())


@pytest.mark.parametrize("name", IDENTITY)
def test_insertion_keeps_keys_and_starts_as_the_identity(name: str) -> None:
    before, after = plain().eval(), build(name, **IDENTITY[name]).eval()
    assert before.state_dict().keys() < after.state_dict().keys()
    x = clip(1, 8, 32, 48)
    with torch.no_grad():
        after.load_state_dict(before.state_dict(), strict=False)
        assert torch.equal(after(x), before(x))


def test_positions_are_the_mixed_blocks() -> None:
    model = plain()
    assert insertion_places(model) == MIXED
    message = r"cannot insert after 'Mixed_4g' \(did you mean Mixed_4\w\?\); choose from Mixed_3b, "
    with pytest.raises(ValueError, match=message + ", ".join(MIXED[1:])):
        insert_attention(model, nn.Conv3d, ["Mixed_4g"])


@pytest.mark.parametrize("after", [(), ("Mixed_4c",)])
def test_masks_are_rejected_because_there_are_no_stages_to_surround(after: tuple[str, ...]) -> None:
    system, model = SYSTEMS["residual_attention"], plain()
    with pytest.raises(ValueError, match=r"residual_attention goes around a stage .*InceptionI3d"):
        system.attach(model, model.info, system.make, after, "residual_attention")


def test_gates_can_follow_the_temporal_convolutions_as_in_s3d_g() -> None:
    system = SYSTEMS["self_gating"]
    positions = ["Mixed_4b.b1b", "Mixed_4b.b2b"]
    model = plain()
    model = system.attach(model, model.info, system.make, positions, "self_gating").eval()
    x = clip(1, 8, 32, 32)
    with torch.no_grad(), record_attention(model) as maps:
        assert not torch.equal(model(x), plain().eval()(x))
    assert list(maps) == [f"{position}.self_gating" for position in positions]
    assert maps["Mixed_4b.b1b.self_gating"].weights.shape == (1, 32)


def test_attention_replaces_every_kernel_of_a_block() -> None:
    system = SYSTEMS["stand_alone"]
    model = plain()
    model = system.attach(model, model.info, system.make, ["Mixed_5b"], "stand_alone")
    replaced = [name for name, m in model.named_modules() if type(m) is system.make]
    assert replaced == ["Mixed_5b.b1b.conv3d", "Mixed_5b.b2b.conv3d"]
