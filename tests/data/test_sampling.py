import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from videoattn.data import sampling

RECORDS = Path(__file__).parents[1] / "records" / "sampling"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("row", json.loads((RECORDS / "mmaction2.json").read_text()))
def test_mmaction2_rows(row: dict) -> None:
    segments = row["clip_len"] == 1
    options = {"short_video": row.get("out_of_bound_opt", "loop")}
    if row["sampler"] == "UniformSample":
        pattern, options["num_clips"] = "uniform", row["num_clips"]
    elif segments:
        pattern = "segments"
    else:
        pattern, options["num_clips"] = "dense", row["num_clips"]
    if row.get("twice_sample"):
        options["twice_sample"] = True
    if "target_fps" in row:
        options["target_fps"] = float(row["target_fps"])
    sample = sampling.view_sampler(
        pattern,
        num_frames=row["num_clips"] if segments else row["clip_len"],
        frame_stride=row.get("frame_interval", 1),
        arithmetic="mmaction2",
        **options,
    )
    got = sample(row["total_frames"], row.get("fps", 25.0), generator())
    assert got.reshape(-1).tolist() == row["indices"]


@pytest.mark.parametrize("row", json.loads((RECORDS / "pyslowfast.json").read_text()))
def test_pyslowfast_rows(row: dict) -> None:
    sample = sampling.view_sampler(
        "dense",
        num_frames=row["num_frames"],
        frame_stride=row["sampling_rate"],
        num_clips=row["num_views"],
        arithmetic="pyslowfast",
        target_fps=float(row["target_fps"]),
        use_offset=row["use_offset"],
    )
    assert sample(row["total_frames"], row["fps"], generator()).tolist() == row["indices"]


@pytest.mark.parametrize("row", json.loads((RECORDS / "mmaction2.json").read_text()))
def test_plain_views_are_mmaction2(row: dict) -> None:
    if row["sampler"] != "SampleFrames" or "fps" in row or row.get("twice_sample"):
        return  # not what plain arithmetic offers
    segments = row["clip_len"] == 1
    sample = sampling.view_sampler(
        "segments" if segments else "dense",
        num_frames=row["num_clips"] if segments else row["clip_len"],
        frame_stride=row["frame_interval"],
        num_clips=1 if segments else row["num_clips"],
        short_video=row["out_of_bound_opt"],
    )
    assert sample(row["total_frames"], 25.0, generator()).reshape(-1).tolist() == row["indices"]


def test_mmaction2_at_a_target_rate_keeps_fractions_of_a_frame() -> None:
    # 97 frames at 25 fps, 32 x 2 at 30 fps: a span of 53.33 frames, 43.67 free, starts 10 apart.
    sample = sampling.view_sampler(
        "dense", num_frames=32, frame_stride=2, num_clips=5, arithmetic="mmaction2", target_fps=30.0
    )
    got = sample(97, 25.0, generator())
    assert got[:, 0].tolist() == [0, 10, 20, 30, 40]
    assert got[0].tolist() == [int(i * (53 + 1 / 3 - 1) / 31) for i in range(32)]
    # The middle of 43.67 free frames, by integer division.
    one = sampling.view_sampler(
        "dense", num_frames=32, frame_stride=2, arithmetic="mmaction2", target_fps=30.0
    )
    assert one(97, 25.0, generator())[0, 0] == 21
    # A video without a rate is treated as if it had the target's.
    assert one(97, 0.0, generator()).tolist() == one(97, 30.0, generator()).tolist()


def test_pyslowfast_offsets() -> None:
    # 300 frames at 30 fps, 8 x 8: 236 free. Distances are 78 with offsets, else 236 / 4 = 59.
    kwargs = {"num_frames": 8, "frame_stride": 8, "num_clips": 4, "arithmetic": "pyslowfast"}
    offset = sampling.view_sampler("dense", use_offset=True, **kwargs)
    assert offset(300, 30.0, generator())[:, 0].tolist() == [0, 78, 156, 234]
    assert sampling.view_sampler("dense", **kwargs)(300, 30.0, generator())[:, 0].tolist() == [
        *(0, 59, 118, 177)
    ]
    one = sampling.view_sampler(
        "dense", use_offset=True, num_frames=8, frame_stride=8, arithmetic="pyslowfast"
    )
    assert one(300, 30.0, generator())[0].tolist() == [118 + 9 * i for i in range(8)]


def test_pyslowfast_uses_the_frame_rate() -> None:
    sample = sampling.view_sampler("dense", num_frames=8, frame_stride=8, arithmetic="pyslowfast")
    assert sample(64, 60.0, generator()).tolist() == [[0, 18, 36, 54, 63, 63, 63, 63]]
    short = sampling.train_sampler(
        "dense", num_frames=8, frame_stride=8, arithmetic="pyslowfast", short_video="error"
    )
    with pytest.raises(sampling.ShortVideoError, match="has 64 frames, but the clip needs 128"):
        short(64, 60.0, generator())


