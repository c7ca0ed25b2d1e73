"""Compares options of the attention systems with their formulas: values and gradients in float64.

tests/reference/formulas.py has the formulas of the papers and articles, written naively. The
other systems have such tests in files of their own; docs/attention.md lists them.
"""

import pytest
import torch
from torch import Tensor, nn

from tests.reference import formulas
from tests.reference.blocks import EXACT, assert_equal, clip, trained
from videoattn.attention.blocks.attention_stem import AttentionStem
from videoattn.attention.blocks.cbam import CBAM
from videoattn.attention.blocks.channel_attention import ChannelAttention
from videoattn.attention.blocks.interaction import InteractionLayer, InteractionPyramid
from videoattn.attention.blocks.pay_attention import LearnToPay, LevelAttention
from videoattn.attention.blocks.pyramid import (
    diversity_loss,
    interaction_loss,
    unit_rows,
)
from videoattn.attention.blocks.residual_attention import ResidualMask
from videoattn.attention.blocks.self_attention import SelfAttention
from videoattn.attention.blocks.similarity import SimilarityAttention


def small(block: nn.Module, factor: float = 0.3) -> nn.Module:
    """Returns a trained block whose softmaxes are not one-hot."""
    block = trained(block)
    for parameter in block.parameters():
        parameter.data = parameter.data * factor
    return block


def test_plain_channel_attention_is_the_articles_rewrite() -> None:
    block = small(ChannelAttention(5, project=True, form="plain"))
    assert_equal(block, formulas.channel_gate, [clip(2, 5, 2, 2, 3)])
    assert "bn.weight" not in block.state_dict()


def test_plain_similarity_is_the_articles_rewrite() -> None:
    block = small(SimilarityAttention(6, similarity="dot", form="plain", key_pool=None))
    assert_equal(block, formulas.spatial_gate, [clip(2, 6, 2, 2, 3)])
    assert sorted(block.state_dict()) == [
        f"{name}.{kind}" for name in ("g", "phi", "theta") for kind in ("bias", "weight")
    ]


def test_sagan_of_the_text() -> None:
    block = small(SelfAttention(16, variant="paper"))
    assert_equal(block, formulas.sagan, [clip(2, 16, 2, 2, 3)])


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (3, 4)])
def test_attention_stem(size: tuple[int, int]) -> None:
    block = small(AttentionStem(3, 8, heads=2, mixtures=3), 0.7)
    x = clip(2, 3, 2, *size)
    assert_equal(block, formulas.stem, [x])
    found = block.maps(x)[""]
    rows = found.rows_by_head(torch.arange(2 * size[0] * size[1]))[0].flatten(3)
    torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows.sum(-1)))
    values = formulas.stem_values(block, x).unflatten(1, (2, 4)).flatten(3)
    y = torch.einsum("nhqk,nhdk->nhdq", rows, values).flatten(1, 2).view(2, 8, 2, *size)
    torch.testing.assert_close(y, block(x), **EXACT)


def test_naive_attention_learning() -> None:
    mask = small(ResidualMask(4, depth=1, residual=False))
    u, trunk = clip(1, 4, 2, 4, 5), clip(1, 4, 2, 4, 5, seed=1)
    assert_equal(
        mask, lambda module, u, trunk: formulas.masked(module.mask(u, trunk), trunk), [u, trunk]
    )
    whole = ResidualMask(4, depth=1).double().eval()
    whole.load_state_dict(mask.state_dict())
    torch.testing.assert_close(whole(u, trunk), trunk + mask(u, trunk), **EXACT)


@pytest.mark.parametrize("compatibility", ["local", "local_mlp"])
@pytest.mark.parametrize("normalizer", ["softmax", "sigmoid"])
def test_compatibility_without_a_global_feature(compatibility: str, normalizer: str) -> None:
    made = small(LevelAttention(5, 7, compatibility=compatibility, normalizer=normalizer))
    g = clip(2, 7)
    assert_equal(made, formulas.attended, [clip(2, 5, 2, 2, 3)], lambda x: made(x, g))
    c = made.compatibility(clip(2, 5, 2, 2, 3), g)
    assert torch.equal(c, made.compatibility(clip(2, 5, 2, 2, 3), 100 * g))
    if compatibility == "local" and normalizer == "softmax":  # then g is not needed in pc either
        pc = LevelAttention(5, 7).double()
        pc.load_state_dict(made.state_dict())
        assert torch.equal(pc(clip(2, 5, 2, 2, 3), g), made(clip(2, 5, 2, 2, 3), g))


