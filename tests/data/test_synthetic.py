"""Clips of the demo: the seed determines the frames, and no single frame reveals the motion."""

from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from videoattn.data.synthetic import (
    FRAME_RATES,
    MAX_FRAMES,
    MIN_FRAMES,
    MOTIONS,
    SIZE,
    TRAVEL,
    DemoClip,
    demo_clip,
    draw_states,
    encode_clip,
    object_centers,
    write_demo_clips,
)

OPPOSITES = [
    ("moves_left", "moves_right"),
    ("moves_up", "moves_down"),
    ("grows", "shrinks"),
    ("turns_clockwise", "turns_counter_clockwise"),
]


def decode_all(path: Path) -> tuple[torch.Tensor, str, int]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        frames = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return frames, stream.codec_context.name, int(stream.average_rate)


@cache
def states_of(motion: str, num_clips: int, num_frames: int = 25) -> dict[str, np.ndarray]:
    drawn = [
        draw_states(motion, num_frames=num_frames, rng=np.random.default_rng([9, number]))
        for number in range(num_clips)
    ]
    return {name: torch.stack([states[name] for states in drawn]).numpy() for name in TRAVEL}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    write_demo_clips(root, seed=3, num_train_per_class=2, num_test_per_class=1)
    return root


def test_classes_are_sorted_like_their_folders() -> None:
    assert list(MOTIONS) == sorted(MOTIONS)
    assert len(MOTIONS) == 8


def test_files_are_in_class_folders(written: Path) -> None:
    found = sorted(str(path.relative_to(written)) for path in written.rglob("*.mp4"))
    expected = [f"train/{name}/{number:04d}.mp4" for name in MOTIONS for number in range(2)]
    expected += [f"test/{name}/0000.mp4" for name in MOTIONS]
    assert found == sorted(expected)


def test_files_hold_their_clips(written: Path) -> None:
    clip = demo_clip("turns_clockwise", seed=3, split="train", number=1)
    frames, codec, rate = decode_all(written / "train" / "turns_clockwise" / "0001.mp4")
    assert codec == "h264"
    assert rate == clip.frame_rate
    assert frames.shape == clip.frames.shape
    # Chroma is stored at half the resolution, so that colors bleed at edges; averages are close.
    error = frames.float() - clip.frames.float()
    assert error.mean(dim=(0, 2, 3)).abs().max() < 2  # gray levels, per channel
    assert error.abs().mean() < 5


def test_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    for path in (first, second):
        encode_clip(path, demo_clip("grows", seed=5, split="test", number=4))
    assert first.read_bytes() == second.read_bytes()


