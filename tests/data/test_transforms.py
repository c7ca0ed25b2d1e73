import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from tests.data.transformed import crop_resize, transformed, views_of
from videoattn.data.transforms import Box, TestTransform, to_video


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramp(height: int, width: int) -> torch.Tensor:
    """(1, 2, 3, H, W): red grows with x, green with y, blue is the frame's number."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frames = [torch.stack([x, y, torch.full_like(x, 100 * t)]) for t in range(2)]
    return torch.stack(frames).to(torch.uint8)[None]


@pytest.mark.parametrize(
    ("size", "boxes"),
    [
        ((128, 170), [(8, 0, 120, 112), (8, 29, 120, 141), (8, 58, 120, 170)]),
        ((170, 128), [(0, 8, 112, 120), (29, 8, 141, 120), (58, 8, 170, 120)]),
    ],
)
def test_test_boxes(size: tuple[int, int], boxes: list[tuple[int, ...]]) -> None:
    three = TestTransform(256, crop=(224, 224), num_crops=3)
    assert three.boxes(*size) == [Box(*b) for b in boxes]
    assert TestTransform(256, crop=(224, 224)).boxes(*size) == [Box(*boxes[1])]


def test_test_transform_puts_crops_side_by_side() -> None:
    clips = torch.cat([ramp(40, 60), ramp(40, 60).flip(-2)])
    transform = TestTransform(32, crop=(32, 32), num_crops=3)
    out = transformed(transform, clips, generator())
    assert out.shape == (6, 2, 3, 32, 32)
    for clip in range(2):
        for crop, box in enumerate(transform.boxes(40, 60)):
            want = crop_resize(clips[clip : clip + 1], box, (32, 32))[0]
            assert torch.equal(out[clip * 3 + crop], want)


@pytest.mark.parametrize("num_crops", [1, 3, 10])
def test_frames_that_clips_share_and_repeat(num_crops: int) -> None:
    frames = torch.randint(0, 256, (4, 3, 40, 60), dtype=torch.uint8, generator=generator())
    places = np.array([[0, 2, 2], [3, 2, 0]])  # frame 1 is in neither
    transform = TestTransform(32, crop=(32, 32), num_crops=num_crops)
    out = views_of(transform, frames, places, generator())
    clips = frames[torch.from_numpy(places)]
    assert torch.equal(out, transformed(transform, clips, generator()))


def test_crop_before_resize_is_resize_before_crop() -> None:
    """Away from the crop's border, the shortcut changes pixels only by rounding."""
    clips = torch.randint(0, 256, (1, 2, 3, 80, 120), dtype=torch.uint8, generator=generator())
    smooth = torch.nn.functional.avg_pool2d(clips[0].float(), 5, 1, 2)[None].to(torch.uint8)
    whole = crop_resize(smooth, Box(0, 0, 80, 120), (40, 60))
    cut = crop_resize(smooth, Box(20, 20, 60, 60), (20, 20))
    difference = (whole[..., 10:30, 10:30].float() - cut.float()).abs()
    assert difference[..., 1:-1, 1:-1].max() <= 1


def test_to_video() -> None:
    frames = torch.randint(0, 256, (2, 5, 3, 8, 6), dtype=torch.uint8, generator=generator())
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    video = to_video(frames, mean, std)
    assert video.shape == (2, 3, 5, 8, 6)
    assert video.dtype == torch.float32
    assert video.is_contiguous(memory_format=torch.channels_last_3d)
    m, s = torch.tensor(mean).view(1, 3, 1, 1, 1), torch.tensor(std).view(1, 3, 1, 1, 1)
    want = (frames.permute(0, 2, 1, 3, 4).float() / 255 - m) / s
    torch.testing.assert_close(video, want, atol=1e-6, rtol=1e-5)


# torchvision mirrors the frame and cuts its upper left corner: the upper right one, mirrored.
FROM_TORCHVISION = [0, 1, 2, 3, 4, 6, 5, 8, 7, 9]


def test_ten_crops_are_torchvision_s() -> None:
    """Without a resize, the ten crops are equal."""
    clips = torch.randint(0, 256, (2, 3, 3, 40, 61), dtype=torch.uint8, generator=generator())
    out = transformed(TestTransform(40, crop=(32, 31), num_crops=10), clips, generator())
    want = torch.stack(v2.TenCrop((32, 31))(clips), 1)[:, FROM_TORCHVISION].flatten(0, 1)
    assert torch.equal(out, want)


def test_ten_crops_of_a_resized_frame_are_torchvision_s_up_to_rounding() -> None:
    clips = torch.randint(0, 256, (1, 2, 3, 80, 120), dtype=torch.uint8, generator=generator())
    smooth = torch.nn.functional.avg_pool2d(clips[0].float(), 9, 1, 4)[None].to(torch.uint8)
    out = transformed(TestTransform(40, crop=(30, 30), num_crops=10), smooth, generator())
    resized = crop_resize(smooth, Box(0, 0, 80, 120), (40, 60))
    want = torch.stack(v2.TenCrop(30)(resized), 1)[:, FROM_TORCHVISION].flatten(0, 1)
    difference = (out.float() - want.float()).abs()[..., 1:-1, 1:-1]
    assert difference.max() <= 2


@pytest.mark.parametrize(
    ("size", "want"), [((48, 81), (32, 54)), ((81, 48), (54, 32)), ((20, 20), (32, 32))]
)
def test_zero_crops_are_the_whole_frame(size: tuple[int, int], want: tuple[int, int]) -> None:
    clips = ramp(*size).repeat(2, 1, 1, 1, 1)
    transform = TestTransform(32, crop=(224, 224), num_crops=0)  # the crop is not used
    out = transformed(transform, clips, generator())
    assert out.shape == (2, 2, 3, *want)
    assert torch.equal(out, crop_resize(clips, Box(0, 0, *size), want))
    assert transform.boxes(*size) == [Box(0, 0, *size)]


def test_a_long_crop_keeps_its_aspect_ratio_where_it_does_not_fit() -> None:
    """A crop of 6 x 12 from a portrait video: the widest box, not one that the resize stretches."""
    transform = TestTransform(8, crop=(6, 12))
    assert transform.boxes(16, 32) == [Box(2, 4, 14, 28)]  # fits: 12 x 24
    assert transform.boxes(32, 16) == [Box(12, 0, 20, 16)]  # 12 x 24 does not: 8 x 16
    assert transform.boxes(8, 8) == [Box(2, 0, 6, 8)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TestTransform(8, crop=(9, 9)), r"does not fit into frames whose short side is 8"),
        (
            lambda: TestTransform(8, crop=(8, 8), num_crops=2),
            r"^num_crops: got 2; choose 1 \(center\), 3, 10 \(five and their mirror images\) or 0",
        ),
        (lambda: TestTransform(0, crop=(8, 8), num_crops=0), r"^short_side: got 0; need at least"),
    ],
)
def test_errors(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
