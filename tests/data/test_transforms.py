import pytest
import torch

from videoattn.data.transforms import (
    Box,
    TestTransform,
    TrainTransform,
    crop_resize,
    erase_box,
    jitter_colors,
    to_video,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramp(height: int, width: int) -> torch.Tensor:
    """(1, 2, 3, H, W): red grows with x, green with y, blue is the frame's number."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frames = [torch.stack([x, y, torch.full_like(x, 100 * t)]) for t in range(2)]
    return torch.stack(frames).to(torch.uint8)[None]


@pytest.mark.parametrize(
    "transform",
    [
        TrainTransform((16, 20), flip=0.0),
        TrainTransform((16, 20), short_side=(20, 32), flip=0.0),
        TrainTransform((16, 20), scale=(1.0, 1.0), ratio=(9.0, 9.0), flip=0.0),
    ],
    ids=["resized", "short_side", "fallback"],
)
def test_train_crop_is_the_box(transform: TrainTransform) -> None:
    """A linear picture stays linear: the output's ends and middle are the box's."""
    clips = ramp(60, 90)
    for seed in range(20):
        box = transform.box(60, 90, generator(seed))
        assert 0 <= box.y0 < box.y1 <= 60
        assert 0 <= box.x0 < box.x1 <= 90
        out = transform(clips, generator(seed))
        assert out.shape == (1, 2, 3, 16, 20)
        assert out.dtype == torch.uint8
        middle = out.float().mean(dim=(-2, -1))[0]
        assert middle[:, 0].tolist() == pytest.approx([(box.x0 + box.x1 - 1) / 2] * 2, abs=0.7)
        assert middle[:, 1].tolist() == pytest.approx([(box.y0 + box.y1 - 1) / 2] * 2, abs=0.7)
        assert middle[:, 2].tolist() == [0, 100]
        assert torch.equal(out, transform(clips, generator(seed)))


def test_train_crops_differ_and_cover() -> None:
    transform = TrainTransform((16, 16), scale=(0.25, 1.0))
    boxes = {transform.box(60, 90, generator(seed)) for seed in range(300)}
    areas = [(b.y1 - b.y0) * (b.x1 - b.x0) / 5400 for b in boxes]
    assert len(boxes) > 250
    assert 0.24 < min(areas) < 0.35
    assert max(areas) > 0.8


def test_short_side_crop_is_the_papers() -> None:
    """A short side of 256 to 320 and a crop of 224: 224 / 256 to 224 / 320 of the frame."""
    transform = TrainTransform((224, 224), short_side=(256, 320))
    sides = [b.y1 - b.y0 for s in range(200) if (b := transform.box(240, 320, generator(s)))]
    assert min(sides) in range(168, 171)
    assert max(sides) in range(208, 211)


def test_flip_mirrors_all_frames_half_the_time() -> None:
    plain, flipped = TrainTransform((16, 16), flip=0.0), TrainTransform((16, 16), flip=1.0)
    clips = ramp(40, 40)
    assert torch.equal(plain(clips, generator()).flip(-1), flipped(clips, generator()))
    half = TrainTransform((16, 16), flip=0.5)
    same = [torch.equal(half(clips, generator(s)), plain(clips, generator(s))) for s in range(200)]
    assert 70 < sum(same) < 130


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
    out = transform(clips, generator())
    assert out.shape == (6, 2, 3, 32, 32)
    for clip in range(2):
        for crop, box in enumerate(transform.boxes(40, 60)):
            want = crop_resize(clips[clip : clip + 1], box, (32, 32))[0]
            assert torch.equal(out[clip * 3 + crop], want)


def test_crop_before_resize_is_resize_before_crop() -> None:
    """The shortcut changes the picture only by rounding, away from the crop's border."""
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainTransform((8, 8), scale=(0.0, 1.0)), r"^scale: got \(0.0, 1.0\); need 0 <"),
        (lambda: TrainTransform((8, 8), ratio=(2.0, 1.0)), r"^ratio: got \(2.0, 1.0\); need 0 <"),
        (lambda: TrainTransform((8, 8), flip=2.0), r"^flip: got 2.0; need a probability, 0 to 1$"),
        (
            lambda: TrainTransform((8, 8), erase=-1.0),
            r"^erase: got -1.0; need a probability, 0 to 1$",
        ),
        (lambda: TrainTransform((8, 8), color_jitter=2.0), r"^color_jitter: got 2.0; need a share"),
        (lambda: TrainTransform((8, 8), short_side=(9, 8)), r"^short_side: got \(9, 8\); need low"),
        (lambda: TrainTransform((9, 9), short_side=(8, 9)), r"^crop: got \(9, 9\), which does not"),
        (lambda: TestTransform(8, crop=(9, 9)), r"does not fit into frames whose short side is 8"),
        (lambda: TestTransform(8, crop=(8, 8), num_crops=2), r"^num_crops: got 2; choose 1 "),
    ],
)
def test_errors(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_colours_change_alike_in_every_frame_and_by_the_sample_s_own_generator() -> None:
    clip = torch.randint(0, 256, (1, 1, 3, 8, 8), dtype=torch.uint8, generator=generator())
    clips = clip.expand(2, 5, -1, -1, -1).clone()
    torch.manual_seed(0)
    out = jitter_colors(clips, 0.4, generator(1))
    assert (out == out[:1, :1]).all()
    assert not torch.equal(out, clips)
    torch.manual_seed(1)
    assert torch.equal(jitter_colors(clips, 0.4, generator(1)), out)
    assert not torch.equal(jitter_colors(clips, 0.4, generator(2)), out)
    grey = torch.full((1, 2, 3, 4, 4), 100, dtype=torch.uint8)
    levels = [int(jitter_colors(grey, 0.4, generator(seed))[0, 0, 0, 0, 0]) for seed in range(200)]
    assert 57 <= min(levels) < 65  # grey moves with brightness, 100 times 0.6 to 1.4
    assert 135 < max(levels) <= 143


def test_an_erased_box_is_one_grey_rectangle_at_one_place() -> None:
    shares = []
    for seed in range(100):
        clips = torch.zeros(1, 3, 3, 30, 40, dtype=torch.uint8)
        out = erase_box(clips, generator(seed))
        assert not clips.any()
        grey = out[0, 0, 0] == 128
        assert ((out == 128) == grey).all()
        rows, columns = grey.any(1), grey.any(0)
        assert torch.equal(grey, rows[:, None] & columns[None])
        shares.append(float(grey.float().mean()))
    assert 0.01 < min(shares) < 0.06
    assert 0.28 < max(shares) < 0.36


def test_colour_options_happen_as_often_as_asked() -> None:
    clips = ramp(32, 32)
    plain = dict(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    colourless = TrainTransform((32, 32), grayscale=0.5, **plain)
    outs = [colourless(clips, generator(seed)) for seed in range(100)]
    without = [bool((out[:, :, 0] == out[:, :, 1]).all()) for out in outs]
    assert 35 < sum(without) < 65
    assert torch.equal(outs[without.index(False)], clips)
    erased = TrainTransform((32, 32), erase=0.3, **plain)
    changed = [not torch.equal(erased(clips, generator(seed)), clips) for seed in range(100)]
    assert 18 < sum(changed) < 42
    coloured = TrainTransform((32, 32), color_jitter=0.4, **plain)
    assert not torch.equal(coloured(clips, generator()), clips)
