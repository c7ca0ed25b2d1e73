import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.conftest import MakeClip
from tests.data.transformed import transformed
from videoattn.data.classes import LabelNoise
from videoattn.data.dataset import ClipDataset, Sample, sample_generator
from videoattn.data.decode import DecodeError, Video, container, count_frames, decode
from videoattn.data.decode.source import VideoSource
from videoattn.data.lists import Samples, read_folders
from videoattn.data.sampling import train_sampler, view_sampler
from videoattn.data.shards import Shards
from videoattn.data.transforms import AreaCrop, TestTransform, TrainTransform
from videoattn.data.transforms.mirror import Mirror
from videoattn.types import Failure


def train_set(samples: Samples | Shards, make=ClipDataset, **kwargs) -> ClipDataset:
    sampler = train_sampler("dense", num_frames=4, frame_stride=2, short_video="error")
    transform = TrainTransform(AreaCrop((16, 16), area=(0.5, 1.0)))
    return make(samples, sample_frames=sampler, transform=transform, **kwargs)


def test_sample(thirteen: Path) -> None:
    dataset = train_set(read_folders(thirteen))
    assert len(dataset) == 13
    sample = dataset[0, 7]
    assert isinstance(sample, Sample)
    assert (sample.label, sample.index) == (1, 7)
    assert sample.frames.shape == (1, 4, 3, 16, 16)
    levels = ((sample.frames.float().mean(dim=(0, 2, 3, 4)) - 20) / 4).round()
    assert levels.diff().tolist() == [2, 2, 2]


def test_randomness_depends_on_seed_epoch_and_index(thirteen: Path) -> None:
    samples = read_folders(thirteen)
    dataset, again = train_set(samples), train_set(samples)
    first = [dataset[0, i].frames for i in range(13)]
    torch.manual_seed(1)
    assert all(torch.equal(again[0, i].frames, first[i]) for i in reversed(range(13)))
    assert not all(torch.equal(dataset[1, i].frames, first[i]) for i in range(13))
    other = train_set(samples, seed=1)
    assert not all(torch.equal(other[0, i].frames, first[i]) for i in range(13))
    seeds = {sample_generator(*key).initial_seed() for key in [(0, 0, 1), (0, 1, 0), (1, 0, 0)]}
    assert len(seeds) == 3


def test_views_are_clips_times_crops(thirteen: Path) -> None:
    samples = read_folders(thirteen)
    transform = TestTransform(32, crop=(32, 32), num_crops=3)
    sampler = view_sampler("dense", num_frames=3, frame_stride=2, num_clips=2)
    dataset = ClipDataset(samples, sample_frames=sampler, transform=transform)
    frames = dataset[0, 12].frames
    assert frames.shape == (6, 3, 3, 32, 32)
    whole = decode(samples.path(12), range(22))
    for clip, indices in enumerate(sampler(22, 25.0, torch.Generator())):
        crops = transformed(transform, whole[torch.from_numpy(indices)][None], torch.Generator())
        assert torch.equal(frames[3 * clip : 3 * clip + 3], crops)


def test_still_frame_repeats_the_middle(thirteen: Path) -> None:
    samples = read_folders(thirteen)
    moving, still = train_set(samples)[0, 5].frames, train_set(samples, still_frame=True)[0, 5]
    assert torch.equal(still.frames, moving[:, 2:3].expand_as(moving))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", r"the file is empty \(0 bytes\)"),
        ("text.avi", b"no video\n" * 9, "cannot be opened as a video: Invalid data found when .*"),
        (
            "short.mp4",
            None,
            "has 6 frames, but the clip needs 7; set short_video to loop or repeat_last, "
            "or ask for fewer frames",
        ),
    ],
)
def test_failures(
    name: str, content: bytes | None, reason: str, make_clip: MakeClip, tmp_path: Path
) -> None:
    path = tmp_path / "a" / name
    if content is None:
        make_clip(f"a/{name}", 6)
    else:
        path.parent.mkdir()
        path.write_bytes(content)
    samples = Samples(tmp_path, paths=[f"a/{name}"], labels=[0], class_names=["a"])
    with pytest.raises(DecodeError, match=f"^{re.escape(str(path))}: {reason}$"):
        train_set(samples)[0, 0]
    failure = train_set(samples, on_error="skip")[0, 0]
    assert isinstance(failure, Failure)
    assert (failure.index, failure.path) == (0, str(path))
    assert re.fullmatch(reason, failure.reason)


