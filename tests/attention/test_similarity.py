import itertools

import pytest
import torch
from torch import Tensor

from tests.reference.blocks import bfloat16_error, clip, permuted, trained, with_gradient
from videoattn.attention.blocks.channel_attention import ChannelAttention
from videoattn.attention.blocks.non_local import NonLocal
from videoattn.attention.blocks.similarity import SIMILARITIES, SimilarityAttention
from videoattn.attention.functional import NORMALIZERS

every_pair = pytest.mark.parametrize(
    ("similarity", "normalizer"), list(itertools.product(SIMILARITIES, NORMALIZERS))
)


def by_definition(block: SimilarityAttention, x: Tensor) -> Tensor:
    """Computes the block for each query and key separately."""
    source = x if block.key_pool is None else torch.nn.functional.max_pool3d(x, block.key_pool)
    q, k, v = block.theta(x), block.phi(source), block.g(source)
    keys, values = k.flatten(2), v.flatten(2)
    y = torch.zeros_like(q).flatten(2)
    for n in range(len(x)):
        for i in range(y.shape[2]):
            query = q.flatten(2)[n, :, i]
            logits = torch.stack(
                [_logit(block, query, keys[n, :, j]) for j in range(keys.shape[2])]
            )
            if block.normalizer == "softmax":
                weights = logits.softmax(0)
            elif block.normalizer == "sigmoid":
                weights = 1 / (1 + len(logits) * (-logits).exp())
            else:
                weights = logits / len(logits)
            y[n, :, i] = values[n] @ weights
    return x + block.bn(block.out(y.view_as(q)))


def _logit(block: SimilarityAttention, q: Tensor, k: Tensor) -> Tensor:
    logits = {
        "dot": lambda: q @ k,
        "scaled": lambda: q @ k / len(q) ** 0.5,
        "cosine": lambda: 3 * q @ k / (q.norm() * k.norm()),
        "rbf": lambda: -(q - k).square().sum() / (2 * 1.5**2),
        "additive": lambda: block.pair.weight[0] @ (q + k).tanh(),
        "concat": lambda: (block.pair.weight[0] @ torch.cat([q, k])).relu(),
    }
    return logits[block.similarity]()


def small(similarity: str, normalizer: str, **options: object) -> SimilarityAttention:
    return SimilarityAttention(
        6, similarity=similarity, normalizer=normalizer, tau=3.0, bandwidth=1.5, **options
    )


@every_pair
def test_equals_the_definition_by_any_path(similarity: str, normalizer: str) -> None:
    block = trained(small(similarity, normalizer))
    x = clip(2, 6, 2, 4, 3)
    expected = by_definition(block, x)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-12)
    block.path = "explicit"
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-12)


@every_pair
@pytest.mark.parametrize("training", [True, False])
def test_starts_as_exactly_the_identity(similarity: str, normalizer: str, training: bool) -> None:
    x = clip(2, 6, 3, 4, 4).float()
    assert torch.equal(small(similarity, normalizer).train(training)(x), x)


@every_pair
def test_gradients_reach_every_parameter(similarity: str, normalizer: str) -> None:
    block = trained(small(similarity, normalizer))
    moved = with_gradient(block, (block(clip(2, 6, 2, 4, 3)) ** 3).sum())
    without = {"phi.bias"}  # under a softmax it adds a constant to each row
    assert moved | without == {name for name, _ in block.named_parameters()} | without


@every_pair
def test_permuting_positions_permutes_the_output(similarity: str, normalizer: str) -> None:
    block = trained(small(similarity, normalizer, key_pool=None))
    x = clip(2, 6, 2, 4, 3)
    torch.testing.assert_close(block(permuted(x)), permuted(block(x)))


