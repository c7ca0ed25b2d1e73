"""Properties of similarities and normalizers for given queries, keys and values."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.attention.test_functional import assert_same, random, values_and_gradients
from videoattn.attention import functional
from videoattn.attention.blocks.similarity import (
    additive_weights,
    attend_additive,
    cosine_tokens,
    rbf_tokens,
)
from videoattn.attention.functional import (
    NORMALIZERS,
    attend,
    attend_separable,
    attention_weights,
    normalize,
    separable_weights,
)

every_normalizer = pytest.mark.parametrize("normalizer", NORMALIZERS)


def weights_by_hand(logits: Tensor, normalizer: str) -> Tensor:
    num_keys = logits.shape[-1]
    if normalizer == "softmax":
        return logits.exp() / logits.exp().sum(-1, keepdim=True)
    # sigmoid(l - log P) = 1 / (1 + P exp(-l))
    return 1 / (1 + num_keys * (-logits).exp()) if normalizer == "sigmoid" else logits / num_keys


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits chunks to one or two queries."""
    monkeypatch.setattr(functional, "MOST_AT_ONCE", 20)


Attend = Callable[[str, str, list[Tensor]], Tensor]


def _dot(normalizer: str, path: str, x: list[Tensor]) -> Tensor:
    return attend(x[0], x[1], x[2], normalizer=normalizer, scale=0.7, path=path)


def _additive(normalizer: str, path: str, x: list[Tensor]) -> Tensor:
    return attend_additive(x[0], x[1], x[3], x[2], normalizer=normalizer, path=path)


def _separable(normalizer: str, path: str, x: list[Tensor]) -> Tensor:
    a, b = x[0] @ x[3], x[1] @ x[3]
    return attend_separable(a, b, x[2], normalizer=normalizer, path=path)


CHUNKED: list[tuple[Attend, str]] = [
    (_dot, "sigmoid"), *((_additive, n) for n in NORMALIZERS),
    (_separable, "softmax"), (_separable, "sigmoid"),
]  # fmt: skip


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.parametrize(("function", "normalizer"), CHUNKED)
def test_chunks_of_queries_equal_the_whole_map(function: Attend, normalizer: str) -> None:
    x = [random(2, 7, 3), random(2, 5, 3, seed=1), random(2, 5, 4, seed=2), random(3, seed=3)]
    used = x if function is not _dot else x[:3]
    expected, *others = [
        values_and_gradients(function(normalizer, path, x), *used)
        for path in ("explicit", "chunked", "auto")
    ]
    for other in others:
        assert_same(other, expected)
    with torch.no_grad():
        assert_same([function(normalizer, "chunked", x)], expected[:1])


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.parametrize(("function", "normalizer"), CHUNKED)
def test_chunks_of_queries_pass_gradcheck(function: Attend, normalizer: str) -> None:
    x = [random(1, 4, 2), random(1, 5, 2, seed=1), random(1, 5, 2, seed=2), random(2, seed=3)]
    assert torch.autograd.gradcheck(lambda *x: function(normalizer, "chunked", list(x)), x)


