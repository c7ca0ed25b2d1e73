import copy
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import Bottleneck, ResNet

from tests.reference.stand_alone import stand_alone
from videoattn.attention.attach import replace_convolutions
from videoattn.attention.blocks.stand_alone import StandAloneAttention
from videoattn.attention.insert import VideoView
from videoattn.attention.record import record_attention
from videoattn.attention.systems import SYSTEMS
from videoattn.models.resnet3d import ResNet3d
from videoattn.models.tsn import TSN

BORDERS = pytest.mark.parametrize("border", ["mask", "zero"])


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(
    in_channels: int, out_channels: int, stride: int = 1, **options: object
) -> StandAloneAttention:
    """Returns a float64 layer whose queries and keys strongly prefer some neighbors."""
    torch.manual_seed(0)
    made = StandAloneAttention(in_channels, out_channels, stride, **options).double().eval()
    for conv in (made.query, made.key):
        nn.init.normal_(conv.weight, std=in_channels**-0.5)
    return made


def without_positions(made: StandAloneAttention) -> StandAloneAttention:
    with torch.no_grad():
        for table in made.position_tables():
            if table is not None:
                table.zero_()
    return made


# One tile and several tiles along each axis; windows larger than the grid; odd sizes; a head width
# that is not divisible by three; no positions.
CASES = [
    ((3, 3, 3), (2, 3, 4), {"heads": 2}),
    ((3, 3, 3), (7, 7, 8), {"heads": 1}),
    ((1, 3, 3), (3, 9, 7), {"heads": 2}),
    ((3, 7, 7), (1, 3, 2), {"heads": 4}),
    ((5, 1, 3), (11, 2, 7), {"heads": 2}),
    ((3, 1, 1), (8, 2, 2), {"heads": 2}),
    ((1, 1, 1), (2, 3, 3), {"heads": 2}),
    ((3, 3, 3), (2, 5, 7), {"heads": 2, "stride": 2}),
    ((1, 3, 3), (2, 4, 6), {"heads": 2, "stride": 2}),
]


@BORDERS
@pytest.mark.parametrize(("window", "grid", "options"), CASES)
def test_equals_the_definition_in_values_and_gradients(
    border: str, window: tuple, grid: tuple, options: dict
) -> None:
    made = layer(3, 8, window=window, border=border, **options)
    x = clip(2, 3, *grid).requires_grad_()
    y, expected = made(x), stand_alone(made, x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    weight = clip(*y.shape, seed=1)
    inputs = [x, *made.parameters()]
    got = torch.autograd.grad((y * weight).sum(), inputs, allow_unused=True)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs, allow_unused=True)
    for one, other in zip(got, wanted, strict=True):
        one, other = (torch.zeros(1).double() if g is None else g for g in (one, other))
        torch.testing.assert_close(one, other.expand_as(one), rtol=1e-9, atol=1e-11)


def test_gradients_by_finite_differences() -> None:
    made = layer(2, 4, window=(3, 3, 3), heads=2)
    x = clip(
        1, 2, 3, 7, 2
    ).requires_grad_()  # several tiles along the height, so chunks are checkpointed
    assert torch.autograd.gradcheck(made, (x,))


def test_window_of_one_is_the_value_projection() -> None:
    made = layer(4, 8, window=(1, 1, 1), heads=2)
    x = clip(2, 4, 3, 5, 6)
    assert torch.equal(made(x), made.value(x))


