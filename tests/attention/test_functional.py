import pytest
import torch
from torch import Tensor

from videoattn.attention import functional
from videoattn.attention.functional import (
    attend,
    attend_separable,
    attention_weights,
    from_tokens,
    to_tokens,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)


def values_and_gradients(output: Tensor, *inputs: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad((output * weights).sum(), inputs)]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_tokens_round_trip_and_order() -> None:
    x = torch.arange(2 * 3 * 2 * 4 * 5).view(2, 3, 2, 4, 5).float()
    tokens = to_tokens(x)
    assert torch.equal(tokens[1, 1 * 20 + 2 * 5 + 3], x[1, :, 1, 2, 3])
    assert torch.equal(from_tokens(tokens, (2, 4, 5)), x)


@pytest.mark.parametrize(("width_qk", "width_v"), [(4, 4), (4, 7), (9, 3)])
def test_softmax_paths_equal_explicit(
    width_qk: int, width_v: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functional, "MOST_AT_ONCE", 20)  # chunks of two queries
    q, k, v = random(2, 6, width_qk), random(2, 5, width_qk, seed=1), random(2, 5, width_v, seed=2)
    paths = [
        attend(q, k, v, scale=0.3, path=path) for path in ("explicit", "fused", "chunked", "auto")
    ]
    expected, *others = [values_and_gradients(y, q, k, v) for y in paths]
    for other in others:
        assert_same(other, expected)
    by_hand = torch.einsum("nqp,npe->nqe", (q @ k.mT * 0.3).exp(), v)
    by_hand = by_hand / (q @ k.mT * 0.3).exp().sum(-1, keepdim=True)
    torch.testing.assert_close(expected[0], by_hand)


def test_bfloat16_softmax_on_a_cpu_is_chunked_and_near_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(functional, "MOST_AT_ONCE", 1000)
    exact = random(2, 60, 32), random(2, 50, 32, seed=1), random(2, 50, 16, seed=2)
    low = [x.detach().bfloat16().requires_grad_() for x in exact]
    chunked, auto = (
        values_and_gradients(attend(*low, scale=0.2, path=path), *low)
        for path in ("chunked", "auto")
    )
    assert all(torch.equal(a, b) for a, b in zip(auto, chunked, strict=True))
    expected = values_and_gradients(attend(*exact, scale=0.2), *exact)
    for a, b in zip(auto, expected, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize(("num_queries", "num_keys"), [(3, 2), (40, 30)])
def test_re_associated_dot_product_equals_explicit(num_queries: int, num_keys: int) -> None:
    q, k, v = random(2, num_queries, 4), random(2, num_keys, 4, seed=1), random(2, num_keys, 4)
    paths = [
        attend(q, k, v, normalizer="count", scale=0.7, path=path)
        for path in ("explicit", "linear", "auto")
    ]
    expected, *others = [values_and_gradients(y, q, k, v) for y in paths]
    for other in others:
        assert_same(other, expected)
    torch.testing.assert_close(expected[0], q @ k.mT * 0.7 @ v / num_keys)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(3, 2), (60, 50)])
def test_sorted_concatenation_equals_explicit(num_queries: int, num_keys: int) -> None:
    a, b, v = random(2, num_queries), random(2, num_keys, seed=1), random(2, num_keys, 4, seed=2)
    paths = [attend_separable(a, b, v, path=path) for path in ("explicit", "linear", "auto")]
    expected, *others = [values_and_gradients(y, a, b, v) for y in paths]
    for other in others:
        assert_same(other, expected)


def test_sorted_concatenation_if_no_key_or_every_key_counts() -> None:
    b, v = torch.tensor([[-1.0, 2.0, 0.5]]), torch.tensor([[[1.0], [10.0], [100.0]]])
    y = attend_separable(torch.tensor([[-2.0, 1.0, 5.0]]), b, v, path="linear")
    expected = [0.0, (3 * 10 + 1.5 * 100) / 3, (4 * 1 + 7 * 10 + 5.5 * 100) / 3]
    torch.testing.assert_close(y[0, :, 0], torch.tensor(expected))


def test_linear_paths_pass_gradcheck() -> None:
    q, k, v = random(1, 4, 2), random(1, 5, 2, seed=1), random(1, 5, 3, seed=2)
    assert torch.autograd.gradcheck(
        lambda *x: attend(*x, normalizer="count", path="linear"), (q, k, v)
    )
    a, b = random(1, 4), random(1, 5, seed=1)
    assert torch.autograd.gradcheck(lambda *x: attend_separable(*x, path="linear"), (a, b, v))


def test_softmax_rows_sum_to_one_and_equal_keys_give_the_mean() -> None:
    q, k, v = random(1, 6, 4), random(1, 5, 4, seed=1), random(1, 5, 3, seed=2)
    torch.testing.assert_close(
        attention_weights(q, k, "softmax", 1.0).sum(-1), torch.ones(1, 6, dtype=torch.float64)
    )
    same = k[:, :1].expand(-1, 5, -1)
    torch.testing.assert_close(attend(q, same, v), v.mean(1, keepdim=True).expand(-1, 6, -1))


def test_dot_product_sum_is_kept_in_float32_under_bfloat16_autocast() -> None:
    """4,096 terms of 1: a bfloat16 accumulator would stop at 256."""
    ones = torch.ones(1, 4096, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = attend(ones, ones, ones, normalizer="count", path="linear")
    torch.testing.assert_close(y, torch.full_like(y, 2.0))


def test_paths_that_do_not_exist() -> None:
    x = random(1, 2, 2)
    with pytest.raises(ValueError, match="path: got 'linear'; for softmax, choose from"):
        attend(x, x, x, path="linear")
    with pytest.raises(ValueError, match="path: got 'fused'; for count"):
        attend(x, x, x, normalizer="count", path="fused")
    with pytest.raises(ValueError, match="path: got 'fused'; for a separable map"):
        attend_separable(x[..., 0], x[..., 0], x, path="fused")
