"""Inception-I3D: the table, the padding, low precision, compiling and exporting."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from tests.models.test_backbones import clip
from tests.reference import inception
from tests.test_layers import poison
from videoattn.models.i3d import TABLE, InceptionI3d, MaxPool, SameConv3d, WindowAverage
from videoattn.models.table import make_network
from videoattn.weights.keys import hassony2, piergiaj


def narrow(**options: object) -> InceptionI3d:
    """Running statistics differ from their initial values, with which much would hold by chance."""
    torch.manual_seed(0)
    model = InceptionI3d(num_classes=3, width=0.125, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def test_the_network_of_the_paper() -> None:
    with torch.device("meta"):
        model = make_network("inception_i3d", {}, num_classes=400)
    assert sum(p.numel() for p in model.parameters()) == 12_697_264
    assert len(model.state_dict()) == 344
    assert [name for name, _ in model.named_children()][:16] == list(TABLE)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


@pytest.mark.parametrize("width", [0.1, 0.5, 1.5])
def test_narrow_and_wide_networks_suit_the_blocks_options(width: float) -> None:
    with torch.device("meta"):
        model = InceptionI3d(num_classes=2, width=width)
    for name in TABLE:
        block = model.get_submodule(name)
        assert getattr(block, "channels", 16) % 16 == 0
    assert model.fc.in_features == model.get_submodule("Mixed_5c").channels


@pytest.mark.parametrize("shape", [(8, 33, 47), (3, 50, 58), (1, 32, 32), (9, 5, 2)])
def test_any_size_is_padded_as_the_public_projects_do(shape: tuple[int, int, int]) -> None:
    model, fixed = narrow().eval(), narrow(padding="fixed").eval()
    fixed.load_state_dict(model.state_dict())
    for network, layout, reference in (
        (model, piergiaj, inception.piergiaj),
        (fixed, hassony2, inception.hassony2),
    ):
        theirs = {
            layout.theirs(key): value.reshape(layout.shape_there(key, value.shape))
            for key, value in network.state_dict().items()
        }
        with torch.no_grad():
            x = clip(2, shape[0], shape[1:])
            torch.testing.assert_close(network(x), reference(theirs, x), rtol=1e-4, atol=1e-6)


def test_the_paddings_differ_by_size_alone() -> None:
    model, fixed = narrow().eval(), narrow(padding="fixed").eval()
    with torch.no_grad():
        same = clip(1, 4, (16, 48))
        torch.testing.assert_close(model(same), fixed(same), rtol=0, atol=0)
        for shape in ((6, 32, 32), (4, 40, 32), (4, 32, 33)):
            x = clip(1, shape[0], shape[1:])
            assert not torch.allclose(model(x), fixed(x), rtol=1e-4), shape


@pytest.mark.parametrize("size", range(1, 12))
def test_same_padding_has_an_output_for_every_stride(size: int) -> None:
    x = torch.rand(1, 2, size, size, size)
    for pool in (MaxPool((3, 3, 3), (2, 2, 2)), MaxPool((2, 2, 2), (2, 2, 2))):
        assert pool(x).shape[2:] == (-(-size // 2),) * 3
    conv = SameConv3d(2, 2, 7, stride=2)
    assert conv(x).shape[2:] == (-(-size // 2),) * 3
    assert MaxPool((3, 3, 3), (1, 1, 1))(x).shape == x.shape


def test_pools_are_padded_with_zeros() -> None:
    """This matters for negative features, as after an attention block."""
    pooled = MaxPool((3, 3, 3), (1, 1, 1))(torch.full((1, 1, 3, 3, 3), -1.0))
    assert pooled[0, 0, 1, 1, 1] == -1
    assert pooled.sum() == -1


@pytest.mark.parametrize("shape", [(1, 3, 7), (2, 7, 7), (3, 8, 13), (9, 20, 7)])
def test_windows_are_averaged_then_their_averages(shape: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, *shape)
    window = [min(pair) for pair in zip((2, 7, 7), shape, strict=True)]
    expected = nn.functional.avg_pool3d(x, window, stride=1).mean((2, 3, 4))
    torch.testing.assert_close(WindowAverage()(x), expected)


def test_logits_are_the_mean_over_time_of_each_window_s() -> None:
    model = narrow().eval()
    features: list[Tensor] = []
    handle = model.get_submodule("Mixed_5c").register_forward_hook(
        lambda module, inputs, output: features.append(output)
    )
    logits = model(clip(1, 24, (224, 224)))
    handle.remove()
    assert features[0].shape[2:] == (3, 7, 7)
    pairs = [features[0][:, :, t : t + 2].mean((2, 3, 4)) for t in range(2)]
    expected = torch.stack([model.fc(pair) for pair in pairs]).mean(0)
    torch.testing.assert_close(logits, expected)


def test_a_wrong_padding_is_an_error() -> None:
    with pytest.raises(ValueError, match="padding: 'valid' does not exist; choose from same"):
        InceptionI3d(num_classes=2, padding="valid")


@pytest.mark.parametrize("num_frames", range(1, 9))
def test_weight_gradients_in_bfloat16(num_frames: int) -> None:
    """Each convolution held to float32 on the input and output gradient of the bfloat16 pass."""
    model = narrow().eval()  # batch norm of few positions would amplify rounding
    seen: dict[nn.Conv3d, list[Tensor]] = {}

    def watch(conv: nn.Conv3d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[conv] = [inputs[0].detach()]
        output.register_hook(lambda gradient: seen[conv].append(gradient.detach()))

    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(watch)
    poison()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(clip(2, num_frames))
    poison()
    (logits.float() * torch.tensor([1.0, -1.0, 0.5])).sum().backward()
    assert len(seen) == 57
    for conv, (x, gradient) in seen.items():
        got = conv.weight.grad
        weight = conv.weight.detach().bfloat16().float().requires_grad_()
        conv._forward_hooks.clear()
        y = torch.func.functional_call(conv, {"weight": weight}, x.bfloat16().float())
        expected = torch.autograd.grad(y, weight, gradient.float())[0]
        assert (got - expected).abs().max() <= 2e-2 * expected.abs().max()


# In a process of its own: both read annotations that jaxtyping has wrapped in tests.
WHOLE = """
import sys
sys.path.insert(0, {root!r})
import videoattn, torch
from tests.models.test_i3d import clip, narrow
from videoattn.attention.systems import SYSTEMS

def close(got, expected):
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()

cbam = SYSTEMS["cbam"]
model = narrow()
model = cbam.attach(model, model.info, cbam.make, ("Mixed_3c", "Mixed_5c"), "cbam").eval()
any_length = dict.fromkeys((0, 2), torch.export.Dim.DYNAMIC)
with torch.no_grad():
    x, other = clip(2, 16, (32, 48)), clip(3, 21, (32, 48))
    close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
    exported = torch.export.export(model, (x,), dynamic_shapes=(any_length,)).module()
    close(exported(x), model(x))
    close(exported(other), model(other))
"""


def test_with_cbam_it_compiles_and_exports(request: pytest.FixtureRequest) -> None:
    root = str(request.config.rootpath)
    done = subprocess.run(
        [sys.executable, "-c", WHOLE.format(root=root)], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr[-3000:]
