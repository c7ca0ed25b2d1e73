"""Frames by time, decoders and toolboxes' arithmetic, from the recipe to the sample."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.conftest import TORCHCODEC, MakeClip, needs_ffmpeg
from tests.data.test_decode import levels
from videoattn.data.dataset import ClipDataset, sample_generator
from videoattn.data.decode import DecodeError, check_decoder, decode
from videoattn.data.lists import Samples
from videoattn.data.sampling import view_sampler
from videoattn.data.transforms import TestTransform
from videoattn.engine.parallel import Parallel
from videoattn.recipe import data as recipe_data
from videoattn.recipe.config import Config
from videoattn.recipe.data import clock_of, make_loader
from videoattn.recipe.load import load

# 25 frames a second, with a gap of 20 frames in the middle: 3 s together.
TIMES = [*range(25), *range(45, 75)]


def dataset_of(path: Path, **kwargs) -> ClipDataset:
    return ClipDataset(
        Samples(path.parent, paths=[path.name], labels=[0], class_names=["a"]),
        sample_frames=view_sampler("segments", num_frames=6),
        transform=TestTransform(32, crop=(32, 32)),
        **kwargs,
    )


def test_the_target_rate_uses_the_times_of_frames(make_clip: MakeClip) -> None:
    path = make_clip("a.mp4", 55, size=(32, 64), times=TIMES)
    by_frame = dataset_of(path).fetch((0, 0))
    assert by_frame.numbers.tolist() == [[4, 13, 22, 32, 41, 50]]
    by_time = dataset_of(path, target_fps=10.0).fetch((0, 0))
    # 30 ticks; the middles of six parts of 0.5 s; nothing new from 1 s to 1.8 s.
    shown = [
        int(np.searchsorted(TIMES, t + 1e-6, "right")) - 1 for t in (5, 17.5, 30, 42.5, 55, 67.5)
    ]
    assert by_time.numbers.tolist() == [shown]
    assert shown[2] == shown[3] == 24
    assert levels(by_time.frames[0].float().round().byte()) == [min(n, 58) for n in shown]


def test_a_rate_is_needed(make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip("a.mpg", 9, codec="mpeg1video")
    monkeypatch.setattr("videoattn.data.decode.pyav.Video.fps", 0.0)
    failure = dataset_of(path, target_fps=10.0).fetch((0, 0))
    assert failure.reason == "has no frame rate, so its frames have no times"


@pytest.mark.parametrize("decoder", ["pyav", "decord", TORCHCODEC])
def test_samples_are_the_same_by_each_decoder(decoder: str, make_clip: MakeClip) -> None:
    path = make_clip("a.mp4", 55, size=(32, 64))
    ours = dataset_of(path).fetch((0, 0))
    theirs = dataset_of(path, decode=partial(decode, decoder=decoder)).fetch((0, 0))
    assert torch.equal(ours.frames, theirs.frames)


def recipe(root: Path, *words: str) -> Config:
    values = {"name": "x", "data": {"root": str(root), "num_workers": 0}}
    values["clip"] = {"num_frames": 4, "frame_stride": 2, "height": 32, "width": 32}
    values["test"] = {"short_side": 32}
    return load(values, words)


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ((), [[3, 5, 7, 9]]),
        pytest.param(("data.decoder=torchcodec",), [[3, 5, 7, 9]], marks=needs_ffmpeg),
        (("clip.target_fps=50",), [[5, 6, 7, 8]]),
        (("clip.arithmetic=mmaction2", "test.num_clips=2"), [[0, 2, 4, 6], [7, 9, 11, 13]]),
        # At 25 of 50 frames a second the span is 4 frames.
        (("clip.arithmetic=mmaction2", "clip.target_fps=50"), [[5, 6, 7, 8]]),
        (("clip.arithmetic=pyslowfast", "test.num_clips=2"), [[0, 1, 3, 5], [3, 5, 7, 9]]),
        (
            ("clip.arithmetic=pyslowfast", "test.num_clips=2", "test.use_offset=true"),
            [[0, 1, 3, 5], [7, 8, 10, 12]],
        ),
        (
            ("clip.arithmetic=mmaction2", "clip.sampling=segments", "test.twice_sample=true"),
            [[1, 5, 8, 12], [0, 3, 7, 10]],
        ),
        (("clip.sampling=uniform",), [[1, 4, 7, 11]]),
    ],
)
def test_recipe_chooses_the_frames(
    words: tuple[str, ...], numbers: list[list[int]], make_clip: MakeClip, tmp_path: Path
) -> None:
    make_clip("test/a/a.mp4", 14, size=(32, 64))
    (tmp_path / "train" / "a").mkdir(parents=True)
    make_clip("train/a/a.mp4", 14, size=(32, 64))
    config = recipe(tmp_path, *words)
    loader = make_loader(config, "test", Parallel())
    assert loader.dataset.fetch((0, 0)).numbers.tolist() == numbers


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("clip.target_fps=0",), r"^clip.target_fps: got 0.0; need frames per second, above 0$"),
        (
            ("data.layout=frames", "clip.target_fps=10"),
            r"^clip.target_fps: folders of images have no times; remove it$",
        ),
        (("test.twice_sample=true",), "^twice_sample: plain 'dense' sampling has no such option"),
        (
            ("clip.arithmetic=pyslowfast", "clip.sampling=uniform"),
            "^sampling: pyslowfast has no 'uniform'; it has dense; or choose arithmetic plain$",
        ),
        (
            ("clip.arithmetic=pyslowfast", "test.twice_sample=true"),
            "^twice_sample: pyslowfast 'dense' sampling has no such option; leave it out$",
        ),
    ],
)
def test_invalid_recipes_are_rejected(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    config = recipe(tmp_path, *words)
    refuses = clock_of if "target_fps" in message else recipe_data.test_frames
    with pytest.raises(ValueError, match=message):
        refuses(config)


def test_training_has_its_own_options(tmp_path: Path) -> None:
    from videoattn.recipe.data import _train_frames

    words = ("clip.arithmetic=mmaction2", "clip.sampling=segments", "train.num_clips=2")
    keep = _train_frames(recipe(tmp_path, *words, "clip.keep_tail_frames=true"))
    plain = _train_frames(recipe(tmp_path, *words))
    last = {"plain": set(), "keep": set()}
    for seed in range(100):
        for name, sample in (("plain", plain), ("keep", keep)):
            got = sample(15, 25.0, sample_generator(seed, 0, 0))
            assert got.shape == (2, 4)
            last[name] |= set(got[:, -1].tolist())
    assert last == {"plain": {9, 10, 11}, "keep": {11, 12, 13, 14}}
    with pytest.raises(ValueError, match=r"^keep_tail_frames: plain 'dense' sampling has no such"):
        _train_frames(recipe(tmp_path, "clip.keep_tail_frames=true"))


def test_a_refused_file_is_a_failure(make_clip: MakeClip) -> None:
    path = make_clip("a.mpg", 9, codec="mpeg1video")
    decord = partial(decode, decoder="decord")
    failure = dataset_of(path, decode=decord).fetch((0, 0))
    assert failure.reason == (
        "decoder decord is not exact in files of the kind mpeg; choose decoder pyav"
    )
    with pytest.raises(DecodeError, match="choose decoder pyav"):
        dataset_of(path, decode=decord, on_error="raise")[0, 0]


def test_large_videos_may_be_decoded_small(make_clip: MakeClip, tmp_path: Path) -> None:
    path = make_clip("train/a/a.mp4", 14, size=(96, 160))
    small = decode(path, range(14), short_side=48)
    assert small.shape == (14, 3, 48, 80)
    whole = decode(path, range(14)).float().mean(dim=(1, 2, 3))
    assert (small.float().mean(dim=(1, 2, 3)) - whole).abs().max() < 3  # the next one: 4
    assert decode(path, [3], short_side=49).shape[2:] == (96, 160)  # less than twice as large
    make_clip("test/a/a.mp4", 14, size=(96, 160))
    loader = make_loader(recipe(tmp_path, "data.decode_short_side=40"), "test", Parallel())
    assert loader.dataset.decode(path, [0, 1]).shape[2:] == (40, 67)
    for words in ({"decoder": "decord", "short_side": 40}, {"decoder": "pyav", "short_side": 0}):
        with pytest.raises(
            ValueError, match=r"^short_side: got \d+ with decoder \w+; need 1 or more"
        ):
            check_decoder(**words)
