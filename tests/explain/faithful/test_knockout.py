"""Keys and blocks that are knocked out, against explicit rows in float64."""

import pytest
import torch
from torch import Tensor, nn

from tests.reference.stand_alone import stand_alone
from videoattn.attention.blocks.cross_layer import CrossLayerNonLocal
from videoattn.attention.blocks.non_local import NonLocal
from videoattn.attention.blocks.self_attention import SelfAttention
from videoattn.attention.blocks.similarity import SimilarityAttention
from videoattn.attention.blocks.stand_alone import StandAloneAttention
from videoattn.attention.insert import insert_attention
from videoattn.explain.faithful.knockout import (
    answers_without,
    block_off,
    blocks_that_attend,
    row_order,
    without_key,
    without_keys,
)
from videoattn.explain.faithful.statistics import spearman
from videoattn.models.resnet3d import ResNet3d

BLOCKS = {
    "embedded_gaussian": lambda: NonLocal(8, key_pool=None),
    "gaussian, pooled keys": lambda: NonLocal(8, form="gaussian"),
    "dot_product": lambda: NonLocal(8, form="dot_product", key_pool=None),
    "cosine": lambda: SimilarityAttention(8, similarity="cosine", normalizer="sigmoid"),
    "additive": lambda: SimilarityAttention(8, similarity="additive"),
    "sagan": lambda: SelfAttention(8),
    "cross_layer": lambda: CrossLayerNonLocal(8, [8]),
}


def made(name: str) -> nn.Module:
    """Returns a block whose response is far from zero."""
    torch.manual_seed(0)
    block = BLOCKS[name]().double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
    return block


def clips(count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 8, 2, 4, 4, generator=generator, dtype=torch.float64)


