"""Frames that are cut and resized while they come."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.data.conftest import MakeClip
from tests.data.transformed import crop_resize
from videoattn.data.dataset import ClipDataset
from videoattn.data.decode.cut import Clips
from videoattn.data.lists import Samples
from videoattn.data.loader import ClipLoader
from videoattn.data.sampling import train_sampler
from videoattn.data.transforms import TestTransform, resize


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
def test_each_frame_where_it_belongs(
    places: list[list[int]], mirrored: bool, num_threads: int
) -> None:
    """After a setback in the middle, too: the frames that came later count."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        frames = frames_of(7, 130, 150)  # a mirrored row is copied in several pieces
        images = frames.movedim(1, -1).numpy()
        transform = TestTransform(32, crop=(32, 32), num_crops=3)
        made = Clips(transform, np.array(places), torch.Generator(), mirrored=mirrored)
        for slot in range(4):
            made.put(slot, 255 - images[slot])
        for slot in range(7):
            made.put(slot, images[slot])
        out = made.finish().unflatten(0, (len(places), 3))
    finally:
        torch.set_num_threads(before)
    for clip, slots in enumerate(places):
        for view, box in enumerate(transform.boxes(130, 150)):
            for at, slot in enumerate(slots):
                (want,) = crop_resize(frames[None, slot : slot + 1], box, (32, 32))[0]
                assert torch.equal(out[clip, view, at], want.flip(-1) if mirrored else want)


@pytest.mark.parametrize("size", [(40, 60), (20, 31), (64, 97)])
def test_resize_to_where_it_stays(size: tuple[int, int]) -> None:
    frames = frames_of(5)
    out = torch.empty(5, *size, 3, dtype=torch.uint8).movedim(-1, 1)
    assert resize(frames, size, out).data_ptr() == out.data_ptr()
    assert torch.equal(out, F.interpolate(frames, size=size, mode="bilinear", antialias=True))


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
