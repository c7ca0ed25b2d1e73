"""Inception-I3D of two projects: keys map in both directions, and logits match."""

import pytest
import torch
from torch import Tensor

from tests.reference import fill, inception
from videoattn.weights import explain, from_state_dict, to_public
from videoattn.weights.keys import Layout, hassony2, piergiaj

RECORD = "piergiaj_inception_i3d"


def published(layout: Layout) -> dict[str, list[int]]:
    """Returns keys and shapes of piergiaj's record, or the same parameters under other names."""
    shapes = fill.read("models", RECORD)["keys"]
    if layout is piergiaj:
        return dict(shapes)
    renamed = {}
    for key, shape in shapes.items():
        ours = piergiaj.ours(key)
        assert ours is not None
        theirs = layout.theirs(ours)
        assert theirs is not None
        renamed[theirs] = shape
    return renamed


def test_logits_match_the_public_code() -> None:
    record = fill.read("models", RECORD)
    theirs = fill.state_dict(record)
    model = from_state_dict("piergiaj/i3d_rgb", theirs)
    assert sum(p.numel() for p in model.parameters()) == record["n_params"] == 12_697_264
    assert explain("piergiaj/i3d_rgb", theirs).used.keys() == theirs.keys()
    with torch.inference_mode():
        logits = model(fill.clip(record)).flatten()
    assert logits.numel() == record["output_numel"]
    assert logits.argmax() == record["output_argmax"]
    expected = torch.tensor(record["output"])
    assert (logits[: len(expected)] - expected).abs().max() < 1e-4 * record["output_std"]
    assert_same(to_public("piergiaj/i3d_rgb", model), theirs)


def test_hassony2_arithmetic() -> None:
    """Uses a clip of odd sizes, for which its padding differs."""
    theirs = fill.state_dict({"keys": published(hassony2)})
    model = from_state_dict("hassony2/i3d_rgb", theirs)
    x = torch.randn(1, 3, 11, 75, 97, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = inception.hassony2(theirs, x)
        assert (model(x) - expected).abs().max() < 1e-4 * expected.std()
    assert_same(to_public("hassony2/i3d_rgb", model), theirs)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("conv3d_2c_3x3.batch3d.running_var", "Conv3d_2c_3x3.bn.running_var"),
        ("mixed_5b.branch_0.conv3d.weight", "Mixed_5b.b0.conv3d.weight"),
        ("mixed_4f.branch_1.1.batch3d.bias", "Mixed_4f.b1b.bn.bias"),
        ("mixed_3c.branch_2.0.batch3d.num_batches_tracked", "Mixed_3c.b2a.bn.num_batches_tracked"),
        ("mixed_4b.branch_3.1.conv3d.weight", "Mixed_4b.b3b.conv3d.weight"),
        ("conv3d_0c_1x1.conv3d.bias", "fc.bias"),
        ("mixed_4b.branch_3.0.conv3d.weight", None),  # the pool
        ("mixed_6b.branch_0.conv3d.weight", None),
    ],
)
def test_keys_of_hassony2(theirs: str, ours: str | None) -> None:
    assert hassony2.ours(theirs) == ours
    if ours is not None:
        assert hassony2.theirs(ours) == theirs


def _state(layout: Layout) -> dict[str, Tensor]:
    with torch.device("meta"):
        return {key: torch.empty(shape) for key, shape in published(layout).items()}


def test_a_file_of_the_other_project_is_named() -> None:
    message = r"hassony2/kinetics_i3d_pytorch's; try hassony2/i3d_rgb"
    with pytest.raises(ValueError, match=message):
        from_state_dict("piergiaj/i3d_rgb", _state(hassony2))


def test_a_linear_classifier_is_not_a_convolution() -> None:
    state = _state(piergiaj)
    state["logits.conv3d.weight"] = torch.empty(400, 1024, device="meta")
    message = r"logits.conv3d.weight \(400, 1024\), needs \(400, 1024, 1, 1, 1\)"
    with pytest.raises(ValueError, match=message):
        from_state_dict("piergiaj/i3d_rgb", state)