@every_pair
def test_recorded_rows_times_values_are_the_output(similarity: str, normalizer: str) -> None:
    block = trained(small(similarity, normalizer))
    x = clip(2, 6, 3, 4, 5)
    found = block.maps(x)[""]
    assert found.grid_k == (3, 2, 2)
    rows = found.rows(torch.arange(60)).flatten(2)
    assert found.normalized == (normalizer == "softmax")
    if found.normalized:
        torch.testing.assert_close(rows.sum(2), torch.ones(2, 60, dtype=torch.float64))
    values = block.project(x)[2]
    y = (rows @ values).mT.unflatten(2, (3, 4, 5))
    torch.testing.assert_close(x + block.bn(block.out(y)), block(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("similarity", "normalizer", "form"),
    [
        ("scaled", "softmax", "embedded_gaussian"),
        ("dot", "count", "dot_product"),
        ("concat", "count", "concatenation"),
    ],
)
def test_three_combinations_are_the_non_local_block(
    similarity: str, normalizer: str, form: str
) -> None:
    block, other = trained(small(similarity, normalizer)), trained(NonLocal(6, form=form))
    other.load_state_dict(block.state_dict())  # equal keys
    x = clip(2, 6, 2, 4, 3)
    torch.testing.assert_close(block(x), other(x))


def test_cosine_ignores_the_length_of_queries_and_keys() -> None:
    block = trained(small("cosine", "softmax"))
    x = clip(2, 6, 2, 4, 3)
    before = block(x)
    for layer, factor in ((block.theta, 5.0), (block.phi, 0.2)):
        layer.weight.data *= factor
        layer.bias.data *= factor
    torch.testing.assert_close(block(x), before)


def test_rbf_of_equal_lengths_is_the_scaled_product() -> None:
    """With the default bandwidth and keys of equal length, logits differ by a constant per row."""
    block, other = (
        trained(SimilarityAttention(6, similarity=s, key_pool=None)) for s in ("rbf", "scaled")
    )
    x = clip(1, 6, 1, 3, 2)
    q, k, v, _ = block.project(x)
    k = torch.nn.functional.normalize(k, dim=2)
    torch.testing.assert_close(block.attend(q, k, v), other.attend(q, k, v))


@every_pair
def test_bfloat16_stays_near_float32(similarity: str, normalizer: str) -> None:
    block = trained(small(similarity, normalizer))
    assert bfloat16_error(block, clip(2, 6, 4, 6, 6)) < 2e-2


def channels_by_definition(block: ChannelAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (layer(x).flatten(2) for layer in (block.theta, block.phi, block.g))
    logits = torch.einsum("ncp,ndp->ncd", q, k) / q.shape[2] ** 0.5
    weights = logits.exp() / logits.exp().sum(2, keepdim=True)
    y = torch.einsum("ncd,ndp->ncp", weights, v).view_as(x)  # matrix product
    return weights, x + block.bn(y)


@pytest.mark.parametrize("project", [True, False])
def test_channel_attention_matches_its_definition(project: bool) -> None:
    block = trained(ChannelAttention(5, project=project))
    x = clip(2, 5, 2, 3, 4)
    weights, expected = channels_by_definition(block, x)
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
    found = block.maps(x)[""]
    assert found.kind == "channel"
    assert found.normalized
    torch.testing.assert_close(found.weights, weights.mean(1))
    torch.testing.assert_close(found.weights.sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(block(permuted(x)), permuted(block(x)))
    moved = with_gradient(block, (block(x) ** 3).sum())
    assert moved == {name for name, _ in block.named_parameters()}
    start = ChannelAttention(5, project=project)
    assert torch.equal(start(x.float()), x.float())


def test_permuting_channels_permutes_channel_attention() -> None:
    block = ChannelAttention(5).double().eval()
    torch.nn.init.ones_(block.bn.weight)
    x, order = clip(2, 5, 2, 3, 4), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])


@pytest.mark.parametrize("project", [True, False])
def test_channel_attention_stays_near_float32_in_bfloat16(project: bool) -> None:
    block = trained(ChannelAttention(5, project=project))
    assert bfloat16_error(block, clip(2, 5, 4, 6, 6)) < 2e-2


def test_invalid_options_are_rejected() -> None:
    with pytest.raises(
        ValueError, match="similarity: 'l2' does not exist; choose from dot, scaled"
    ):
        SimilarityAttention(6, similarity="l2")
    with pytest.raises(ValueError, match="normalizer: 'none' does not exist; choose from softmax"):
        SimilarityAttention(6, normalizer="none")
    with pytest.raises(ValueError, match=r"tau: got 0\.0; need more than 0"):
        SimilarityAttention(6, tau=0.0)
    with pytest.raises(ValueError, match=r"bandwidth: got -1\.0; need more than 0"):
        SimilarityAttention(6, bandwidth=-1.0)
