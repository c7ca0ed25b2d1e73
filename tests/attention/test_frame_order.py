"""Two systems make a network depend on the order of frames, if its convolutions do not."""

import pytest
import torch
from torch import nn

from videoattn.attention.systems import SYSTEMS
from videoattn.recipe.config import AttentionConfig, ModelConfig
from videoattn.recipe.model import make_model

DEPEND_ON_THE_ORDER = {"cbam", "stand_alone"}  # a convolution over frames; relative positions
NARROW = {"width": 16}


def change_by_permutation(config: ModelConfig) -> float:
    """Returns how much a permutation of pairs of frames, which C2D pools, changes the logits,
    relative to their size."""
    torch.manual_seed(0)
    model = make_model(config, 3).double().eval()
    for parameter in model.parameters():
        if parameter.numel() == 1 or not parameter.any():  # blocks that start as the identity
            nn.init.normal_(parameter, std=0.5)
    video = torch.randn(1, 3, 10, 64, 64, dtype=torch.float64)
    pairs = torch.tensor([3, 0, 4, 1, 2])
    permuted = video.unflatten(2, (5, 2))[:, :, pairs].flatten(2, 3)
    with torch.no_grad():
        logits = model(video)
        return float((model(permuted) - logits).abs().max() / logits.std())


@pytest.mark.parametrize("system", [None, *SYSTEMS])
def test_c2d_does_not_depend_on_the_order_of_frames(system: str | None) -> None:
    config = ModelConfig("c2d_r18", options=NARROW, attention=AttentionConfig(system))
    if system in DEPEND_ON_THE_ORDER:
        assert change_by_permutation(config) > 1e-6
    else:
        assert change_by_permutation(config) < 1e-12


@pytest.mark.parametrize("system", [None, "non_local"])
def test_a_tsn_does_not_depend_on_the_order_of_frames(system: str | None) -> None:
    config = ModelConfig("tsn_r18", attention=AttentionConfig(system))
    assert change_by_permutation(config) < 1e-12


def test_temporal_convolutions_depend_on_the_order() -> None:
    assert change_by_permutation(ModelConfig("i3d_r18", options=NARROW)) > 1e-3
