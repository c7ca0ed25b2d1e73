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
    if row["sampler"] == "UniformSample":
        got = sampling.mmaction2_uniform(row["total_frames"], row["clip_len"], row["num_clips"])
    else:
        fps_ratio = row["fps"] / row["target_fps"] if "fps" in row else None
        got = sampling.mmaction2_views(
            row["total_frames"],
            row["clip_len"],
            row["frame_interval"],
            row["num_clips"],
            twice_sample=row.get("twice_sample", False),
            fps_ratio=fps_ratio,
            out_of_bound=row["out_of_bound_opt"],
        )
    assert got.reshape(-1).tolist() == row["indices"]


@pytest.mark.parametrize("row", json.loads((RECORDS / "pyslowfast.json").read_text()))
def test_pyslowfast_rows(row: dict) -> None:
    got = sampling.pyslowfast_views(
        row["total_frames"],
        row["num_frames"],
        row["sampling_rate"],
        row["num_views"],
        fps=row["fps"],
        target_fps=float(row["target_fps"]),
        use_offset=row["use_offset"],
    )
    assert got.tolist() == row["indices"]


@pytest.mark.parametrize("arithmetic", ["plain", "mmaction2"])
@pytest.mark.parametrize("row", json.loads((RECORDS / "mmaction2.json").read_text()))
def test_view_sampler_is_mmaction2(row: dict, arithmetic: sampling.Arithmetic) -> None:
    if row["sampler"] != "SampleFrames" or "fps" in row or row.get("twice_sample"):
        return  # not what view_sampler offers
    segments = row["clip_len"] == 1
    sample = sampling.view_sampler(
        "segments" if segments else "dense",
        num_frames=row["num_clips"] if segments else row["clip_len"],
        frame_stride=row["frame_interval"],
        num_clips=1 if segments else row["num_clips"],
        short_video=row["out_of_bound_opt"],
        arithmetic=arithmetic,
    )
    assert sample(row["total_frames"], 25.0, generator()).reshape(-1).tolist() == row["indices"]


def test_view_sampler_pyslowfast_reads_the_frame_rate() -> None:
    sample = sampling.view_sampler("dense", num_frames=8, frame_stride=8, arithmetic="pyslowfast")
    assert sample(64, 60.0, generator()).tolist() == [[0, 18, 36, 54, 63, 63, 63, 63]]


@pytest.mark.parametrize("num_video_frames", [1, 5, 31, 64, 300])
@pytest.mark.parametrize("short_video", ["loop", "repeat_last"])
def test_all_samplers_stay_inside(num_video_frames: int, short_video: sampling.ShortVideo) -> None:
    for pattern in ("dense", "segments"):
        kwargs = {"num_frames": 16, "frame_stride": 3, "short_video": short_video}
        train = sampling.train_sampler(pattern, **kwargs)
        views = sampling.view_sampler(pattern, num_clips=4, **kwargs)
        for sample, num_clips in ((train, 1), (views, 4)):
            got = sample(num_video_frames, 25.0, generator())
            assert got.shape == (num_clips, 16)
            assert got.dtype == np.int64
            assert got.min() >= 0
            assert got.max() < num_video_frames
            np.testing.assert_array_equal(got, sample(num_video_frames, 25.0, generator()))
            if short_video == "repeat_last" or pattern == "segments":
                assert (np.diff(got, axis=1) >= 0).all()


def test_dense_train_reaches_every_start() -> None:
    starts = {int(sampling.dense_train(10, 4, 2, generator(s))[0, 0]) for s in range(100)}
    assert starts == {0, 1, 2, 3}


def test_segments_train_has_one_frame_per_segment() -> None:
    drawn = np.concatenate([sampling.segments_train(40, 8, generator(s)) for s in range(200)])
    for segment in range(8):
        assert set(drawn[:, segment] // 5) == {segment}
        assert len(set(drawn[:, segment])) == 5


def test_segments_views_interleave() -> None:
    assert sampling.segments_views(32, 4, 2).tolist() == [[2, 10, 18, 26], [6, 14, 22, 30]]


@pytest.mark.parametrize("pattern", ["dense", "segments"])
def test_short_video_error(pattern: sampling.Pattern) -> None:
    sample = sampling.train_sampler(pattern, num_frames=9, short_video="error")
    with pytest.raises(
        sampling.ShortVideoError,
        match=r"^has 8 frames, but the clip needs 9; "
        r"set short_video to loop or repeat_last, or ask for fewer frames$",
    ):
        sample(8, 25.0, generator())
    assert sample(9, 25.0, generator()).tolist() == [list(range(9))]


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"^pattern: got 'x'; choose from dense, segments$"):
        raise sampling._unknown_pattern("x")
    with pytest.raises(ValueError, match="pyslowfast has no 'segments' pattern"):
        sampling.view_sampler("segments", num_frames=8, arithmetic="pyslowfast")
    with pytest.raises(ValueError, match="num_video_frames: got 0; need at least 1"):
        sampling.dense_views(0, 8, 1, 1)
