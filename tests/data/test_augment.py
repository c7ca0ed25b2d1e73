from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.conftest import MakeClip
from tests.data.test_transforms import generator, ramp
from tests.data.transformed import crop_resize, transformed
from videoattn.data.dataset import ClipDataset, Sample
from videoattn.data.decode import decode
from videoattn.data.lists import Samples, read_folders
from videoattn.data.loader import ClipLoader
from videoattn.data.sampling import repeated, train_sampler
from videoattn.data.transforms import AreaCrop, Box, CropBox, TrainTransform
from videoattn.data.transforms.augment import (
    ColorAugment,
    MultiScaleCrop,
    ShortSideCrop,
    erase_box,
    jitter_colors,
    rand_augment,
)
from videoattn.data.transforms.mirror import Mirror

Crop = Callable[[int, int], Box]


def picture(seed: int = 0, size: tuple[int, int] = (24, 32)) -> torch.Tensor:
    return torch.randint(0, 256, (1, 1, 3, *size), dtype=torch.uint8, generator=generator(seed))


WHOLE = AreaCrop((32, 32), (1.0, 1.0), (1.0, 1.0))


@pytest.mark.parametrize(
    "box",
    [
        AreaCrop((16, 20)),
        ShortSideCrop((16, 20), (20, 32)),
        MultiScaleCrop((16, 20)),
        AreaCrop((16, 20), (1.0, 1.0), (9.0, 9.0)),
    ],
    ids=["area", "short_side", "multi_scale", "fallback"],
)
def test_train_crop_is_the_box(box: CropBox) -> None:
    """A linear image stays linear: the ends and the middle of the output are those of the box."""
    clips, transform = ramp(60, 90), TrainTransform(box)
    for seed in range(20):
        drawn = box(60, 90, generator(seed))
        assert 0 <= drawn.y0 < drawn.y1 <= 60
        assert 0 <= drawn.x0 < drawn.x1 <= 90
        out = transformed(transform, clips, generator(seed))
        assert out.shape == (1, 2, 3, 16, 20)
        assert out.dtype == torch.uint8
        middle = out.float().mean(dim=(-2, -1))[0]
        assert middle[:, 0].tolist() == pytest.approx([(drawn.x0 + drawn.x1 - 1) / 2] * 2, abs=0.7)
        assert middle[:, 1].tolist() == pytest.approx([(drawn.y0 + drawn.y1 - 1) / 2] * 2, abs=0.7)
        assert middle[:, 2].tolist() == [0, 100]
        assert torch.equal(out, transformed(transform, clips, generator(seed)))


def test_area_crops_differ_and_cover() -> None:
    boxes = {AreaCrop((16, 16))(60, 90, generator(seed)) for seed in range(300)}
    areas = [(b.y1 - b.y0) * (b.x1 - b.x0) / 5400 for b in boxes]
    assert len(boxes) > 250
    assert 0.24 < min(areas) < 0.35
    assert max(areas) > 0.8


def test_short_side_crop_matches_the_paper() -> None:
    """A short side of 256 to 320 and a crop of 224: 224 / 256 to 224 / 320 of the frame."""
    crop = ShortSideCrop((224, 224), (256, 320))
    sides = [b.y1 - b.y0 for s in range(200) if (b := crop(240, 320, generator(s)))]
    assert min(sides) in range(168, 171)
    assert max(sides) in range(208, 211)


def tsn_boxes(height: int, width: int) -> set[Box]:
    """TSN's arithmetic: sizes of a 256 x 340 frame, and its list of offsets in steps."""
    base = min(height, width)
    sizes = [int(base * scale) for scale in (1, 0.875, 0.75, 0.66)]
    steps = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1)]
    steps += [(1, 3), (3, 3)]
    boxes = set()
    for i, h in enumerate(sizes):
        for j, w in enumerate(sizes):
            if abs(i - j) <= 1:
                for across, down in steps:
                    x, y = across * ((width - w) // 4), down * ((height - h) // 4)
                    boxes.add(Box(y, x, y + h, x + w))
    return boxes


@pytest.mark.parametrize("size", [(256, 340), (340, 256), (240, 320), (128, 170), (64, 64)])
def test_multi_scale_boxes_match_tsn(size: tuple[int, int]) -> None:
    crop = MultiScaleCrop((224, 224))
    assert len(crop.boxes(*size)) == 10 * 13
    assert set(crop.boxes(*size)) == tsn_boxes(*size)
    drawn = {crop(*size, generator(seed)) for seed in range(1500)}
    assert drawn == tsn_boxes(*size)


def test_multi_scale_boxes_have_the_shape_of_the_crop() -> None:
    crop = MultiScaleCrop((16, 20), scales=(1.0, 0.5))
    sizes = {(b.y1 - b.y0, b.x1 - b.x0) for b in crop.boxes(80, 400)}
    assert sizes == {(80, 100), (80, 50), (40, 100), (40, 50)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AreaCrop((8, 8), (0.0, 1.0)), r"^area: got \(0.0, 1.0\); need 0 < low <= high"),
        (
            lambda: AreaCrop((8, 8), aspect_ratio=(2.0, 1.0)),
            r"^aspect_ratio: got \(2.0, 1.0\); need 0 <",
        ),
        (lambda: ShortSideCrop((8, 8), (9, 8)), r"^short_side: got \(9, 8\); need low <= high"),
        (lambda: ShortSideCrop((9, 9), (8, 9)), r"^crop: got \(9, 9\), which does not fit"),
        (lambda: MultiScaleCrop((8, 8), ()), r"^scales: got \(\); need one or more, above 0"),
        (lambda: MultiScaleCrop((8, 8), (1.0, 1.5)), r"^scales: got \(1.0, 1.5\); need one or"),
        (lambda: ColorAugment(erase=-1.0), r"^erase: got -1.0; need a probability, 0 to 1$"),
        (lambda: ColorAugment(grayscale=2.0), r"^grayscale: got 2.0; need a probability, 0 to 1$"),
        (
            lambda: ColorAugment(color_jitter=2.0),
            r"^color_jitter: got 2.0; need a fraction, 0 to 1$",
        ),
        (
            lambda: ColorAugment(rand_augment=-1),
            r"^rand_augment: got -1; need 0 operations or more$",
        ),
        (
            lambda: ColorAugment(rand_augment_magnitude=31),
            r"^rand_augment_magnitude: got 31; need 0 to 30$",
        ),
    ],
)
def test_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