def test_fewer_frames_than_packets(make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that proves too large is replaced for that sample, and the sample drawn again."""
    path = make_clip("a/a.mp4", 12)
    samples = Samples(path.parent, paths=["a.mp4"], labels=[0], class_names=["a"])
    want = train_set(samples)[0, 0].frames
    samples.num_frames, samples.fps = np.array([1000]), np.array([25.0])
    dataset = train_set(samples)
    assert torch.equal(dataset[0, 0].frames, want)
    assert torch.equal(dataset[0, 0].frames, want)


def test_counts_once(thirteen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = train_set(read_folders(thirteen))
    first = dataset[0, 3]
    monkeypatch.setattr(Video, "expect_frames", None)
    assert torch.equal(dataset[0, 3].frames, first.frames)


COUNTED = [
    "ucf101/JumpingJack/v_JumpingJack_g22_c04.avi",  # the header is right
    "ucf101/GolfSwing/v_GolfSwing_g22_c03.avi",  # states too many frames
    "hmdb51/pour/KOREAN_TEA_CEREMONY_-_Simple_Demo_pour_u_nm_np1_fr_med_0.avi",  # too few
    "derived_truncated/avi_cut_60pct.avi",
    "ucf11/biking/v_biking_01/v_biking_01_01.mpg",  # states none
    "broken/corrupted.mp4",
    "codec/realshort.mp4",
    "timing/unordered.mov",
]


@pytest.mark.parametrize("target_fps", [None, 10.0])
@pytest.mark.parametrize("name", COUNTED)
def test_clips_are_the_same_whether_or_not_the_number_of_frames_is_known(
    name: str, target_fps: float | None, real_data: Path
) -> None:
    num_frames, fps = count_frames(real_data / "fixtures" / name)
    unknown, known = (
        Samples(
            real_data / "fixtures",
            paths=[name],
            labels=[0],
            class_names=["a"],
            num_frames=None if count is None else np.array([count]),
            fps=None if count is None else np.array([fps]),
        )
        for count in (None, num_frames)
    )
    sampler = train_sampler("segments", num_frames=6)
    transform = TrainTransform(AreaCrop((16, 16), area=(0.5, 1.0)))
    options = {"sample_frames": sampler, "transform": transform, "target_fps": target_fps}
    first, expected = ClipDataset(unknown, **options), ClipDataset(known, **options)
    for epoch in (0, 0, 1):  # the first counts
        found, want = first[epoch, 0], expected[epoch, 0]
        assert np.array_equal(found.numbers, want.numbers)
        assert torch.equal(found.frames, want.frames)
        assert found.fps == want.fps


@pytest.mark.parametrize("name", [COUNTED[0], "codec/realshort.mp4"])
def test_a_video_is_opened_once(
    name: str, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    original = container.open_container

    def open_container(source: VideoSource) -> object:
        opened.append(source)
        return original(source)

    monkeypatch.setattr(container, "open_container", open_container)
    samples = Samples(real_data / "fixtures", paths=[name], labels=[0], class_names=["a"])
    sampler = train_sampler("segments", num_frames=6)
    transform = TrainTransform(AreaCrop((16, 16), area=(0.5, 1.0)))
    assert isinstance(
        ClipDataset(samples, sample_frames=sampler, transform=transform)[0, 0], Sample
    )
    assert len(opened) == 1


def test_label_noise_comes_before_mirroring(thirteen: Path) -> None:
    samples = read_folders(thirteen)
    names = samples.class_names
    noise = LabelNoise(0.5, len(names), seed=3)
    pairs = dict(zip(names[0::2], names[1::2], strict=False))
    mirror = Mirror(0.5, names, pairs)
    dataset = train_set(samples, label_noise=noise, mirror=mirror)
    found = [dataset[epoch, i] for epoch in range(3) for i in range(13)]
    assert {sample.mirrored for sample in found} == {False, True}
    for sample in found:
        wrong = noise.label(samples.label(sample.index), sample.index)
        assert sample.label == (mirror.label(wrong) if sample.mirrored else wrong)
