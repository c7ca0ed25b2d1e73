"""Compares regions, boxes and crops in float64 with scipy and F.interpolate."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from videoattn.attention.blocks.regions import (
    activity,
    bounding_boxes,
    crop,
    in_pixels,
    largest_region,
    scaled,
)

WHOLE = [[0, 1], [0, 7], [0, 7]]


def heat_of(*blobs: tuple[int, int, int, int], grid: tuple[int, int] = (7, 7)) -> Tensor:
    """Returns a map (1, 1, H, W): 1 in the blobs (y0, y1, x0, x1), 0 elsewhere."""
    heat = torch.zeros(1, 1, *grid, dtype=torch.float64)
    for y0, y1, x0, x1 in blobs:
        heat[..., y0:y1, x0:x1] = 1
    return heat


def cells(heat: Tensor, threshold: float = 0.7) -> list[list[int]]:
    return bounding_boxes(largest_region(heat > threshold))[0].tolist()


def test_box_surrounds_the_larger_of_two_blobs() -> None:
    assert cells(heat_of((2, 5, 1, 3))) == [[0, 1], [2, 5], [1, 3]]
    assert cells(heat_of((0, 2, 0, 2), (3, 7, 4, 7))) == [[0, 1], [3, 7], [4, 7]]
    assert cells(heat_of((0, 2, 0, 3), (5, 7, 4, 6))) == [[0, 1], [0, 2], [0, 3]]


def test_first_of_equal_regions_is_chosen_and_corners_do_not_connect() -> None:
    assert cells(heat_of((4, 6, 1, 3), (1, 3, 4, 6))) == [[0, 1], [1, 3], [4, 6]]
    assert cells(heat_of((0, 2, 0, 2), (2, 4, 2, 5))) == [[0, 1], [2, 4], [2, 5]]


def test_threshold_shrinks_the_region_to_one_cell() -> None:
    positions = torch.arange(49, dtype=torch.float64).view(1, 1, 7, 7)
    heat = scaled(
        100 - (positions - 24).square(), "minmax"
    )  # largest in the middle, all values different
    assert cells(heat, 0.0) == WHOLE
    assert cells(heat, 0.9999) == [[0, 1], [3, 4], [3, 4]]
    assert heat.min() == 0
    assert heat.max() == 1


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_map_gives_the_whole_frame(value: float) -> None:
    heat = scaled(torch.full((2, 1, 7, 7), value, dtype=torch.float64), "minmax")
    assert torch.equal(heat, torch.zeros_like(heat))
    assert cells(heat) == WHOLE
    by_max = scaled(torch.full((1, 1, 7, 7), value, dtype=torch.float64), "max")
    assert torch.equal(by_max, torch.full_like(by_max, float(value > 0)))
    assert cells(by_max) == WHOLE


def test_each_clip_is_scaled_separately() -> None:
    heat = torch.rand(3, 2, 4, 5, dtype=torch.float64) + 1
    low, high = heat.flatten(1).amin(1), heat.flatten(1).amax(1)
    for index in range(3):
        expected = (heat[index] - low[index]) / (high[index] - low[index])
        torch.testing.assert_close(scaled(heat, "minmax")[index], expected)
        torch.testing.assert_close(scaled(heat, "max")[index], heat[index] / high[index])


def test_activity_is_the_maximum_or_a_norm_over_channels() -> None:
    f = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(activity(f, "max"), torch.maximum(f.amax(1), -f.amin(1)))
    torch.testing.assert_close(activity(f, "l1") * 6, f.norm(1, dim=1))
    torch.testing.assert_close(activity(f, "l2") * 6**0.5, f.norm(2, dim=1))
    # unlike the sum over channels, in which positive and negative values cancel
    cancelling = torch.stack([f[:, 0], -f[:, 0]], 1)
    torch.testing.assert_close(activity(cancelling, "max"), f[:, 0].abs())
    assert activity(f.bfloat16(), "l1").dtype == torch.float32


@pytest.mark.parametrize("grid", [(1, 7, 7), (1, 3, 11), (4, 5, 6), (1, 1, 1), (8, 7, 7)])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_regions_match_scipy(grid: tuple[int, int, int], share: float) -> None:
    generator = torch.Generator().manual_seed(grid[0] * 100 + grid[1])
    masks = torch.rand(6, *grid, generator=generator) < share
    ours = largest_region(masks)
    for mask, region, box in zip(masks.numpy(), ours.numpy(), bounding_boxes(ours), strict=True):
        labels, count = ndimage.label(mask)
        if not count:
            assert not region.any()
            assert box.tolist() == [[0, n] for n in grid]
            continue
        best = int(np.bincount(labels.ravel())[1:].argmax()) + 1
        np.testing.assert_array_equal(region, labels == best)
        slices = ndimage.find_objects(labels)[best - 1]
        assert box.tolist() == [[s.start, s.stop] for s in slices]


def test_winding_region_is_connected() -> None:
    """The path between the ends of a spiral passes through all of its cells."""
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    y, x, dy, dx = 0, 0, 0, 1
    mask[0, 0, 0, 0] = True
    for length in (8, 8, 8, 6, 6, 4, 4, 2, 2):
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[0, 0, y, x] = True
        dy, dx = dx, -dy
    assert mask.sum() == 49
    assert torch.equal(largest_region(mask), mask)
    mask[0, 0, 0, 5] = False  # splits it; the inner piece is larger
    assert largest_region(mask).sum() == 43


def test_boxes_in_cells_become_pixels_and_grow_to_the_minimum_size() -> None:
    def pixels(box: list[list[int]], least: float, size: tuple[int, int, int]) -> list[list[int]]:
        return in_pixels(torch.tensor([box]), (2, 7, 7), size, least)[0].tolist()

    size = (8, 224, 112)
    assert pixels([[0, 1], [2, 5], [6, 7]], 0.0, size) == [[0, 4], [64, 160], [96, 112]]
    assert pixels([[1, 2], [3, 4], [3, 4]], 0.25, size) == [[4, 8], [84, 140], [42, 70]]
    # a box at the border is moved inside
    assert pixels([[0, 1], [0, 1], [6, 7]], 0.5, size) == [[0, 4], [0, 112], [56, 112]]
    assert pixels([[0, 1], [0, 1], [6, 7]], 1.0, size) == [[0, 8], [0, 224], [0, 112]]
    # sides that are not multiples of the grid are widened to whole pixels
    assert pixels([[0, 2], [1, 2], [6, 7]], 0.0, (3, 33, 50)) == [[0, 3], [4, 10], [42, 50]]


BOXES = [(0, 4, 0, 9, 0, 12), (1, 3, 2, 7, 5, 6), (0, 1, 8, 9, 0, 12), (2, 4, 0, 4, 3, 11)]


def test_crop_is_the_resized_box_independent_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(4, 3, 4, 9, 12, dtype=torch.float64, generator=generator)
    boxes = torch.tensor(BOXES).view(4, 1, 3, 2)
    ours = crop(video, boxes)
    assert torch.equal(ours[0], video[0])  # exactly the whole clip
    for index, (t0, t1, y0, y1, x0, x1) in enumerate(BOXES):
        cut = video[index : index + 1, :, t0:t1, y0:y1, x0:x1]
        expected = F.interpolate(cut, size=(4, 9, 12), mode="trilinear", align_corners=False)
        torch.testing.assert_close(ours[index : index + 1], expected, rtol=0, atol=1e-12)


def test_each_frame_can_have_its_own_box() -> None:
    video = torch.randn(2, 3, 6, 8, 10, dtype=torch.float64)
    boxes = torch.tensor(
        [[[[0, 6], [0, 3 + r + n], [2 * r, 2 * r + 5]] for r in range(3)] for n in range(2)]
    )
    ours = crop(video, boxes)
    for n in range(2):
        for t in range(6):
            (y0, y1), (x0, x1) = boxes[n, t // 2, 1:].tolist()
            expected = F.interpolate(
                video[n : n + 1, :, t, y0:y1, x0:x1], (8, 10), mode="bilinear", align_corners=False
            )
            torch.testing.assert_close(ours[n, :, t], expected[0], rtol=0, atol=1e-12)


def test_gradients_of_a_crop_stay_inside_the_box() -> None:
    video = torch.randn(1, 3, 4, 9, 12, dtype=torch.float64, requires_grad=True)
    box = torch.tensor([1, 3, 2, 7, 5, 9]).view(1, 1, 3, 2)
    crop(video, box).square().sum().backward()
    assert video.grad is not None
    inside = torch.zeros_like(video, dtype=torch.bool)
    inside[:, :, 1:3, 2:7, 5:9] = True
    assert video.grad[inside].count_nonzero() == inside.sum()
    assert not video.grad[~inside].any()


def test_crops_are_computed_in_float32_under_autocast() -> None:
    video = torch.randn(1, 3, 2, 20, 20)
    box = torch.tensor([0, 2, 3, 17, 2, 9]).view(1, 1, 3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert crop(video.bfloat16(), box).dtype == torch.bfloat16
        rounded = crop(video, box)
    torch.testing.assert_close(rounded, crop(video, box), rtol=0, atol=1e-6)