LOOKS = {
    "colours": ColorAugment(color_jitter=0.4),
    "gray": ColorAugment(grayscale=0.5),
    "rand_augment": ColorAugment(rand_augment=2, rand_augment_magnitude=20),
    "erased": ColorAugment(erase=0.5),
    "all": ColorAugment(0.4, 0.2, 1, 9, 0.25),
}


@pytest.mark.parametrize("looks", LOOKS.values(), ids=LOOKS)
def test_a_still_clip_stays_still_and_random_values_come_from_its_generator(
    looks: ColorAugment,
) -> None:
    still = picture().expand(2, 5, -1, -1, -1).clone()
    before = still.clone()
    changed = 0
    for seed in range(20):
        torch.manual_seed(seed)
        state, mine = torch.get_rng_state(), generator(seed)
        out = looks(still, mine)
        assert (out == out[:1, :1]).all()
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(mine.get_state(), generator(seed).get_state())
        torch.manual_seed(1000 + seed)
        assert torch.equal(looks(still, generator(seed)), out)
        changed += not torch.equal(out, still)
    assert changed > 4
    assert torch.equal(still, before)


def test_colors_stay_in_their_range() -> None:
    gray = torch.full((1, 2, 3, 4, 4), 100, dtype=torch.uint8)
    levels = [int(jitter_colors(gray, 0.4, generator(seed))[0, 0, 0, 0, 0]) for seed in range(200)]
    assert 57 <= min(levels) < 65  # gray moves with brightness, 100 times 0.6 to 1.4
    assert 135 < max(levels) <= 143


def test_rand_augment_has_operations_and_a_strength() -> None:
    clips = picture(size=(32, 32)).expand(1, 3, -1, -1, -1).clone()

    def distances(num_ops: int, magnitude: int) -> np.ndarray:
        outs = [rand_augment(clips, num_ops, magnitude, generator(s)) for s in range(60)]
        return np.array([float((out.float() - clips.float()).abs().mean()) for out in outs])

    weak, strong, more = distances(1, 3), distances(1, 25), distances(3, 25)
    assert (weak == 0).any()  # the identity is one of the operations
    assert weak.mean() < strong.mean() < more.mean()
    assert len(set(strong.round(3).tolist())) > 12  # of 14 operations, most in both directions


def test_an_erased_box_is_one_gray_rectangle() -> None:
    shares = []
    for seed in range(100):
        clips = torch.zeros(1, 3, 3, 30, 40, dtype=torch.uint8)
        out = erase_box(clips, generator(seed))
        assert not clips.any()
        gray = out[0, 0, 0] == 128
        assert ((out == 128) == gray).all()
        rows, columns = gray.any(1), gray.any(0)
        assert torch.equal(gray, rows[:, None] & columns[None])
        shares.append(float(gray.float().mean()))
    assert 0.01 < min(shares) < 0.06
    assert 0.28 < max(shares) < 0.36


def test_augmentations_occur_as_often_as_configured() -> None:
    clips = ramp(32, 32)
    colourless = TrainTransform(WHOLE, ColorAugment(grayscale=0.5))
    outs = [transformed(colourless, clips, generator(seed)) for seed in range(100)]
    without = [bool((out[:, :, 0] == out[:, :, 1]).all()) for out in outs]
    assert 35 < sum(without) < 65
    assert torch.equal(outs[without.index(False)], clips)
    erased = TrainTransform(WHOLE, ColorAugment(erase=0.3))
    outs = [transformed(erased, clips, generator(seed)) for seed in range(100)]
    changed = [not torch.equal(out, clips) for out in outs]
    assert 18 < sum(changed) < 42