def run(block: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return block(x, x) if isinstance(block, CrossLayerNonLocal) else block(x)


def parts(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the explicit rows (N, Q, P), the values (N, P, E), and the response (N, Q, E)."""
    with torch.no_grad():
        if isinstance(block, CrossLayerNonLocal):
            q, (k,), (v,) = block.project(x, x)
        else:
            q, k, v, _ = block.project(x)
        rows = block.weights(q, k)
    return rows, v, rows @ v


def finished(block: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """Returns the output of a block for a response (N, Q, E)."""
    video = y.transpose(1, 2).unflatten(2, x.shape[2:])
    with torch.no_grad():
        if isinstance(block, SelfAttention):
            return x + block.gamma * block.out(video)
        norm = block.bn[0] if isinstance(block, CrossLayerNonLocal) else block.bn
        return x + norm(block.out(video))


def zeroed(block: nn.Module, rows: Tensor, dropped: Tensor) -> Tensor:
    """Returns rows with the weight of dropped keys (a mask) at 0, a softmax scaled to sum to 1."""
    left = rows.masked_fill(dropped, 0)
    is_softmax = getattr(block, "normalizer", "softmax") == "softmax"
    return left / left.sum(-1, keepdim=True) if is_softmax else left


@pytest.mark.parametrize("name", BLOCKS)
def test_one_key_of_one_query(name: str) -> None:
    """The closed form y' = (y - w v) / (1 - w) of a softmax row, through the real block."""
    block, x = made(name), clips(2)
    rows, v, y = parts(block, x)
    query, keys = 5, torch.tensor([[3], [7]])
    with without_key(block, torch.tensor([query]), keys):
        got = run(block, x)
    expected = y.clone()
    for n, key in enumerate(keys.flatten()):
        w = rows[n, query, key]
        expected[n, query] = y[n, query] - w * v[n, key]
        if getattr(block, "normalizer", "softmax") == "softmax":
            expected[n, query] /= 1 - w
    torch.testing.assert_close(got, finished(block, expected, x), rtol=0, atol=1e-10)
    assert not torch.allclose(got.flatten(2)[:, :, query], run(block, x).flatten(2)[:, :, query])
    torch.testing.assert_close(run(block, x), finished(block, y, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("which", ["highest", "lowest"])
def test_keys_of_all_queries(name: str, which: str) -> None:
    block, x = made(name), clips(2)
    rows, v, _ = parts(block, x)
    count = -(-rows.shape[2] // 10)
    received = rows.sum(1).argsort(dim=1)
    chosen = received[:, -count:] if which == "highest" else received[:, :count]
    dropped = torch.zeros(rows.shape[0], 1, rows.shape[2], dtype=torch.bool)
    dropped.scatter_(2, chosen.unsqueeze(1), True)
    with without_keys(block, which, torch.Generator(), share=0.1):
        got = run(block, x)
    expected = finished(block, zeroed(block, rows, dropped) @ v, x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("which", ["highest", "lowest"])
@pytest.mark.parametrize(("border", "stride"), [("mask", 1), ("zero", 2)])
def test_keys_of_stand_alone_attention(border: str, stride: int, which: str) -> None:
    torch.manual_seed(0)
    block = StandAloneAttention(8, 8, stride, window=(3, 3, 3), heads=2, border=border)
    block = block.double().eval()
    for conv in (block.query, block.key):
        nn.init.normal_(conv.weight, std=0.3)
    x = clips()
    with torch.no_grad():
        received = block.maps(x)[""].rows(torch.arange(32)).sum(1)
        order = received.flatten().argsort(descending=which == "highest")[:4]
        dropped = [tuple(int(i) for i in torch.unravel_index(k, x.shape[2:])) for k in order]
        with without_keys(block, which, torch.Generator(), share=0.1):
            got = block(x)
        torch.testing.assert_close(got, stand_alone(block, x, dropped), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(block(x), stand_alone(block, x), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(got, block(x))


def test_random_keys_depend_on_the_seed() -> None:
    block, x = made("embedded_gaussian"), clips()
    results = []
    for seed in (0, 0, 1):
        with without_keys(block, "random", torch.Generator().manual_seed(seed)):
            results.append(run(block, x))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[0], run(block, x))


@pytest.mark.parametrize("name", ["embedded_gaussian", "sagan"])
def test_row_order_against_a_loop(name: str) -> None:
    """With as many places as keys, every key of the drawn queries is compared."""
    block, x = made(name), clips()
    model = nn.Sequential(block)
    found = row_order(model, block, x, torch.Generator().manual_seed(2))
    rows, v, y = parts(block, x)
    queries = torch.randperm(32, generator=torch.Generator().manual_seed(2))[:16]
    num_keys = rows.shape[2]
    orders = []
    for query in queries.tolist():
        w = rows[0, query]
        effects = []
        for key in range(num_keys):
            other = y.clone()
            other[0, query] = (y[0, query] - w[key] * v[0, key]) / (1 - w[key])
            change = finished(block, other, x) - finished(block, y, x)
            effects.append(change.norm())
        orders.append(
            (spearman(w, torch.stack(effects)),
             spearman(w * v[0].norm(dim=1), torch.stack(effects)))
        )  # fmt: skip
    expected = torch.tensor(orders).mean(0).tolist()
    assert list(found) == ["weights", "weighted_values"]
    assert list(found.values()) == pytest.approx(expected, abs=1e-6)


def test_a_block_in_groups_has_no_row_order() -> None:
    block = NonLocal(8, scope="space").double().eval()
    assert row_order(nn.Sequential(block), block, clips(), torch.Generator()) == {}


def test_a_new_block_can_be_switched_off_and_another_shape_cannot() -> None:
    torch.manual_seed(0)
    model = ResNet3d("i3d", depth=18, num_classes=4, width=8)
    insert_attention(model, NonLocal, after=["layer2.1"], name="non_local")
    model.eval()
    video = torch.randn(1, 3, 4, 32, 32)
    (block,) = blocks_that_attend(model).values()
    with torch.no_grad():
        expected = model(video)
        with block_off(block):
            assert torch.equal(model(video), expected)
        nn.init.normal_(block.bn.weight)
        nn.init.normal_(block.bn.bias)
        assert not torch.equal(model(video), expected)
        with block_off(block):
            assert torch.equal(model(video), expected)
        assert answers_without(model, video) == {"layer2.1_non_local": int(expected.argmax())}
        convolution = nn.Sequential(nn.Conv3d(3, 4, 1))
        with (
            block_off(convolution[0]),
            pytest.raises(ValueError, match="Conv3d is not an addition to its input"),
        ):
            convolution(video)
    wider = nn.Sequential(StandAloneAttention(3, 8), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    assert answers_without(wider, video) == {}