@pytest.mark.parametrize("grid", [(2, 3, 4), (4, 4, 3)])
def test_window_over_the_whole_grid_is_global_attention(grid: tuple) -> None:
    window = tuple(2 * size - 1 for size in grid)
    made = without_positions(layer(4, 8, window=window, heads=2))
    x = clip(2, 4, *grid)
    q, k, v = (
        conv(x).flatten(2).unflatten(1, (2, 4)).transpose(2, 3)
        for conv in (made.query, made.key, made.value)
    )
    y = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    y = y.transpose(2, 3).flatten(1, 2).unflatten(2, grid)
    torch.testing.assert_close(made(x), y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("window", [(3, 3, 3), (1, 7, 7), (3, 5, 1)])
@pytest.mark.parametrize("grid", [(3, 7, 8), (9, 16, 15)])
def test_zero_queries_give_average_pooling_of_the_values(window: tuple, grid: tuple) -> None:
    made = layer(4, 8, window=window, heads=2)
    nn.init.zeros_(made.query.weight)
    x = clip(1, 4, *grid)
    pads = tuple(extent // 2 for extent in window)
    for border, counts_padding in (("mask", False), ("zero", True)):
        made.border = border
        expected = F.avg_pool3d(made.value(x), window, 1, pads, count_include_pad=counts_padding)
        torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-14)


@BORDERS
def test_interior_is_translation_equivariant(border: str) -> None:
    made = layer(4, 8, window=(3, 3, 3), heads=2, border=border)
    x = clip(1, 4, 6, 12, 12)
    y, moved = made(x), made(x.roll((1, 2, 1), (2, 3, 4)))
    inside = (..., slice(2, -1), slice(3, -1), slice(2, -1))
    expected = y.roll((1, 2, 1), (2, 3, 4))[inside]
    torch.testing.assert_close(moved[inside], expected, rtol=1e-12, atol=1e-13)


def test_every_head_distinguishes_positions_along_every_axis() -> None:
    """In the public code half of the heads have row positions only, the others column positions."""
    for axis in (2, 3, 4):
        made = layer(4, 8, window=(3, 3, 3), heads=2)
        x = clip(1, 4, 3, 3, 3)
        plain = without_positions(copy.deepcopy(made))
        # Mirroring the clip mirrors the output only without positions.
        torch.testing.assert_close(plain(x.flip(axis)).flip(axis), plain(x))
        differs = (made(x.flip(axis)).flip(axis) - made(x)).abs().unflatten(1, (2, 4))
        assert (differs.amax((0, 2, 3, 4, 5)) > 1e-3).all()


def test_weights_are_shared_within_a_head_and_differ_between_heads() -> None:
    """In the public code the softmax is per channel, so channels of one head differ."""
    made = layer(4, 8, window=(1, 3, 3), heads=2)
    with torch.no_grad():
        made.value.weight.copy_(torch.ones_like(made.value.weight))
    y = made(clip(1, 4, 2, 4, 4)).unflatten(1, (2, 4))
    torch.testing.assert_close(y, y[:, :, :1].expand_as(y))
    assert (y[:, 0] - y[:, 1]).abs().max() > 1e-3


def test_window_of_one_frame_is_the_image_layer_on_each_frame() -> None:
    made = layer(4, 8, window=(1, 3, 3), heads=2)
    x = clip(2, 4, 5, 6, 7)
    for frame in range(5):
        one = x[:, :, frame : frame + 1]
        torch.testing.assert_close(made(x)[:, :, frame : frame + 1], made(one))
    # Half of its positions are rows, half are columns.
    assert made.position_t is None
    assert made.position_h.shape == made.position_w.shape == (2, 3, 2)


def test_width_of_a_head_is_split_among_the_axes() -> None:
    made = StandAloneAttention(4, 64, heads=8)
    shapes = [tuple(table.shape) for table in made.position_tables()]
    assert shapes == [(8, 3, 4), (8, 7, 2), (8, 7, 2)]  # 8 - 2·⌊8/3⌋, ⌊8/3⌋, ⌊8/3⌋
    torch.manual_seed(0)
    wide = StandAloneAttention(4, 8 * 60, heads=8)
    for table in wide.position_tables():
        assert abs(float(table.detach().std()) / 60**-0.5 - 1) < 0.1
    made = StandAloneAttention(256, 256)
    for conv, std in ((made.query, 0.01), (made.key, 0.01), (made.value, (2 / 256) ** 0.5)):
        assert abs(float(conv.weight.detach().std()) / std - 1) < 0.02


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 6), (1, 1)])
def test_stride_gives_the_size_of_the_replaced_convolution(size: tuple) -> None:
    conv = nn.Conv3d(4, 8, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
    made = StandAloneAttention(4, 8, 2)
    x = torch.randn(1, 4, 3, *size)
    assert made(x).shape == conv(x).shape


@BORDERS
@pytest.mark.parametrize("grid", [(3, 4, 5), (7, 8, 9)])
def test_recorded_rows_times_values_are_the_output(border: str, grid: tuple) -> None:
    made = layer(4, 4, window=(3, 3, 3), heads=1, border=border)
    x = clip(2, 4, *grid)
    attention = made.maps(x)[""]
    assert attention.kind == "local"
    assert attention.normalized == (border == "mask")
    assert attention.grid_q == attention.grid_k == grid
    rows = attention.rows(torch.arange(grid[0] * grid[1] * grid[2]))
    y = (rows.flatten(2) @ made.value(x).flatten(2).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(y.unflatten(2, grid), made(x), rtol=1e-10, atol=1e-12)


@BORDERS
def test_rows_are_the_mean_over_heads_within_the_window(border: str) -> None:
    made = layer(4, 8, window=(3, 3, 5), heads=4, border=border)
    x, grid = clip(2, 4, 4, 5, 6), (4, 5, 6)
    positions = torch.tensor([0, 1 * 30 + 2 * 6 + 3, 119])
    rows = made.maps(x)[""].rows(positions)
    for index, (t, y, z) in enumerate([(0, 0, 0), (1, 2, 3), (3, 4, 5)]):
        window = torch.zeros(grid, dtype=torch.bool)
        window[max(t - 1, 0) : t + 2, max(y - 1, 0) : y + 2, max(z - 2, 0) : z + 3] = True
        assert torch.equal(rows[0, index] > 0, window)
    sums = rows.sum((2, 3, 4))
    if border == "mask":
        torch.testing.assert_close(sums, torch.ones_like(sums))
    else:  # the corner's window includes padding, that of the middle does not
        assert (sums[:, [0, 2]] < 0.9).all()
        torch.testing.assert_close(sums[:, 1], torch.ones_like(sums[:, 1]))
    single = [copy.deepcopy(made) for _ in range(4)]
    means = torch.zeros_like(rows)
    for head, one in enumerate(single):
        own = slice(2 * head, 2 * head + 2)
        for conv in (one.query, one.key, one.value):
            conv.weight = nn.Parameter(conv.weight[own])
        for axis, table in zip("thw", one.position_tables(), strict=True):
            if table is not None:
                setattr(one, f"position_{axis}", nn.Parameter(table[head : head + 1]))
        one.heads = 1
        means += one.maps(x)[""].rows(positions) / 4
    torch.testing.assert_close(rows, means)


def test_recording_works_in_a_model_with_strides() -> None:
    model = ResNet3d("i3d", depth=18, num_classes=3, width=16).eval()
    SYSTEMS["stand_alone"].attach(model, model.info, StandAloneAttention, (), "x")
    with torch.no_grad(), record_attention(model, queries=[(1, 16, 16)], received=True) as maps:
        model(torch.randn(1, 3, 4, 64, 64))
    assert [name for name, found in maps.items() if found.kind == "local"] == [
        "layer3.0.conv1", "layer3.0.conv2", "layer3.1.conv1", "layer3.1.conv2",
        "layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2",
    ]  # fmt: skip
    assert maps["layer3.0.conv1"].grid_q == (2, 8, 8)  # before the pool
    assert maps["layer3.0.conv2"].grid_q == (2, 4, 4)
    torch.testing.assert_close(maps["layer3.0.conv1"].weights.sum((2, 3, 4)), torch.ones(1, 1))
    # The mean weights that all keys receive sum to 1.
    torch.testing.assert_close(maps["layer3.0.conv1"].received.sum((1, 2, 3)), torch.ones(1))


def resnet(blocks: list[int]) -> TSN:
    return TSN(ResNet(Bottleneck, blocks), num_classes=1000)


@pytest.mark.parametrize(("blocks", "millions"), [([3, 4, 6, 3], 18.01), ([1, 2, 4, 1], 10.33)])
def test_parameter_counts_of_the_paper(blocks: list[int], millions: float) -> None:
    model = resnet(blocks)
    make = partial(StandAloneAttention, window=(1, 7, 7))
    replaced = replace_convolutions(model, make, ["layer1", "layer2", "layer3", "layer4"])
    assert len(replaced) == sum(blocks)
    positions = sum(p.numel() for key, p in model.named_parameters() if "position" in key)
    total = sum(p.numel() for p in model.parameters())
    assert round((total - positions) / 1e6, 2) == millions
    assert positions == sum(7 * 64 * 2**stage * count for stage, count in enumerate(blocks))
    assert round(total / 1e6, 1) == round(millions, 1)


def test_layer_replaces_the_convolutions_of_the_last_two_stages() -> None:
    system = SYSTEMS["stand_alone"]
    model, chosen = resnet([1, 1, 1, 1]), resnet([1, 1, 1, 1])
    system.attach(model, model.info, system.make, (), "stand_alone")
    left = [key for key, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    assert {"conv1", "layer1.0.conv2", "layer2.0.conv2"} <= set(left)
    for position in ("layer3.0.conv2", "layer4.0.conv2"):
        view = model.get_submodule(position)
        assert isinstance(view, VideoView)
        assert view.block.stride == 2
    system.attach(chosen, chosen.info, system.make, ["layer4"], "stand_alone")
    assert isinstance(chosen.layer3[0].conv2, nn.Conv2d)


@BORDERS
@pytest.mark.parametrize("window", [(3, 7, 7), (1, 7, 7)])
def test_bfloat16_stays_near_float32(border: str, window: tuple) -> None:
    torch.manual_seed(0)
    made = StandAloneAttention(32, 64, window=window, border=border)
    x = torch.randn(2, 32, 4, 16, 16).relu()
    expected = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = made(x)
    assert got.dtype == torch.bfloat16
    error = (got.float() - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
    assert error < 2e-2
    got.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())


def test_half_precision_masks_stay_finite() -> None:
    made = layer(8, 16).half()
    y = made(clip(1, 8, 4, 9, 15).half())
    assert y.dtype == torch.float16
    assert torch.isfinite(y).all()
    y.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else (out,)
        for tensor in made:
            if isinstance(tensor, Tensor) and tensor.numel():
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // 4)
        return out


def test_memory_is_bounded_in_training() -> None:
    torch.manual_seed(0)
    made = StandAloneAttention(8, 16, window=(3, 7, 7), heads=2)

    def measure(frames: int) -> tuple[int, int]:
        x = torch.randn(1, 8, frames, 20, 20, requires_grad=True)
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
            return tensor

        with Largest() as largest:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                y = made(x)
            y.sum().backward()
        return largest.numel, sum(saved.values())

    positions = 20 * 20 * 16  # of a frame, times channels
    (short, kept_short), (long, kept_long) = measure(8), measure(64)
    unfolded = 147 * positions
    # The copies of a chunk do not grow with T, and no tensor exceeds them and the features.
    assert short < 4 * unfolded
    assert long <= max(short, 64 * positions)
    # The backward pass keeps a few features per position, not copies of them.
    assert kept_long < 6 * 64 * positions
    assert kept_short < 6 * 8 * positions


WHOLE = """
import torch
from videoattn.attention.blocks.stand_alone import StandAloneAttention
torch.manual_seed(0)
layer = StandAloneAttention(8, 16, 2, window=(3, 3, 3), heads=2)
x = torch.randn(2, 8, 7, 9, 10)
expected = layer(x)
expected.square().sum().backward()
wanted = [p.grad.clone() for p in layer.parameters()]
exported = torch.export.export(layer, (x,)).module()(x)
assert torch.allclose(exported, expected, atol=1e-5), "export"
layer.zero_grad()
compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
assert torch.allclose(compiled, expected, atol=1e-5), "compile"
compiled.square().sum().backward()
for p, grad in zip(layer.parameters(), wanted):
    assert torch.allclose(p.grad, grad, rtol=1e-4, atol=1e-4), "gradient"
"""


def test_layer_compiles_and_exports_with_gradients() -> None:
    done = subprocess.run([sys.executable, "-c", WHOLE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_invalid_options_are_rejected() -> None:
    with pytest.raises(
        ValueError, match=r"heads=8 does not divide the 12 channels .* one of 1, 2, 3, 4, 6, 12$"
    ):
        StandAloneAttention(8, 12)
    with pytest.raises(ValueError, match="heads=0 does not divide the 16 channels"):
        StandAloneAttention(8, 16, heads=0)
    for window in ((3, 6, 7), (0, 7, 7), (-1, 7, 7), (7, 7)):
        with pytest.raises(ValueError, match=r"window: got \[.*need three odd sizes"):
            StandAloneAttention(8, 16, window=window)
    with pytest.raises(
        ValueError, match="border: 'reflect' does not exist; choose from mask, zero"
    ):
        StandAloneAttention(8, 16, border="reflect")
    with pytest.raises(ValueError, match="stride: got 0; need at least 1"):
        StandAloneAttention(8, 16, 0)


def test_backbone_with_indivisible_width_is_rejected() -> None:
    system = SYSTEMS["stand_alone"]
    make = partial(system.make, heads=7)
    model = TSN(torchvision.models.resnet18(), num_classes=3)
    with pytest.raises(ValueError, match="heads=7 does not divide the 256 channels"):
        system.attach(model, model.info, make, (), "stand_alone")
