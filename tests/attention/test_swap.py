"""The global vectors of two clips in Learn to pay attention, exchanged."""

import pytest
import torch
from torch import Tensor

from tests.attention.test_hygiene import clip, leave_the_start
from videoattn.attention import record_attention
from videoattn.attention.blocks.pay_attention import LearnToPay
from videoattn.attention.swap import swap_global_vectors
from videoattn.recipe.config import AttentionConfig, ModelConfig
from videoattn.recipe.model import make_model

NETWORKS = {"i3d_r18": {"width": 16, "dropout": 0.0}, "tsn_r18": {"dropout": 0.0}}


def build(network: str, **options: str) -> torch.nn.Module:
    torch.manual_seed(0)
    attention = AttentionConfig("pay_attention", options=options)
    return leave_the_start(
        make_model(ModelConfig(network, NETWORKS[network], attention=attention), 3)
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_and_scores_with_the_vector_of_the_other_clip(network: str) -> None:
    model = build(network, compatibility="dp", normalizer="sigmoid").eval()
    a, b = clip(1, seed=1), clip(1, seed=2)
    (head,) = [module for module in model.modules() if isinstance(module, LearnToPay)]
    inputs: list[tuple[Tensor, ...]] = []
    handle = head.register_forward_hook(lambda module, args, output: inputs.append(args))
    with torch.no_grad(), record_attention(model) as maps:
        alone = [model(a), model(b)]
    handle.remove()
    own, swapped = swap_global_vectors(model, a, b)
    torch.testing.assert_close(own.logits, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert list(own.maps) == list(swapped.maps) == list(maps)
    (pooled_a, *levels_a), (pooled_b, *levels_b) = inputs
    with torch.no_grad():
        expected = [head(pooled_b, *levels_a), head(pooled_a, *levels_b)]
        found = [head.maps(pooled_b, *levels_a), head.maps(pooled_a, *levels_b)]
    expected = [logits.mean(1) if logits.ndim == 3 else logits for logits in expected]
    torch.testing.assert_close(swapped.logits, torch.cat(expected), rtol=1e-4, atol=1e-5)
    for index, name in enumerate(own.maps):
        for sample in range(2):
            torch.testing.assert_close(
                swapped.maps[name].weights[sample],
                found[sample][str(index)].weights[0],
                rtol=1e-4,
                atol=1e-6,
            )
    assert sum(len(m._forward_pre_hooks) for m in head.modules()) == 0


def test_what_has_no_effect_is_refused() -> None:
    a, b = clip(1, seed=1), clip(1, seed=2)
    with pytest.raises(ValueError, match="swap: the weights of this form of pay_attention do not"):
        swap_global_vectors(build("i3d_r18").eval(), a, b)
    plain = make_model(ModelConfig("i3d_r18", NETWORKS["i3d_r18"]), 3)
    with pytest.raises(ValueError, match="swap: ResNet3d has no Learn to pay attention"):
        swap_global_vectors(plain.eval(), a, b)
    with pytest.raises(ValueError, match="the network is in training mode, which mixes clips"):
        swap_global_vectors(plain.train(), a, b)
