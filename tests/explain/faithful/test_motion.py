"""Maps against the generator's masks: with the masks themselves, uniform maps, and rows by hand."""

import pytest
import torch

from videoattn.attention.maps import PairwiseMap
from videoattn.data.synthetic import demo_clip
from videoattn.explain.truth import cells, place_scores, rival_scores, time_scores, tracking


def masks(motion: str = "moves_right", number: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    clip = demo_clip(motion, seed=0, split="test", number=number, with_mask=True)
    assert clip.mask is not None
    assert clip.distractors is not None
    return clip.mask[:24], clip.distractors[:, :24]


def test_the_mask_itself_is_a_perfect_map() -> None:
    mask, distractors = masks()
    field = cells(mask, (6, 7, 7))
    scores = place_scores(field, mask, distractors)
    assert scores["pointing"] == 1
    assert scores["mass"] >= 0.5
    # By hand: the cells are boxes of 4 frames and 16 x 16 pixels.
    blocks = mask.double().unflatten(2, (7, 16)).unflatten(1, (7, 16)).unflatten(0, (6, 4))
    shares = blocks.mean((1, 3, 5))
    assert scores["mass"] == pytest.approx(float(shares.square().sum() / shares.sum()), abs=1e-9)
    assert scores["lift"] == pytest.approx(scores["mass"] / float(mask.mean()), rel=1e-5)
    uniform = place_scores(torch.ones(6, 7, 7), mask, distractors)
    assert uniform["mass"] == pytest.approx(float(mask.double().mean()), abs=1e-6)
    assert uniform["lift"] == pytest.approx(1)
    assert uniform["pointing"] == pytest.approx(uniform["pointing_chance"])
    assert uniform["distractors"] == pytest.approx(uniform["distractors_area"], abs=1e-6)


def test_an_object_outside_of_the_crop_scores_at_chance() -> None:
    nothing = torch.zeros(24, 112, 112)
    scores = place_scores(torch.ones(6, 7, 7), nothing, nothing[None])
    assert scores == dict.fromkeys(scores, 0.0) | {"lift": 1.0}
    assert set(rival_scores(torch.ones(6, 7, 7), nothing, nothing).values()) == {0.5}


def test_a_map_of_another_moment_points_beside_the_object() -> None:
    """The place of the object in the other half of the clip."""
    right, late = [], []
    for number in range(6):
        mask, distractors = masks(number=number)
        field = cells(mask, (24, 14, 14)).square()
        shifted = field.roll(12, 0)
        right.append(place_scores(field, mask, distractors))
        late.append(place_scores(shifted, mask, distractors))
    for name in ("pointing", "mass"):
        ours, theirs = (sum(score[name] for score in scores) for scores in (right, late))
        assert theirs < ours


def test_time_and_the_right_object() -> None:
    moving = torch.tensor([0.0] * 6 + [1.0] * 12 + [0.0] * 6)
    inside = torch.zeros(6, 2, 2)
    inside[2:4] = 1.0
    assert time_scores(inside, moving) == {"time": 1.0, "time_chance": 0.5}
    assert time_scores(torch.ones(6, 2, 2), moving)["time"] == pytest.approx(0.5)
    first, second = torch.zeros(2, 24, 4, 4)
    first[:, :2], second[:, 3] = 1.0, 1.0
    field = cells(first, (6, 4, 4)) * 3 + cells(second, (6, 4, 4))
    scores = rival_scores(field, first, second)
    assert scores["right_object"] == pytest.approx(2 * 3 / (2 * 3 + 1))
    assert scores["right_object_chance"] == pytest.approx(2 / 3)


def test_rows_that_track_and_rows_that_stay() -> None:
    """A square that moves one column a frame; rows on the square, or on the query's own place."""
    grid = (4, 4, 4)
    mask = torch.zeros(4, 4, 4)
    for frame in range(4):
        mask[frame, 1, frame] = 1.0
    rows = {"tracking": mask, "staying": None}
    for name, shown in rows.items():
        weights = torch.zeros(1, 1, 64, *grid)
        for query in range(64):
            place = torch.zeros(grid)
            place[:, query // 4 % 4, query % 4] = 1.0
            weights[0, 0, query] = place if shown is None else shown
        found = PairwiseMap("pairwise", weights, torch.zeros(64, 3).long(), grid, grid, True)
        scores = tracking(found, mask)
        assert scores is not None
        other = {"tracking": "staying", "staying": "tracking"}[name]
        assert scores[name] == pytest.approx(1)
        assert scores[other] == 0
        assert scores["tracking_chance"] == scores["staying_chance"] == pytest.approx(1 / 16)
    assert tracking(found, torch.zeros(4, 4, 4)) is None