def test_global_feature_of_layers_after_the_last_level() -> None:
    head = small(LearnToPay(9, [4, 5], 3, compatibility="dp", global_layers=2), 1.0)
    levels = [clip(2, 4, 2, 4, 4), clip(2, 5, 2, 3, 2, seed=1)]
    pooled = clip(2, 9, seed=2)

    def formula(module: LearnToPay, one: Tensor, two: Tensor) -> Tensor:
        g = formulas.global_feature(module, two)
        vectors = [level(x, g) for level, x in zip(module.levels, (one, two), strict=True)]
        return module.classifiers[0](torch.cat(vectors, 1))

    assert_equal(head, formula, levels, lambda *levels: head(pooled, *levels))
    assert torch.equal(head(pooled, *levels), head(0 * pooled, *levels))
    assert head.ignores_pooled


@pytest.mark.parametrize("temporal", ["conv", "channel"])
def test_cbam_without_a_norm_is_the_sigmoid_of_the_convolution(temporal: str) -> None:
    """Equal to the form with a norm that changes nothing; the convolution has its own test."""
    block = small(CBAM(4, reduction=2, norm="none", temporal=temporal))
    normed = CBAM(4, reduction=2, temporal=temporal).double().eval()
    normed.load_state_dict(block.state_dict(), strict=False)
    for module in normed.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.ones_(module.weight)
            module.eps = 0.0
    assert not any("bn" in key for key in block.state_dict())
    assert_equal(block, lambda _, x: normed_with(normed, block, x), [clip(2, 4, 3, 4, 5)])


def normed_with(normed: CBAM, block: CBAM, x: Tensor) -> Tensor:
    state = {**dict(normed.named_parameters()), **dict(normed.named_buffers())}
    return torch.func.functional_call(normed, state | dict(block.named_parameters()), (x,))


def test_interaction_layer_with_a_row_for_each_position() -> None:
    layer = small(InteractionLayer(4, [3, 2], rows=[2, 3]))
    levels = [clip(2, 3, 2, 2, 3), clip(2, 2, 2, 2, 3, seed=1), clip(2, 4, 2, 2, 3, seed=2)]

    def formula(module: InteractionLayer, *levels: Tensor) -> Tensor:
        return formulas.interaction_layer(module, list(levels))

    assert_equal(layer, formula, levels, lambda *levels: layer(levels[-1], *levels[:-1]))
    frames = small(InteractionLayer(4, [3, 2], rows=[2, 3], scope="frame"))
    for t in range(2):  # each frame is the layer of one frame
        one = [x[:, :, t : t + 1] for x in levels]
        expected = formulas.interaction_layer(frames, one)
        got = frames(levels[-1], *levels[:-1])[:, :, t : t + 1]
        torch.testing.assert_close(got, expected, **EXACT)


def test_head_of_all_rows() -> None:
    head = small(InteractionPyramid(4, [3, 4], 3, rows=5))
    levels = [clip(2, 3, 2, 2, 3), clip(2, 4, 2, 2, 3, seed=1)]
    pooled = clip(2, 4)

    def formula(module: InteractionPyramid, *levels: Tensor) -> Tensor:
        return formulas.all_rows(module, list(levels))

    assert_equal(head, formula, levels, lambda *levels: head(pooled, *levels))


def test_every_row_reaches_the_classifier_only_with_rows() -> None:
    """The mean of the rows of M depends on one weighting; rows of their own do not."""
    levels = [clip(2, 3, 2, 2, 3), clip(2, 4, 2, 2, 3, seed=1)]
    for classify in ("mean", "rows"):
        head = small(InteractionPyramid(4, [3, 4], 3, rows=5, classify=classify))
        order = torch.tensor([3, 1, 4, 0, 2])
        before = head(clip(2, 4), *levels)
        for linear in head.pyramid.scores:
            linear.weight.data = linear.weight.data[order]
        same = torch.allclose(head(clip(2, 4), *levels), before, rtol=1e-9)
        assert same == (classify == "mean")


def test_balanced_losses() -> None:
    scores = [clip(2, 4, 6, seed=s).requires_grad_() for s in range(3)]
    x = clip(2, 6, 5, seed=5)
    fused = sum(scores)
    assert isinstance(fused, Tensor)
    rows, a, own = unit_rows(fused), fused.softmax(-1), [y.softmax(-1) for y in scores]
    got = (interaction_loss(rows, x), diversity_loss(a, own))
    wanted = (
        torch.stack([formulas.balanced_interaction(rows[n], x[n]) for n in range(2)]),
        torch.stack([formulas.balanced_diversity(a[n], [s[n] for s in own]) for n in range(2)]),
    )
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
        gradients = [torch.autograd.grad(z.sum(), scores, retain_graph=True) for z in (one, other)]
        for first, second in zip(*gradients, strict=True):
            torch.testing.assert_close(first, second, **EXACT)
            assert first.abs().max() > 1e-3