def train_starts(
    num_video_frames: int, fps: float = 25.0, seeds: int = 300, **kwargs
) -> np.ndarray:
    sample = sampling.train_sampler("dense", arithmetic="mmaction2", **kwargs)
    drawn = [sample(num_video_frames, fps, generator(seed)) for seed in range(seeds)]
    return np.concatenate(drawn)


def test_mmaction2_training_clips() -> None:
    # ori_len 4 * 2 = 8: starts 0 ... 20 - 8.
    assert set(train_starts(20, num_frames=4, frame_stride=2)[:, 0]) == set(range(13))
    # No room for a whole part: the clip starts at 0 and wraps at the end.
    assert train_starts(5, num_frames=4, frame_stride=2, seeds=2)[0].tolist() == [0, 2, 4, 1]
    # Twice the rate, twice the span: 16 of 20 frames; the last step is linspace(0, 15, 4).
    drawn = train_starts(20, 50.0, num_frames=4, frame_stride=2, target_fps=25.0)
    assert set(drawn[:, 0]) == set(range(5))
    assert (drawn - drawn[:, :1]).tolist()[0] == [0, 5, 10, 15]


@pytest.mark.parametrize(
    ("num_video_frames", "keep", "of_segment"),
    [
        (15, False, [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}, {9, 10, 11}]),  # parts of 15 // 4 frames
        (15, True, [{0, 1, 2, 3}, {3, 4, 5, 6, 7}, {7, 8, 9, 10, 11}, {11, 12, 13, 14}]),
        (4, False, [{0}, {1}, {2}, {3}]),
        (3, False, [{0}, {1}, {2}, {2}]),  # around(i * 3 / 4)
        (1, False, [{0}, {0}, {0}, {0}]),
    ],
)
def test_mmaction2_training_segments(
    num_video_frames: int, keep: bool, of_segment: list[set[int]]
) -> None:
    sample = sampling.train_sampler(
        "segments", num_frames=4, arithmetic="mmaction2", keep_tail_frames=keep
    )
    drawn = np.concatenate([sample(num_video_frames, 25.0, generator(s)) for s in range(300)])
    if num_video_frames == 3:
        # around(0, 0.75, 1.5, 2.25) rounds to even.
        assert drawn[0].tolist() == [0, 1, 2, 2]
    for segment, positions in enumerate(of_segment):
        assert set(drawn[:, segment]) == positions


def test_mmaction2_training_clips_of_a_short_video() -> None:
    # 10 - 8 + 1 = 3 starts for 4 clips: drawn independently, then sorted.
    sample = sampling.train_sampler(
        "dense", num_frames=4, frame_stride=2, num_clips=4, arithmetic="mmaction2"
    )
    drawn = np.stack([sample(10, 25.0, generator(s))[:, 0] for s in range(200)])
    assert (np.diff(drawn, axis=1) >= 0).all()
    assert {tuple(row) for row in drawn} >= {(0, 0, 0, 0), (0, 0, 1, 2)}


def test_pyslowfast_training_starts_between_frames() -> None:
    sample = sampling.train_sampler("dense", num_frames=4, frame_stride=2, arithmetic="pyslowfast")
    drawn = np.concatenate([sample(20, 30.0, generator(s)) for s in range(300)])
    assert set(drawn[:, 0]) == set(range(12))
    # linspace(start, start + 7, 4), truncated: the fraction of the start matters.
    assert {tuple(row - row[0]) for row in drawn} == {(0, 2, 4, 7), (0, 2, 5, 7), (0, 3, 5, 7)}


def test_uniform_training_reaches_both_ends_of_each_segment() -> None:
    sample = sampling.train_sampler("uniform", num_frames=4)
    drawn = np.concatenate([sample(13, 25.0, generator(s)) for s in range(200)])
    for part in range(4):
        assert set(drawn[:, part]) == set(range(3 * part, 3 * part + 4))