def test_order_and_threads_do_not_change_a_clip(written: Path, tmp_path: Path) -> None:
    write_demo_clips(tmp_path, seed=3, num_train_per_class=1, num_test_per_class=1, num_threads=1)
    for path in tmp_path.rglob("*.mp4"):
        assert path.read_bytes() == (written / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize(
    ("motion", "seed", "split", "number"),
    [
        ("moves_right", 0, "train", 0),
        ("moves_left", 1, "train", 0),
        ("moves_left", 0, "test", 0),
        ("moves_left", 0, "train", 1),
    ],
)
def test_each_of_class_seed_split_and_number_changes_the_clip(
    motion: str, seed: int, split: str, number: int
) -> None:
    base = demo_clip("moves_left", seed=0, split="train", number=0).frames[0]
    other = demo_clip(motion, seed=seed, split=split, number=number).frames[0]  # type: ignore[arg-type]
    assert (base.int() - other.int()).abs().float().mean() > 5


def test_clip_is_small_uint8_video() -> None:
    clip = demo_clip("shrinks", seed=0, split="train", number=0)
    assert isinstance(clip, DemoClip)
    assert clip.frames.dtype == torch.uint8
    assert MIN_FRAMES <= len(clip.frames) <= MAX_FRAMES
    assert clip.frames.shape[1:] == (3, SIZE, SIZE)
    assert clip.frame_rate in FRAME_RATES


def test_the_centers_are_where_the_object_is() -> None:
    """The object covers each center and moves; the background there changes little."""
    centers = object_centers("moves_right", seed=0, split="test", number=4)
    frames = demo_clip("moves_right", seed=0, split="test", number=4).frames
    assert centers.shape == (len(frames), 2)
    travel = (centers[-1] - centers[0]) * 2 / SIZE
    assert TRAVEL["x"][0] <= travel[0] <= TRAVEL["x"][1]
    assert travel[1] == 0
    x, y = centers.round().long().T
    patches = torch.stack(
        [frames[t, :, y[t] - 5 : y[t] + 5, x[t] - 5 : x[t] + 5] for t in range(len(frames))]
    ).float()
    still = frames[:, :, y[0] - 5 : y[0] + 5, x[0] - 5 : x[0] + 5].float()
    assert patches.std(dim=0).mean() < 0.5 * still.std(dim=0).mean()


@pytest.mark.parametrize("motion", MOTIONS)
def test_only_the_named_state_changes_in_the_named_direction(motion: str) -> None:
    changing, sign = MOTIONS[motion]
    for name, values in states_of(motion, num_clips=20).items():
        steps = np.diff(values, axis=1)
        if name == changing:
            assert (steps * sign > 0).all()
            least, most = TRAVEL[name]
            travel = np.abs(values[:, -1] - values[:, 0])
            assert ((travel > least - 1e-5) & (travel < most + 1e-5)).all()
        else:
            assert (steps == 0).all()


@pytest.mark.parametrize(("motion", "opposite"), OPPOSITES)
def test_opposite_motions_have_the_same_states_in_reverse(motion: str, opposite: str) -> None:
    states, reverse = states_of(motion, num_clips=5), states_of(opposite, num_clips=5)
    for name in states:
        np.testing.assert_allclose(states[name], reverse[name][:, ::-1], atol=1e-6)


@pytest.mark.parametrize("state", TRAVEL)
def test_a_frame_at_a_random_moment_does_not_reveal_the_motion(state: str) -> None:
    # The mean and spread of a state over all clips and moments are equal for all classes.
    values = [states_of(motion, num_clips=500, num_frames=13)[state] for motion in MOTIONS]
    spread = float(np.std(np.concatenate(values)))
    for of_class in values:
        assert abs(of_class.mean() - np.mean(values)) < 0.1 * spread
        assert abs(of_class.std() - spread) < 0.1 * spread


def test_progress_is_reported_in_order(tmp_path: Path) -> None:
    seen: list[Path] = []
    paths = write_demo_clips(
        tmp_path, seed=0, num_train_per_class=1, num_test_per_class=1, on_clip=seen.append
    )
    assert seen == paths
    assert len(paths) == 16


def test_unknown_motion_lists_the_motions() -> None:
    with pytest.raises(
        ValueError, match=r"motion: 'jumps' does not exist; choose from grows, moves_down"
    ):
        demo_clip("jumps", seed=0, split="train", number=0)


def test_no_clips_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_test_per_class: got 0; need at least 1"):
        write_demo_clips(tmp_path, seed=0, num_train_per_class=1, num_test_per_class=0)


def test_masks_cover_the_drawn_pixels() -> None:
    """Alone on the picture, the object is where its mask is; the frames do not change."""
    arguments = {"seed": 1, "split": "test", "number": 3}
    plain = demo_clip("moves_left", **arguments)  # type: ignore[arg-type]
    clip = demo_clip("moves_left", **arguments, with_mask=True)  # type: ignore[arg-type]
    assert torch.equal(plain.frames, clip.frames)
    assert plain.frame_rate == clip.frame_rate
    assert plain.mask is plain.distractors is None
    assert clip.mask is not None
    assert clip.distractors is not None
    assert clip.mask.shape == (len(clip.frames), SIZE, SIZE)
    assert 2 <= len(clip.distractors) <= 4
    total = clip.mask + clip.distractors.sum(0)
    assert float(total.max()) <= 1 + 1e-5
    assert float(clip.distractors.min()) >= 0
    rows = torch.arange(SIZE).float() + 0.5
    centers = object_centers("moves_left", **arguments)  # type: ignore[arg-type]
    inside = (clip.mask > 0.5).float()
    x = (inside.sum(1) * rows).sum(1) / inside.sum((1, 2))
    assert (x - centers[:, 0]).abs().max() < 8  # the shape is not symmetric; edges cut it


def test_a_mask_is_where_the_picture_changes() -> None:
    """Two clips that differ in the object's motion alone differ inside the masks alone."""
    window = {"seed": 2, "split": "test", "number": 0, "with_mask": True}
    moving = demo_clip("moves_left", **window)  # type: ignore[arg-type]
    late = demo_clip("moves_left", **window, motion_window=(0.5, 0.9))  # type: ignore[arg-type]
    assert moving.mask is not None
    assert late.mask is not None
    either = torch.maximum(moving.mask, late.mask) > 0
    different = (moving.frames != late.frames).any(1)
    assert not (different & ~either).any()
    assert different[either].float().mean() > 0.8


def test_the_object_rests_outside_of_the_motion_window() -> None:
    clip = demo_clip("grows", seed=0, split="test", number=1, with_mask=True,
                     motion_window=(0.25, 0.75))  # fmt: skip
    assert clip.mask is not None
    areas = clip.mask.sum((1, 2))
    edges = len(areas) // 4 - 1
    assert torch.equal(areas[:edges], areas[:1].expand(edges))
    assert torch.equal(areas[-edges:], areas[-1:].expand(edges))
    assert float(areas[-1]) > 1.3 * float(areas[0])


def test_a_second_object_is_smaller_and_below() -> None:
    arguments = {"seed": 0, "split": "test", "number": 2, "with_mask": True}
    alone = demo_clip("moves_up", **arguments)  # type: ignore[arg-type]
    both = demo_clip("moves_up", **arguments, second="moves_left")  # type: ignore[arg-type]
    assert alone.distractors is not None
    assert both.distractors is not None
    assert both.mask is not None
    assert alone.mask is not None
    assert torch.equal(both.mask, alone.mask)
    assert len(both.distractors) == len(alone.distractors) + 1
    assert float(both.distractors[-1].sum()) > 0
    with pytest.raises(ValueError, match="motion: 'jumps' does not exist"):
        demo_clip("moves_up", seed=0, split="test", number=2, second="jumps")