def make_dataset(
    samples: Samples, box: CropBox, looks: ColorAugment, **kwargs: object
) -> ClipDataset:
    draw = train_sampler("dense", num_frames=3, frame_stride=2)
    return ClipDataset(
        samples,
        sample_frames=repeated(draw, int(str(kwargs.get("num_clips", 1)))),
        transform=TrainTransform(box, looks),
        mirror=Mirror(0.5, samples.class_names, {"left": "right"}),
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # on fewer cores
@pytest.mark.parametrize("num_clips", [1, 2])
def test_the_same_bits_with_and_without_workers(thirteen: Path, num_clips: int) -> None:
    """Three crops with every augmentation, mirrored with swapped labels."""
    samples = read_folders(thirteen)
    boxes = [AreaCrop((16, 16)), ShortSideCrop((16, 16), (18, 32)), MultiScaleCrop((16, 16))]
    looks = [LOOKS["all"], LOOKS["rand_augment"], ColorAugment(erase=1.0, grayscale=1.0)]
    for box, look in zip(boxes, looks, strict=True):
        dataset = make_dataset(samples, box, look, num_clips=num_clips)
        runs = [
            list(ClipLoader(dataset, batch_size=5, shuffle=True, num_workers=workers).epoch(1))
            for workers in (0, 3)
        ]
        for alone, of_workers in zip(*runs, strict=True):
            assert alone.frames.shape[1:] == (num_clips, 3, 3, 16, 16)
            assert torch.equal(alone.frames, of_workers.frames)
            assert torch.equal(alone.labels, of_workers.labels)


def test_clips_of_one_video_are_decoded_once_and_drawn_independently(make_clip: MakeClip) -> None:
    path = make_clip("a/left/a.mp4", 40)
    make_clip("a/right/b.mp4", 40)
    samples = read_folders(path.parents[1])
    decoded: list[int] = []

    def noting(path: Path, wanted: np.ndarray, **options: Any) -> torch.Tensor:
        decoded.append(len(wanted))
        return decode(path, wanted, **options)

    dataset = make_dataset(samples, AreaCrop((16, 16)), ColorAugment(), num_clips=4)
    dataset.decode = noting
    mirrored = set()
    for epoch in range(8):
        sample = dataset[epoch, 0]
        assert isinstance(sample, Sample)
        mirrored.add((sample.mirrored, sample.label))
        assert sample.frames.shape == (4, 3, 3, 16, 16)
        assert sample.numbers.shape == (4, 3)
        levels = sample.frames.float().mean(dim=(2, 3, 4))
        assert torch.allclose((levels - 20) / 4, torch.from_numpy(sample.numbers).float(), atol=0.6)
        assert decoded[-1] == len(np.unique(sample.numbers))
    assert len(decoded) == 8
    assert mirrored == {(False, 0), (True, 1)}


def test_each_clip_has_its_own_crop_and_all_share_the_mirror(make_clip: MakeClip) -> None:
    path = make_clip("a/left/a.mp4", 8)
    make_clip("a/right/b.mp4", 8)
    samples, clips = read_folders(path.parents[1]), ramp(32, 48)[0]
    dataset = make_dataset(samples, AreaCrop((16, 16)), ColorAugment(), num_clips=3)

    def constant(path: Path, wanted: np.ndarray, *, crop: Crop, **_: Any) -> torch.Tensor:
        box = crop(32, 48)
        return clips[:1, :, box.y0 : box.y1, box.x0 : box.x1].expand(len(wanted), -1, -1, -1)

    dataset.decode = constant
    for epoch in range(10):
        sample = dataset[epoch, 0]
        assert isinstance(sample, Sample)
        frames = sample.frames.float()
        assert len({float(clip[0, 1].mean()) for clip in frames}) > 1
        slopes = frames[:, :, 0].diff(dim=-1).mean(dim=(1, 2, 3))  # red grows with x
        assert ((slopes < 0) == sample.mirrored).all()


def test_a_mirrored_sample_is_the_mirror_image(thirteen: Path) -> None:
    samples = read_folders(thirteen)
    draw = train_sampler("dense", num_frames=3, frame_stride=2)

    def made(probability: float) -> ClipDataset:
        return ClipDataset(
            samples,
            sample_frames=lambda n, fps, g: draw(n, fps, generator()),
            transform=TrainTransform(ShortSideCrop((30, 30), (32, 32)), ColorAugment()),
            mirror=Mirror(probability, samples.class_names, {"left": "right"}),
        )

    always, box = made(1.0)[0, 4], ShortSideCrop((30, 30), (32, 32))
    assert isinstance(always, Sample)
    assert always.mirrored
    assert always.label == 1 - samples.label(4)
    frames = decode(samples.path(4), always.numbers[0])[None]
    plain = [
        crop_resize(frames, box(*frames.shape[-2:], generator(s)), (30, 30)) for s in range(400)
    ]
    assert any(torch.equal(one.flip(-1), always.frames) for one in plain)
    never = made(0.0)[0, 4]
    assert isinstance(never, Sample)
    assert (never.mirrored, never.label) == (False, samples.label(4))