def test_at_rate() -> None:
    constant = np.arange(20) / 25
    assert sampling.at_rate(constant, 25.0).tolist() == list(range(20))
    assert sampling.at_rate(constant, 12.5).tolist() == list(range(0, 20, 2))
    assert sampling.at_rate(constant, 50.0).tolist() == [i // 2 for i in range(40)]
    rounded = np.round(np.arange(300) / 30, 3)  # Matroska's milliseconds
    assert sampling.at_rate(rounded, 30.0).tolist() == list(range(300))
    varying = np.array([0.0, 0.1, 0.2, 0.5, 0.6])  # a gap between the third and the fourth
    assert sampling.at_rate(varying, 10.0).tolist() == [0, 1, 2, 2, 2, 3, 4, 4]
    assert sampling.at_rate(np.zeros(1), 10.0).tolist() == [0]


@pytest.mark.parametrize("num_video_frames", [1, 5, 31, 64, 300])
@pytest.mark.parametrize("short_video", ["loop", "repeat_last"])
def test_all_samplers_stay_inside(num_video_frames: int, short_video: sampling.ShortVideo) -> None:
    patterns = [("pyslowfast", "dense")]
    patterns += [
        (name, pattern)
        for name in ("plain", "mmaction2")
        for pattern in ("dense", "segments", "uniform")
    ]
    for arithmetic, pattern in patterns:
        kwargs = {"num_frames": 16, "frame_stride": 3, "short_video": short_video}
        kwargs["arithmetic"] = arithmetic
        train = sampling.train_sampler(pattern, **kwargs)
        one = (arithmetic, pattern) == ("mmaction2", "segments")
        views = sampling.view_sampler(pattern, num_clips=1 if one else 4, **kwargs)
        for sample, num_clips in ((train, 1), (views, 1 if one else 4)):
            got = sample(num_video_frames, 25.0, generator())
            assert got.shape == (num_clips, 16)
            assert got.dtype == np.int64
            assert got.min() >= 0
            assert got.max() < num_video_frames
            np.testing.assert_array_equal(got, sample(num_video_frames, 25.0, generator()))
            # mmaction2 may round a short video's last segment to the frame after the end: frame 0.
            if arithmetic != "mmaction2" and (short_video == "repeat_last" or pattern != "dense"):
                assert (np.diff(got, axis=1) >= 0).all()


def test_dense_train_reaches_every_start() -> None:
    sample = sampling.train_sampler("dense", num_frames=4, frame_stride=2)
    assert {int(sample(10, 25.0, generator(s))[0, 0]) for s in range(100)} == {0, 1, 2, 3}


def test_segments_train_has_one_frame_per_segment() -> None:
    sample = sampling.train_sampler("segments", num_frames=8)
    drawn = np.concatenate([sample(40, 25.0, generator(s)) for s in range(200)])
    for segment in range(8):
        assert set(drawn[:, segment] // 5) == {segment}
        assert len(set(drawn[:, segment])) == 5


def test_segments_views_interleave() -> None:
    sample = sampling.view_sampler("segments", num_frames=4, num_clips=2)
    assert sample(32, 25.0, generator()).tolist() == [[2, 10, 18, 26], [6, 14, 22, 30]]


@pytest.mark.parametrize("pattern", ["dense", "segments", "uniform"])
def test_short_video_error(pattern: sampling.Pattern) -> None:
    sample = sampling.train_sampler(pattern, num_frames=9, short_video="error")
    with pytest.raises(
        sampling.ShortVideoError,
        match=r"^has 8 frames, but the clip needs 9; "
        r"set short_video to loop or repeat_last, or ask for fewer frames$",
    ):
        sample(8, 25.0, generator())
    if pattern != "uniform":
        assert sample(9, 25.0, generator()).tolist() == [list(range(9))]


def test_missing_patterns_and_options() -> None:
    train_sampler = inspect.unwrap(sampling.train_sampler)  # values that the types exclude
    with pytest.raises(
        ValueError,
        match=r"^arithmetic: 'x' does not exist; choose from plain, mmaction2, pyslowfast$",
    ):
        train_sampler("dense", num_frames=8, arithmetic="x")
    with pytest.raises(
        ValueError, match=r"^sampling: plain has no 'x'; it has dense, segments, uniform$"
    ):
        train_sampler("x", num_frames=8)
    with pytest.raises(
        ValueError,
        match=r"^sampling: pyslowfast has no 'segments'; it has dense; or choose arithmetic plain$",
    ):
        sampling.view_sampler("segments", num_frames=8, arithmetic="pyslowfast")
    with pytest.raises(
        ValueError, match=r"^twice_sample: plain 'dense' sampling has no such option; leave it out$"
    ):
        sampling.view_sampler("dense", num_frames=8, twice_sample=True)
    with pytest.raises(ValueError, match=r"^num_clips: mmaction2 'segments' sampling has no such"):
        sampling.view_sampler("segments", num_frames=8, num_clips=2, arithmetic="mmaction2")
    twice = sampling.view_sampler("dense", num_frames=8, arithmetic="mmaction2", twice_sample=True)
    with pytest.raises(ValueError, match="twice_sample: dense clips need num_clips of 2 or more"):
        twice(100, 25.0, generator())
    for name in ("num_frames", "frame_stride", "num_clips"):
        with pytest.raises(ValueError, match=rf"^{name}: got 0; need at least 1$"):
            sampling.view_sampler("dense", **{"num_frames": 8, name: 0})
    with pytest.raises(ValueError, match=r"^frame_stride: got -2; need at least 1$"):
        sampling.train_sampler("dense", num_frames=8, frame_stride=-2)
    with pytest.raises(ValueError, match="num_video_frames: got 0; need at least 1"):
        sampling.view_sampler("dense", num_frames=8)(0, 25.0, generator())
