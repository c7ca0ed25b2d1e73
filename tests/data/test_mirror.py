from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from videoattn.data.synthetic import MOTIONS
from videoattn.data.transforms.mirror import Mirror, direction_pairs

SOMETHING = [
    "Pulling something from left to right",
    "Pulling something from right to left",
    "Pulling two ends of something but nothing happens",
    "Pushing [something] from right to left",
    "Pushing [something] from left to right",
    "Turning the camera left while filming something",
    "Turning the camera right while filming something",
    "Turning the camera upwards while filming something",
]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (
            list(MOTIONS),
            [("moves_left", "moves_right"), ("turns_clockwise", "turns_counter_clockwise")],
        ),
        (
            SOMETHING,
            [
                (SOMETHING[0], SOMETHING[1]),
                (SOMETHING[4], SOMETHING[3]),
                (SOMETHING[5], SOMETHING[6]),
            ],
        ),
        (
            ["Swiping Left", "Swiping Right", "Turning Hand Clockwise",
             "Turning Hand Counterclockwise", "Rolling Hand Forward"],
            [("Swiping Left", "Swiping Right"),
             ("Turning Hand Clockwise", "Turning Hand Counterclockwise")],
        ),
        (["TurnLeft", "TurnRight", "left hook", "upright"], [("TurnLeft", "TurnRight")]),
        (["left", "right"], [("left", "right")]),
        (["spin anti-clockwise", "spin clockwise"], [("spin clockwise", "spin anti-clockwise")]),
        (["left turn", "left_turn", "drinking", ""], []),
        ([], []),
    ],
)  # fmt: skip
def test_direction_pairs(names: list[str], pairs: list[tuple[str, str]]) -> None:
    assert sorted(map(sorted, direction_pairs(names))) == sorted(map(sorted, pairs))


def test_published_class_lists_have_no_direction_pairs(real_data: Path) -> None:
    folder = real_data / "annotations"
    kinetics = (folder / "label_map_k400.txt").read_text().splitlines()
    ucf101 = (folder / "ucf101_splits" / "classInd.txt").read_text().split()[1::2]
    hmdb51 = sorted({path.name.split("_test_split")[0] for path in folder.glob("hmdb51*/*split1*")})
    assert (len(kinetics), len(ucf101), len(hmdb51)) == (400, 101, 51)
    for names in (kinetics, ucf101, hmdb51):
        assert direction_pairs(names) == []
        Mirror(0.5, names)


def test_labels_of_mirrored_samples() -> None:
    names = ["grows", "moves_left", "moves_right", "spin_a", "spin_b"]
    mirror = Mirror(0.5, names, {"moves_right": "moves_left", "spin_b": "spin_b"})
    assert [mirror.label(label) for label in (-1, 0, 1, 2, 3, 4)] == [-1, 0, 2, 1, 3, 4]
    generators = [torch.Generator().manual_seed(seed) for seed in range(200)]
    assert 70 < sum(map(mirror.draw, generators)) < 130
    never, untouched = Mirror(0.0, ["left", "right"]), torch.Generator().manual_seed(0)
    assert not never.draw(untouched)  # and needs no pairs
    assert torch.equal(untouched.get_state(), torch.Generator().manual_seed(0).get_state())


@pytest.mark.parametrize(
    ("probability", "flip_labels", "message"),
    [
        (
            0.5, {},
            r"^flip: a mirrored clip of 'moves_left' is one of 'moves_right' \(2 such pairs\); set "
            r"flip to false, or flip_labels to the pairs: \{moves_left: moves_right, \.\.\.\}$",
        ),
        (
            0.5, {"moves_left": "moves_right"},
            r"^flip: a mirrored clip of 'turns_clockwise' is one of 'turns_counter_clockwise' "
            r"\(the only such pair\)",
        ),
        (
            0.5, {"move_left": "moves_right"},
            r"^flip_labels: 'move_left' is not a class \(did you mean moves_left\?\); the 8 "
            "classes begin with grows, moves_down, moves_left$",
        ),
        (
            0.5, {"moves_left": "moves_right", "moves_right": "moves_left"},
            "^flip_labels: 'moves_left' is in two pairs; name each pair once$",
        ),
        (1.5, {}, "^flip: got 1.5; need a probability, 0 to 1$"),
    ],
)  # fmt: skip
def test_invalid_settings_are_rejected(
    probability: float, flip_labels: Mapping[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Mirror(probability, list(MOTIONS), flip_labels)
