"""Networks whose stages are drawn again."""

import copy

import pytest
import torch
from torch import Tensor

from videoattn.attention.blocks.non_local import NonLocal
from videoattn.attention.insert import insert_attention
from videoattn.explain.faithful.randomize import (
    own,
    randomized,
    similarity,
    stages_from_the_head,
    unrelated,
)
from videoattn.models.i3d import InceptionI3d
from videoattn.models.resnet3d import ResNet3d

STAGES = ["head", "layer4", "layer3", "layer2", "layer1", "stem"]


def network(seed: int) -> ResNet3d:
    torch.manual_seed(seed)
    model = ResNet3d("i3d", depth=18, num_classes=4, width=4)
    insert_attention(model, NonLocal, after=["layer2.1"], name="non_local")
    return model.eval()


def test_stages_divide_the_parameters() -> None:
    model = network(0)
    stages = stages_from_the_head(model)
    assert list(stages) == STAGES
    names = [name for group in stages.values() for name in group]
    assert sorted(names) == sorted(model.state_dict())
    assert stages["head"] == ["fc.weight", "fc.bias"]
    assert "layer2.1_non_local.theta.weight" in stages["layer2"]
    assert {name.split(".")[0] for name in stages["stem"]} == {"conv1", "bn1"}
    inception = stages_from_the_head(InceptionI3d(num_classes=2, width=0.1))
    assert list(inception) == ["head", "Mixed_5", "Mixed_4", "Mixed_3", "stem"]


@pytest.mark.parametrize("mode", ["cascade", "independent"])
def test_stages_are_replaced_and_the_network_is_unchanged(mode: str) -> None:
    model, fresh = network(0), network(1)
    before = copy.deepcopy(model.state_dict())
    drawn = fresh.state_dict()
    stages = stages_from_the_head(model)
    for number, (stage, changed) in enumerate(randomized(model, fresh, mode)):
        assert stage == STAGES[number]
        replaced = STAGES[: number + 1] if mode == "cascade" else [stage]
        keys = {key for name in replaced for key in stages[name]}
        for key, value in changed.state_dict().items():
            assert torch.equal(value, (drawn if key in keys else before)[key])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert number == 5


def test_the_same_network_has_similarity_one_and_seeds_differ() -> None:
    def fields(model: ResNet3d) -> list[Tensor]:
        video = torch.randn(3, 3, 4, 32, 32, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            return [x.sum(0) for x in model.layer2(model.layer1(model.conv1(video)))]

    model = network(0)
    start = fields(model)
    (*_, (_, same)) = randomized(model, network(0), "cascade")
    assert similarity(start, fields(same)) == ([pytest.approx(1)] * 3,) * 3
    others = [[f for _, m in randomized(model, network(s), "cascade") for f in fields(m)]
              for s in (1, 1, 2)]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(others[0], others[1], strict=True))
    assert not torch.equal(others[0][-1], others[2][-1])
    signed, absolute, negated = similarity(start, [-field for field in start])
    assert signed == negated == [pytest.approx(-1)] * 3
    assert absolute == [pytest.approx(1)] * 3


def test_what_is_a_clips_own_is_seen_below_what_all_clips_share() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(4, 5, 5, generator=generator) for _ in range(20)]
    shared = 5 * torch.randn(4, 5, 5, generator=generator)
    before = [x + shared for x in maps]
    assert torch.stack(own(before)).mean(0).abs().max() < 1e-12
    assert torch.stack(own([shared] * 12)).eq(0).all()
    # The part that all clips share is drawn again, the clip's own part is kept.
    kept = [x - shared.flip(0) for x in maps]
    signed, _, rest = (sum(values) / 20 for values in similarity(before, kept))
    assert signed < unrelated(before)[0]
    assert rest == pytest.approx(1)
    other = [torch.randn(4, 5, 5, generator=generator) for _ in maps]
    assert abs(sum(similarity(before, other)[2]) / 20) < 0.1


def test_the_band_of_unrelated_clips() -> None:
    """Independent maps are as similar as chance allows, equal maps are the same, one is too few."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(4, 5, 5, generator=generator) for _ in range(20)]
    low, high = unrelated(maps)
    assert low < 0 < high
    assert high - low < 4 * 2 * 0.1 / 20**0.5  # the deviation of one pair is 0.1
    assert unrelated(maps[:1] * 3) == pytest.approx((1, 1))
    shared = [x + 2 * maps[0] for x in maps[1:]]
    assert unrelated(shared)[0] > 0.5
    with pytest.raises(ValueError, match="unrelated clips: got 1 clip; need two or more"):
        unrelated(maps[:1])
