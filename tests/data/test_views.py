"""Views of clips: every frame is cropped and resized, wherever it is used."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.conftest import MakeClip
from tests.data.transformed import crop_resize, views_of
from videoattn.data.dataset import ClipDataset
from videoattn.data.decode import decode
from videoattn.data.lists import Samples
from videoattn.data.loader import ClipLoader
from videoattn.data.sampling import train_sampler
from videoattn.data.transforms import AreaCrop, Box, TestTransform, TrainTransform


def frames_of(count: int, height: int = 40, width: int = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator
    ).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    "places",
    [
        [[0, 1, 2, 3, 4]],
        [[3, 4, 0, 1, 2, 3, 4, 0]],  # a loop that begins within the video
        [[0, 1, 2, 2, 2]],  # the last frame again
        [[0, 0, 1, 1, 3, 3]],  # segments of a short video
        [[0, 1, 2, 3], [2, 3, 4, 5], [0, 5, 1, 6]],  # clips that overlap
        [[2, 2, 2]],
    ],
)
def test_each_frame_is_at_its_position(
    places: list[list[int]], mirrored: bool, num_threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        frames = frames_of(7, 130, 150)
        transform = TestTransform(32, crop=(32, 32), num_crops=3)
        out = views_of(transform, frames, np.array(places), torch.Generator(), mirrored=mirrored)
        out = out.unflatten(0, (len(places), 3))
    finally:
        torch.set_num_threads(before)
    for clip, slots in enumerate(places):
        for view, box in enumerate(transform.boxes(130, 150)):
            for at, slot in enumerate(slots):
                (want,) = crop_resize(frames[None, slot : slot + 1], box, (32, 32))[0]
                assert torch.equal(out[clip, view, at], want.flip(-1) if mirrored else want)


def test_views_keep_channels_last_in_memory() -> None:
    transform = TestTransform(32, crop=(32, 32), num_crops=3)
    for positions in ([[0, 1]], [[0, 1], [1, 1]]):
        views = views_of(transform, frames_of(2), np.array(positions), torch.Generator())
        assert views.movedim(-3, -1).is_contiguous()


def test_frames_are_cropped_while_they_are_decoded(make_clip: MakeClip) -> None:
    path = make_clip("a.mp4", 9, size=(32, 64))
    whole = decode(path, range(9))
    calls: list[tuple[int, int]] = []

    def crop(height: int, width: int) -> Box:
        calls.append((height, width))
        return Box(3, 10, 30, 50)

    frames = decode(path, [7, 2, 2], crop=crop)
    assert torch.equal(frames, whole[[7, 2, 2], :, 3:30, 10:50])
    assert frames.stride() == (3 * 27 * 40, 1, 3 * 40, 3)
    assert calls == [(32, 64)]


def test_a_rotated_video_is_mirrored(real_data: Path) -> None:
    path = real_data / "fixtures" / "rotation" / "video_90.mov"
    transform = TrainTransform(AreaCrop((32, 32)))
    frames = decode(path, [0, 1])
    plain, mirrored = (
        views_of(
            transform, frames, np.array([[0, 1]]), torch.Generator().manual_seed(0), mirrored=m
        )
        for m in (False, True)
    )
    assert torch.equal(mirrored, plain.flip(-1))


def test_a_batch_of_frames_that_differ_in_size(make_clip: MakeClip, tmp_path: Path) -> None:
    for i, size in enumerate([(32, 48), (48, 32)]):
        make_clip(f"a/{i}.mp4", 10, size=size)
    dataset = ClipDataset(
        Samples(tmp_path, paths=["a/0.mp4", "a/1.mp4"], labels=[0, 0], class_names=["a"]),
        sample_frames=train_sampler("dense", num_frames=3, frame_stride=2),
        transform=TestTransform(32, crop=(32, 32), num_crops=0),
    )
    message = (
        r"^clips of a batch differ in their shapes \(views, frames, height, width, channels\): "
        r"\(1, 3, 32, 48, 3\) and \(1, 3, 48, 32, 3\); use batches of one video$"
    )
    with pytest.raises(ValueError, match=message):
        list(ClipLoader(dataset, batch_size=2, shuffle=False).epoch(0))
