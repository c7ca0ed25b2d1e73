import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.reference.blocks import assert_equal
from tests.reference.non_local import non_local
from videoattn.attention.blocks.non_local import FORMS, NonLocal
from videoattn.attention.record import record_attention

every_form = pytest.mark.parametrize("form", FORMS)


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(block: NonLocal) -> NonLocal:
    """Sets random weights, so the block is not the identity; float64 and evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for tensor in [*block.parameters(), *(b for b in block.buffers() if b.is_floating_point())]:
        tensor.data = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.3
    if isinstance(block.bn, torch.nn.BatchNorm3d):
        block.bn.running_var.abs_().add_(0.5)
    return block.double().eval()


@every_form
@pytest.mark.parametrize("pool_order", ["before", "after"])
@pytest.mark.parametrize("key_pool", [None, (1, 2, 2)])
def test_equals_the_definition(form: str, pool_order: str, key_pool: object) -> None:
    block = trained(NonLocal(4, form=form, pool_order=pool_order, key_pool=key_pool))
    x = clip(2, 4, 2, 4, 3)
    assert_equal(block, non_local, [x])


@every_form
@pytest.mark.parametrize("zero_init", ["norm", "conv"])
@pytest.mark.parametrize("training", [True, False])
def test_starts_as_exactly_the_identity(form: str, zero_init: str, training: bool) -> None:
    block = NonLocal(4, form=form, zero_init=zero_init).train(training)
    x = clip(2, 4, 3, 4, 4).float()
    assert torch.equal(block(x), x)


@every_form
def test_first_step_updates_only_the_norm_and_later_steps_everything(form: str) -> None:
    block = NonLocal(4, form=form).double()
    (block(clip(2, 4, 3, 4, 4)) ** 3).sum().backward()
    moved = {name for name, p in block.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"bn.weight", "bn.bias"}
    block.zero_grad()
    torch.nn.init.ones_(block.bn.weight)
    for p in (block.g.weight, block.out.weight):
        torch.nn.init.normal_(p)
    (block(clip(2, 4, 3, 4, 4)) ** 3).sum().backward()
    still = {
        name
        for name, p in block.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    }
    assert still <= {"out.bias"}  # batch norm cancels the output bias


@every_form
def test_permuting_positions_permutes_the_output(form: str) -> None:
    block = trained(NonLocal(4, form=form, key_pool=None))
    x = clip(1, 4, 3, 2, 2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))

    def permute(video: Tensor) -> Tensor:
        return video.flatten(2)[..., order].view_as(video)

    torch.testing.assert_close(block(permute(x)), permute(block(x)))


@every_form
def test_with_pooled_keys_the_output_moves_with_frames_and_whole_cells(form: str) -> None:
    block = trained(NonLocal(4, form=form))
    x = clip(1, 4, 3, 4, 6)
    y = block(x)
    torch.testing.assert_close(block(x.flip(2)), y.flip(2))
    torch.testing.assert_close(block(x.roll(2, 4)), y.roll(2, 4))
    assert not torch.allclose(block(x.roll(1, 4)), y.roll(1, 4))


def test_pooling_before_or_after_the_projections_differs() -> None:
    before, after = (trained(NonLocal(4, pool_order=order)) for order in ("before", "after"))
    x = clip(1, 4, 2, 4, 4)
    assert (before(x) - after(x)).abs().max() > 1e-3


@every_form
def test_recorded_rows_times_values_are_the_output(form: str) -> None:
    block = trained(NonLocal(4, form=form))
    x = clip(2, 4, 3, 4, 5)
    with record_attention(torch.nn.Sequential(block)) as maps:
        pass  # no forward pass
    assert maps == {}
    rows = block.maps(x)[""].rows(torch.arange(3 * 4 * 5)).flatten(2)
    _, _, values, _ = block.project(x)
    y = (rows @ values).transpose(1, 2).view(2, 2, 3, 4, 5)
    torch.testing.assert_close(x + block.bn(block.out(y)), block(x), rtol=1e-10, atol=1e-12)


@every_form
def test_groups_of_frames_behave_as_independent_clips(form: str) -> None:
    whole, grouped = (
        trained(NonLocal(4, form=form)),
        trained(NonLocal(4, form=form, scope=2)),
    )
    x = clip(2, 4, 6, 4, 4)
    expected = torch.cat([whole(part) for part in x.split(2, dim=2)], dim=2)
    torch.testing.assert_close(grouped(x), expected)
    rows = grouped.maps(x)[""].rows(torch.tensor([0, 3 * 16 + 5]))
    assert rows.shape == (2, 2, 6, 2, 2)
    assert not rows[:, 0, 2:].any()
    assert not rows[:, 1, :2].any()
    assert not rows[:, 1, 4:].any()
    torch.testing.assert_close(
        rows[:, 1, 2:4], whole.maps(x[:, :, 2:4])[""].rows(torch.tensor([16 + 5]))[:, 0]
    )


@pytest.mark.parametrize("scope", ["space", 1])
def test_space_scope_is_the_image_block_on_every_frame(scope: str | int) -> None:
    block = trained(NonLocal(4, scope=scope))
    x = clip(1, 4, 3, 4, 4)
    for frame in range(3):
        one = x[:, :, frame : frame + 1]
        torch.testing.assert_close(block(x)[:, :, frame : frame + 1], block(one))


@every_form
def test_time_scope_is_the_block_on_each_pixel(form: str) -> None:
    block, alone = trained(NonLocal(4, form=form, scope="time")), trained(NonLocal(4, form=form))
    x = clip(2, 4, 5, 3, 2)
    y = block(x)
    rows = block.maps(x)[""].rows(torch.arange(5 * 3 * 2)).unflatten(1, (5, 3, 2))
    for row in range(3):
        for column in range(2):
            pixel = x[..., row : row + 1, column : column + 1]
            torch.testing.assert_close(y[..., row : row + 1, column : column + 1], alone(pixel))
            own = rows[:, :, row, column]  # (N, query frame, T, H, W)
            expected = alone.maps(pixel)[""].rows(torch.arange(5)).flatten(2)
            torch.testing.assert_close(own[..., row, column], expected)
            assert own.count_nonzero() <= expected.numel()  # no weight outside the pixel


@pytest.mark.parametrize("scope", ["space", "time", 2])
def test_narrow_scopes_start_as_the_identity_and_can_be_recorded(scope: str | int) -> None:
    block = NonLocal(4, scope=scope)
    x = clip(2, 4, 4, 3, 5).float()
    assert torch.equal(block(x), x)
    torch.nn.init.ones_(block.bn.weight)
    assert block(x).shape == x.shape
    model = torch.nn.Sequential(block)
    with record_attention(model, queries=[(1, 2, 4)]) as maps:
        model(x)
    torch.testing.assert_close(maps["0"].weights.flatten(2).sum(-1), torch.ones(2, 1))


def test_key_bias_has_a_gradient_only_without_softmax() -> None:
    def key_bias_gradient(form: str) -> float:
        block = trained(NonLocal(4, form=form, key_pool=None))
        (block(clip(1, 4, 2, 3, 3)) ** 2).sum().backward()
        assert block.phi.bias.grad is not None
        return block.phi.bias.grad.abs().max().item()

    assert key_bias_gradient("embedded_gaussian") < 1e-12
    assert key_bias_gradient("dot_product") > 1e-4


def test_parameter_counts_of_the_published_networks() -> None:
    def added(**options: object) -> int:
        blocks = [NonLocal(channels, **options) for channels in (512, 512, 1024, 1024, 1024)]
        return sum(p.numel() for block in blocks for p in block.parameters())

    assert added() == 35_401_936 - 28_043_472
    assert added(out_bias=False) == 35_397_840 - 28_043_472
    assert added(out_bias=False, form="gaussian") == 31_723_728 - 28_043_472


@every_form
def test_bfloat16_stays_near_float32(form: str) -> None:
    block = NonLocal(8, form=form).train()
    torch.nn.init.ones_(block.bn.weight)
    x = clip(2, 8, 4, 6, 6).float().relu()
    expected = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = block(x)
    assert (got - expected).abs().max() < 2e-2 * expected.abs().max()


def test_grids_smaller_than_the_pool_are_pooled_to_size_one() -> None:
    block = trained(NonLocal(4))
    assert block(clip(1, 4, 3, 1, 5)).shape == (1, 4, 3, 1, 5)


def test_invalid_options_are_rejected() -> None:
    with pytest.raises(
        ValueError, match="form: 'softmax' does not exist; choose from embedded_gaus"
    ):
        NonLocal(4, form="softmax")
    with pytest.raises(ValueError, match="pool_order: 'never' does not exist; choose from before"):
        NonLocal(4, pool_order="never")
    with pytest.raises(ValueError, match="zero_init: 'all' does not exist; choose from norm, conv"):
        NonLocal(4, zero_init="all")
    with pytest.raises(ValueError, match="scale=True requires form='embedded_gaussian'; 'gauss"):
        NonLocal(4, form="gaussian", scale=True)
    with pytest.raises(ValueError, match="scope: got 0; choose from space_time, space, time, or"):
        NonLocal(4, scope=0)
    with pytest.raises(ValueError, match="scope: got 'frame'; choose from space_time, space"):
        NonLocal(4, scope="frame")
    with pytest.raises(ValueError, match="scope=4 does not divide the 6 frames"):
        NonLocal(4, scope=4)(torch.zeros(1, 4, 6, 2, 2))


class _Ops(TorchDispatchMode):
    """Records the names of operators and the size of the largest tensor they return."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.names.add(function.__name__.split(".")[0])
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, torch.Tensor):
                self.largest = max(self.largest, made.numel())
        return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_training_never_builds_a_map(form: str, layout: torch.memory_format) -> None:
    """Tests both memory layouts, because pooled keys of a channels-last video are contiguous."""
    block = NonLocal(8, form=form).to(memory_format=layout)
    nn.init.ones_(block.bn.weight)
    x = torch.randn(1, 8, 4, 20, 20).to(memory_format=layout).requires_grad_()
    with _Ops() as ops:
        block(x).sum().backward()
    map_size = 1600 * 400
    assert ops.largest < map_size / 10
    softmax = "_scaled_dot_product_flash_attention_for_cpu_backward" in ops.names
    assert softmax == form.endswith("gaussian")
