"""The attention stem in networks; test_formulas.py compares it with its formula."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from tests.attention.test_hygiene import backbone, clip
from videoattn.attention.blocks.attention_stem import AttentionStem
from videoattn.attention.blocks.stand_alone import StandAloneAttention
from videoattn.attention.record import record_attention
from videoattn.attention.systems import SYSTEMS
from videoattn.models.i3d import InceptionI3d
from videoattn.models.resnet3d import ResNet3d, Stem

STAGES = ["layer1", "layer2", "layer3", "layer4"]


def full_attention(kind: str, **options: object) -> nn.Module:
    model, system = backbone(kind), SYSTEMS["stand_alone"]
    make = partial(system.make, window=[1, 3, 3], **options)
    return system.attach(model, model.info, make, ["conv1", *STAGES], "stand_alone")


@pytest.mark.parametrize("kind", ["i3d", "tsn"])
def test_full_attention_has_no_spatial_convolution(kind: str) -> None:
    model = full_attention(kind).train()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    assert {m.kernel_size[-2:] for m in convolutions} == {(1, 1)}
    plain = backbone(kind)
    assert set(plain.state_dict()) - set(model.state_dict()) <= {
        name for name in plain.state_dict() if ".conv" in name or name.startswith("conv1")
    }
    shapes = []
    for module in (model.maxpool, plain.maxpool):
        module.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[2:])))
    x = clip(2, 4, 64, 64)
    loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1]))
    plain.eval()(x)
    assert shapes[0] == shapes[1]  # a quarter of the height and width
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    with torch.no_grad():
        for size in ((33, 47), (32, 31)):
            assert model.eval()(clip(1, 4, *size)).isfinite().all()
        with record_attention(model, queries=[(1, 17, 30)]) as maps:
            model(x)
    found = maps["conv1"]
    assert found.kind == "local"
    assert found.weights.shape == (2, 1, 4, 64, 64)
    inside = found.weights[:, :, 1, 16:20, 28:32]
    torch.testing.assert_close(inside.sum((2, 3)), torch.ones(2, 1))


def test_value_matrices_are_mixed_by_the_place_in_a_block() -> None:
    torch.manual_seed(0)
    stem = AttentionStem(3, 8, heads=2)
    share = stem.mixture()
    assert share.shape == (4, 4, 4)
    torch.testing.assert_close(share.sum(0), torch.ones(4, 4))
    assert share.std() > 0.01
    x = clip(1, 2, 16, 16)
    moved = stem(x.roll(4, -1))
    torch.testing.assert_close(moved, stem(x).roll(4, -1))  # whole blocks
    assert not torch.allclose(stem(x.roll(1, -1)), stem(x).roll(1, -1), atol=1e-3)


@pytest.mark.parametrize("path", ["explicit", "fused"])
def test_paths_are_equal(path: str) -> None:
    torch.manual_seed(0)
    stem = AttentionStem(3, 8, heads=2).double()
    x = clip(2, 2, 9, 6).double()
    expected = stem(x)
    stem.path = path
    torch.testing.assert_close(stem(x), expected, rtol=1e-12, atol=1e-12)


def test_other_networks_are_refused() -> None:
    system = SYSTEMS["stand_alone"]
    model = InceptionI3d(num_classes=3, width=0.125)
    with pytest.raises(ValueError, match="cannot insert after 'conv1'"):
        system.attach(model, model.info, system.make, ["conv1"], "stand_alone")
    strided = ResNet3d("slow", depth=18, num_classes=3, stem=Stem(conv1_stride_frames=2))
    with pytest.raises(
        ValueError, match=r"'conv1' and the pool after it cannot be replaced in Res"
    ):
        system.attach(strided, strided.info, system.make, ["conv1"], "stand_alone")
    with pytest.raises(
        ValueError, match=r"heads and mixtures: got 3 and 4; need at least 1 each, "
    ):
        AttentionStem(3, 64, heads=3)
    assert StandAloneAttention is system.make


WHOLE = """
import videoattn, torch, sys
sys.path.insert(0, {root!r})
from tests.attention.test_attention_stem import AttentionStem, clip
torch.manual_seed(0)
stem, x = AttentionStem(3, 16).eval(), clip(2, 2, 6, 8)
with torch.no_grad():
    expected = stem(x)
    exported = torch.export.export(stem, (x,)).module()(x)
    assert torch.allclose(exported, expected, atol=1e-5), "export"
    compiled = torch.compile(stem, fullgraph=True, backend="aot_eager")(x)
    assert torch.allclose(compiled, expected, atol=1e-5), "compile"
"""


def test_stem_compiles_and_exports(request: pytest.FixtureRequest) -> None:
    root = str(request.config.rootpath)
    words = [sys.executable, "-c", WHOLE.format(root=root)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
