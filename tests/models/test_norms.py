"""Batch norms: folded into convolutions that only they read, or synchronized."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.attention.test_hygiene import EVERY, build, clip
from videoattn.attention import insert_attention
from videoattn.attention.blocks.cbam import CBAM
from videoattn.attention.blocks.gates import GateNorm
from videoattn.attention.blocks.squeeze_excite import SqueezeExcite
from videoattn.models.norms import fold_batch_norms, sync_batch_norms
from videoattn.models.table import make_network


def trained(model: nn.Module) -> nn.Module:
    """Statistics, scales and shifts differ from their initial values, with which much would hold by
    chance."""
    generator = torch.Generator().manual_seed(0)
    for norm in norms(model):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_(std=0.2, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        nn.init.normal_(norm.bias, std=0.2, generator=generator)
    return model.eval()


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("i3d_r18", {"width": 16}),
        ("i3d_r50", {"width": 8}),
        ("tsn_r18", {}),
        ("tsn_r18", {"shift_div": 8}),
        ("inception_i3d", {"width": 0.25}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_are_equal_up_to_rounding(
    name: str, options: dict[str, object], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = trained(make_network(name, options, num_classes=5)).to(dtype)
    x = clip(2, 8, 64, 64).to(dtype)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batch_norms(model, x[:1])
    assert not norms(folded)
    with torch.no_grad():
        expected = model(x)
        difference = (folded(x) - expected).abs().max() / expected.std()
    assert difference < (1e-5 if dtype == torch.float32 else 1e-12)
    assert len(norms(model)) > 10  # the network itself does not change
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_networks_with_attention_fold(name: str, kind: str) -> None:
    model = trained(build(name, kind)).double()
    x = clip(2, 4, 32, 32, seed=3).double()
    folded = fold_batch_norms(model, x[:1])
    assert len(norms(folded)) < len(norms(model)) / 2
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("position", ["layer1.0.conv1", "layer2.1.bn1"])
def test_a_block_between_a_convolution_and_its_norm_keeps_its_place(position: str) -> None:
    model = make_network("i3d_r18", {"width": 16}, num_classes=3)
    insert_attention(model, SqueezeExcite, [position], name="gate")
    trained(model).double()
    x = clip(2, 4, 64, 64).double()
    folded = fold_batch_norms(model, x[:1])
    assert len(norms(folded)) == (position == "layer1.0.conv1")
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)


class Branches(nn.Module):
    """A convolution and a norm, connected by a function."""

    def __init__(self, connect: object) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 1)
        self.norm = nn.BatchNorm3d(3)
        self.alias = self.norm
        self.connect = connect

    def forward(self, x: Tensor) -> Tensor:
        assert callable(self.connect)
        y: Tensor = self.connect(self, x)
        return y


def plain(net: Branches, x: Tensor) -> Tensor:
    y: Tensor = net.alias(net.conv(x))
    return y


def read_twice(net: Branches, x: Tensor) -> Tensor:
    y = net.conv(x)
    z: Tensor = net.norm(y) + y.detach().sigmoid()
    return z


def changed_in_place(net: Branches, x: Tensor) -> Tensor:
    y: Tensor = net.norm(net.conv(x).relu_())
    return y


def shared_norm(net: Branches, x: Tensor) -> Tensor:
    y: Tensor = net.norm(net.conv(x)) + net.norm(x)
    return y


def shared_convolution(net: Branches, x: Tensor) -> Tensor:
    y: Tensor = net.norm(net.conv(x)) + net.conv(x)
    return y


@pytest.mark.parametrize(
    ("connect", "folds"),
    [
        (plain, True),
        (read_twice, False),
        (changed_in_place, False),
        (shared_norm, False),
        (shared_convolution, False),
    ],
)
def test_only_norms_that_alone_read_a_convolution_fold(connect: object, folds: bool) -> None:
    model = trained(Branches(connect)).double()
    x = clip(2).double()
    folded = fold_batch_norms(model, x[:1])
    assert (folded is not model) == folds
    assert bool(norms(folded)) != folds
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)


def test_norms_with_the_statistics_of_the_batch_stay() -> None:
    block = nn.Sequential(nn.Conv3d(3, 3, 1), nn.BatchNorm3d(3, track_running_stats=False)).eval()
    assert fold_batch_norms(block, clip(1)) is block


def test_synchronized_norms_keep_names_values_and_blocks() -> None:
    """In evaluation mode, in which nothing is exchanged: torch exchanges on GPUs only."""
    model = make_network("i3d_r18", {"width": 16}, num_classes=3)
    insert_attention(model, CBAM, ["layer2.1.bn1"], name="gate")
    trained(model)
    x, names = clip(2, 4, 32, 32), list(model.state_dict())
    with torch.no_grad():
        before = model(x)
        sync_batch_norms(model)
        assert torch.equal(model(x), before)
    assert list(model.state_dict()) == names
    assert {type(norm) for norm in norms(model)} == {nn.SyncBatchNorm}
    sync_batch_norms(gate := nn.Sequential(GateNorm(4)))
    assert type(gate[0]) is GateNorm