def test_chunks_keep_no_map_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = random(1, 64, 2), random(1, 64, 2, seed=1), random(1, 64, 2, seed=2)

    def largest_kept() -> int:
        sizes = [0]

        def pack(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            attend(q, k, v, normalizer="sigmoid")
        return max(sizes)

    assert largest_kept() == 64 * 64
    monkeypatch.setattr(functional, "MOST_AT_ONCE", 64 * 8)
    assert largest_kept() <= 64 * 2


@every_normalizer
def test_normalizers_match_their_formulas(normalizer: str) -> None:
    logits = random(2, 3, 5)
    torch.testing.assert_close(normalize(logits, normalizer), weights_by_hand(logits, normalizer))


def test_sigmoid_rows_sum_to_about_one_and_ignore_masked_keys() -> None:
    """Without the offset, a row of 1,000 keys with logit 0 would sum to 500."""
    assert normalize(torch.zeros(1, 1, 1000), "sigmoid").sum().item() == pytest.approx(1, abs=2e-3)
    q, k = (cosine_tokens(random(1, 200, 16, seed=seed)) for seed in (0, 1))
    sums = attention_weights(q, k, "sigmoid", 1.0).sum(-1)
    assert (sums - 1).abs().max() < 0.1
    masked = normalize(torch.tensor([[[0.0, -torch.inf]]]), "sigmoid")
    assert masked[0, 0, 1] == 0
    assert masked[0, 0, 0] == pytest.approx(1 / 3)


@every_normalizer
def test_cosine_tokens_give_cosine_similarity(normalizer: str) -> None:
    q, k, v = random(2, 6, 4), random(2, 5, 4, seed=1), random(2, 5, 3, seed=2)
    y = attend(cosine_tokens(q), cosine_tokens(k), v, normalizer=normalizer, scale=7.0)
    logits = 7 * torch.nn.functional.cosine_similarity(q.unsqueeze(2), k.unsqueeze(1), dim=3)
    expected = weights_by_hand(logits, normalizer) @ v
    assert_same(values_and_gradients(y, q, k, v), values_and_gradients(expected, q, k, v))
    assert logits.abs().max() <= 7
    longer = attend(
        cosine_tokens(9 * q), cosine_tokens(0.1 * k), v, normalizer=normalizer, scale=7.0
    )
    torch.testing.assert_close(longer, y)


def test_cosine_of_a_zero_token_is_zero_with_a_finite_gradient() -> None:
    q = torch.zeros(1, 2, 4, dtype=torch.float64, requires_grad=True)
    y = attend(cosine_tokens(q), cosine_tokens(random(1, 3, 4)), random(1, 3, 2), scale=5.0)
    y.sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


@every_normalizer
def test_rbf_tokens_give_squared_distances(normalizer: str) -> None:
    q, k, v = random(2, 6, 4), random(2, 5, 4, seed=1), random(2, 5, 3, seed=2)
    y = attend(*rbf_tokens(q, k, normalizer), v, normalizer=normalizer, scale=1 / 1.5**2)
    logits = -(q.unsqueeze(2) - k.unsqueeze(1)).square().sum(3) / (2 * 1.5**2)
    expected = weights_by_hand(logits, normalizer) @ v
    assert_same(values_and_gradients(y, q, k, v), values_and_gradients(expected, q, k, v))


@every_normalizer
def test_additive_attention_matches_its_formula(normalizer: str) -> None:
    q, k, v, w = random(2, 3, 4), random(2, 5, 4, seed=1), random(2, 5, 2, seed=2), random(4)
    logits = torch.stack(
        [torch.stack([(w * (q[:, i] + k[:, j]).tanh()).sum(1) for j in range(5)], 1)
         for i in range(3)], 1,
    )  # fmt: skip
    expected = weights_by_hand(logits, normalizer)
    torch.testing.assert_close(additive_weights(q, k, w, normalizer), expected)
    torch.testing.assert_close(attend_additive(q, k, w, v, normalizer=normalizer), expected @ v)


@every_normalizer
def test_separable_attention_matches_its_formula(normalizer: str) -> None:
    a, b, v = random(2, 6), random(2, 5, seed=1), random(2, 5, 3, seed=2)
    expected = weights_by_hand((a.unsqueeze(2) + b.unsqueeze(1)).clamp(min=0), normalizer)
    torch.testing.assert_close(separable_weights(a, b, normalizer), expected)
    y = attend_separable(a, b, v, normalizer=normalizer)
    torch.testing.assert_close(y, expected @ v)


def test_sigmoid_is_computed_in_float32_under_bfloat16_autocast() -> None:
    q, k, v = (random(1, 32, 8, seed=seed).detach().float() for seed in range(3))
    expected = attend(q, k, v, normalizer="sigmoid")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend(q, k, v, normalizer="sigmoid"), expected)


def test_scaling_by_the_root_of_the_width_gives_unit_variance() -> None:
    for width in (16, 64, 256):
        q, k = (random(1, 400, width, seed=seed).detach() for seed in (0, 1))
        assert (q @ k.mT).var().item() == pytest.approx(width, rel=0.05)


def test_unknown_paths_and_normalizers_are_rejected() -> None:
    x = random(1, 2, 2)
    with pytest.raises(ValueError, match="path: got 'fused'; for sigmoid, choose from"):
        attend(x, x, x, normalizer="sigmoid", path="fused")
    with pytest.raises(ValueError, match="path: got 'linear'; for an additive map"):
        attend_additive(x, x, x[0, 0], x, path="linear")
    with pytest.raises(ValueError, match="path: got 'linear'; for a separable map"):
        attend_separable(x[..., 0], x[..., 0], x, normalizer="softmax", path="linear")
