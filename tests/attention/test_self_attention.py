import pytest
import torch
from torch import Tensor

from tests.reference import fill
from tests.reference.blocks import bfloat16_error, clip, permuted, trained, with_gradient
from videoattn.attention.blocks.non_local import NonLocal
from videoattn.attention.blocks.self_attention import SelfAttention

both = pytest.mark.parametrize("variant", ["authors", "plain"])


def by_definition(block: SelfAttention, x: Tensor) -> Tensor:
    def pointwise(layer: torch.nn.Conv3d, y: Tensor) -> Tensor:
        z = torch.einsum("ncthw,dc->ndthw", y, layer.weight[:, :, 0, 0, 0])
        return z if layer.bias is None else z + layer.bias.view(1, -1, 1, 1, 1)

    q, k, v = (pointwise(layer, x) for layer in (block.query, block.key, block.value))
    if block.key_pool is not None:
        k, v = (torch.nn.functional.max_pool3d(y, (1, 2, 2)) for y in (k, v))
    weights = torch.einsum("ndi,ndj->nij", q.flatten(2), k.flatten(2)).exp()
    weights = weights / weights.sum(2, keepdim=True)
    o = torch.einsum("nij,nej->nei", weights, v.flatten(2)).unflatten(2, x.shape[2:])
    if block.key_pool is not None:
        o = pointwise(block.out, o)
    return x + block.gamma * o


@both
def test_equals_the_definition(variant: str) -> None:
    block = trained(SelfAttention(16, variant=variant))
    x = clip(2, 16, 2, 4, 5)
    torch.testing.assert_close(block(x), by_definition(block, x), rtol=1e-10, atol=1e-12)


@both
@pytest.mark.parametrize("spectral_norm", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_starts_as_the_identity_and_updates_gamma_first(
    variant: str, spectral_norm: bool, training: bool
) -> None:
    block = SelfAttention(16, variant=variant, spectral_norm=spectral_norm).train(training)
    x = clip(2, 16, 2, 4, 4).float()
    y = block(x)
    assert torch.equal(y, x)
    assert with_gradient(block, (y**3).sum()) == {"gamma"}


@both
def test_later_steps_update_everything_except_the_key_bias(variant: str) -> None:
    block = trained(SelfAttention(16, variant=variant))
    moved = with_gradient(block, (block(clip(2, 16, 2, 4, 4)) ** 3).sum())
    assert moved - {"key.bias"} == {n for n, _ in block.named_parameters()} - {"key.bias"}


def test_key_bias_has_no_gradient() -> None:
    """It adds a constant to each row of logits."""
    block = trained(SelfAttention(16, variant="plain"))
    (block(clip(2, 16, 2, 4, 4)) ** 2).sum().backward()
    assert block.key.bias.grad.abs().max() < 1e-10
    assert block.query.bias.grad.abs().max() > 1e-3


@both
def test_rows_sum_to_one_and_give_the_output(variant: str) -> None:
    block = trained(SelfAttention(16, variant=variant))
    x = clip(2, 16, 2, 4, 5)
    found = block.maps(x)[""]
    assert found.normalized
    assert found.grid_k == ((2, 2, 2) if variant == "authors" else (2, 4, 5))
    rows = found.rows(torch.arange(40)).flatten(2)
    torch.testing.assert_close(rows.sum(2), torch.ones(2, 40, dtype=torch.float64))
    values = block.project(x)[2]
    o = block.out((rows @ values).mT.unflatten(2, (2, 4, 5)))
    torch.testing.assert_close(x + block.gamma * o, block(x))


def test_permuting_positions_permutes_the_output() -> None:
    block = trained(SelfAttention(16, variant="plain"))
    x = clip(2, 16, 2, 4, 3)
    torch.testing.assert_close(block(permuted(x)), permuted(block(x)))


def test_with_pooled_keys_the_output_moves_with_frames_and_whole_cells() -> None:
    block = trained(SelfAttention(16))
    x = clip(1, 16, 3, 4, 6)
    torch.testing.assert_close(block(x.flip(2)), block(x).flip(2))
    torch.testing.assert_close(block(x.roll(2, 4)), block(x).roll(2, 4))
    assert not torch.allclose(block(x.roll(1, 4)), block(x).roll(1, 4))


def test_plain_variant_is_the_non_local_block_with_gamma_as_output_layer() -> None:
    """The embedded Gaussian without scale, with C/8 key and C value channels and W_z = γ I."""
    block = trained(SelfAttention(16, variant="plain"))
    other = NonLocal(16, inner_channels=2, key_pool=None, scale=False, zero_init="conv").double()
    other.theta, other.phi, other.g = block.query, block.key, block.value
    other.out = torch.nn.Conv3d(16, 16, 1, bias=False).double()
    other.out.weight.data = block.gamma.data * torch.eye(16).double().view(16, 16, 1, 1, 1)
    x = clip(2, 16, 2, 4, 3)
    torch.testing.assert_close(block(x), other(x))


def test_spectral_norm_makes_the_largest_singular_value_one() -> None:
    torch.manual_seed(0)
    block = SelfAttention(16, spectral_norm=True).double().train()
    x = clip(1, 16, 1, 2, 2)
    for _ in range(200):
        block(x)
    for layer in (block.query, block.key, block.value, block.out):
        largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
        assert largest.item() == pytest.approx(1.0, abs=1e-6)


def test_maps_do_not_update_a_spectral_norm_in_training_mode() -> None:
    block = SelfAttention(16, spectral_norm=True).train()
    before = {name: value.clone() for name, value in block.state_dict().items()}
    block.maps(clip(1, 16, 1, 2, 2).float())
    assert all(torch.equal(before[name], value) for name, value in block.state_dict().items())
    assert all(module.training for module in block.modules())


@both
def test_parameter_count(variant: str) -> None:
    weights = sum(p.numel() for p in SelfAttention(64, variant=variant).parameters() if p.ndim > 1)
    assert weights == 64**2 // 4 + 64**2  # C/8 twice, and C, or C/2 twice


@both
def test_bfloat16_stays_near_float32(variant: str) -> None:
    block = trained(SelfAttention(16, variant=variant))
    assert bfloat16_error(block, clip(2, 16, 4, 6, 6)) < 2e-2


def test_block_reproduces_the_outputs_of_the_public_code() -> None:
    record = fill.read("blocks", "heykeetae_self_attn")
    block = SelfAttention(record["options"]["in_dim"], variant="plain").eval()
    state = {
        key.replace("_conv", ""): value[..., None] if value.ndim == 4 else value
        for key, value in fill.state_dict(record).items()
    }
    block.load_state_dict(state)  # strict, so every key matches
    with torch.no_grad():
        y = block(fill.clip(record).unsqueeze(2)).squeeze(2)
    assert list(y.shape) == record["output_shape"]
    expected = torch.tensor(record["output"])
    error = (y.flatten()[: len(expected)] - expected).abs().max() / record["output_std"]
    assert error < 1e-5
    assert y.mean().item() == pytest.approx(record["output_mean"], abs=1e-5)


def test_invalid_options_are_rejected() -> None:
    with pytest.raises(
        ValueError, match="variant: 'tf' does not exist; choose from authors, paper, plain"
    ):
        SelfAttention(16, variant="tf")
