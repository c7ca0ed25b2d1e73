"""The fast path of every block against the whole map: values and every gradient, in float64."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from tests.reference.blocks import clip, trained
from tests.reference.cgnl import cgnl
from videoattn.attention import functional
from videoattn.attention.blocks.cgnl import CompactNonLocal
from videoattn.attention.blocks.cross_layer import CrossLayerNonLocal
from videoattn.attention.blocks.non_local import FORMS, NonLocal
from videoattn.attention.blocks.self_attention import SelfAttention
from videoattn.attention.blocks.similarity import SIMILARITIES, SimilarityAttention
from videoattn.attention.functional import NORMALIZERS

BLOCKS = [
    *(NonLocal(4, form=form, scope=s) for form in FORMS for s in ("space_time", "space", "time")),
    *(SelfAttention(8, variant=variant) for variant in ("authors", "plain")),
    *(
        SimilarityAttention(4, similarity=similarity, normalizer=normalizer)
        for similarity, normalizer in itertools.product(SIMILARITIES, NORMALIZERS)
    ),
]


def gradients(block: nn.Module, y: Tensor, *inputs: Tensor) -> list[Tensor]:
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
    found = torch.autograd.grad(loss, [*inputs, *block.parameters()], allow_unused=True)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: type(block).__name__)
def test_fast_equals_explicit(block: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "MOST_AT_ONCE", 200)
    trained(block)
    width = 8 if isinstance(block, SelfAttention) else 4
    x = clip(2, width, 3, 4, 4).requires_grad_()
    fast = block(x)
    monkeypatch.setattr(block, "path", "explicit")
    explicit = block(x)
    for a, b in zip(
        [fast, *gradients(block, fast, x)], [explicit, *gradients(block, explicit, x)], strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: type(block).__name__)
def test_the_path_of_a_block_reaches_its_attention(
    block: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    softmax = getattr(block, "normalizer", "softmax") == "softmax"
    monkeypatch.setattr(block, "path", "linear" if softmax else "fused")
    with pytest.raises(ValueError, match=r"path: got '(linear|fused)'; for"):
        trained(block)(clip(1, 8 if isinstance(block, SelfAttention) else 4, 2, 4, 4))


@pytest.mark.parametrize("mode", ["per_layer", "joint"])
def test_cross_layer_fast_equals_explicit(mode: str) -> None:
    block = trained(CrossLayerNonLocal(4, [3, 5], mode=mode, inner_channels=2))
    x = clip(2, 4, 2, 3, 2).requires_grad_()
    sources = [clip(2, 3, 4, 3, 2).requires_grad_(), clip(2, 5, 1, 4, 4).requires_grad_()]
    fast = block(x, *sources)
    block.path = "explicit"
    explicit = block(x, *sources)
    for a, b in zip(
        [fast, *gradients(block, fast, x, *sources)],
        [explicit, *gradients(block, explicit, x, *sources)],
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("norm", ["gn", "bn"])
@pytest.mark.parametrize("kernel", ["dot", "gaussian"])
@pytest.mark.parametrize("exact_beta", [True, False])
def test_compact_equals_the_whole_map(norm: str, kernel: str, exact_beta: bool) -> None:
    block = trained(
        CompactNonLocal(8, groups=2, norm=norm, kernel=kernel, gamma=0.3, exact_beta=exact_beta)
    )
    x = clip(2, 8, 2, 3, 2).requires_grad_()
    fast, explicit = block(x), cgnl(block, x)
    for a, b in zip(gradients(block, fast, x), gradients(block, explicit, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
