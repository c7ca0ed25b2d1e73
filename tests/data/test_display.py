"""Pixels that are not square, HDR video, and the numbers of frames in folders."""

import warnings
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
import torch
import yaml

from tests.data.conftest import TORCHCODEC
from tests.data.test_decode import levels
from videoattn.data.dataset import ClipDataset
from videoattn.data.decode import DecodeError, Decoder, Video, count_frames, decode
from videoattn.data.decode import container as opened
from videoattn.data.decode.source import FrameFolder, VideoBytes
from videoattn.data.lists import Samples, read_frames
from videoattn.data.prepare.reencode import Reencode, reencode
from videoattn.data.prepare.verify import verify_folder
from videoattn.data.sampling import view_sampler
from videoattn.data.transforms import Box, TestTransform
from videoattn.recipe.config import ClipConfig
from videoattn.recipe.data import make_samples
from videoattn.recipe.folder import earlier_settings
from videoattn.recipe.load import comparable, from_stored, load, to_yaml

CLIPS = {"a.mp4": "libx264", "b.mkv": "libx264", "c.avi": "mpeg4"}
SIZE = (48, 64)


def clip(path: Path, codec: str, *, aspect: Fraction = Fraction(1), transfer: int = 2) -> Path:
    """The left half of frame i is white, the right half has the gray level 20 * i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = SIZE
        stream.pix_fmt, context = "yuv420p", stream.codec_context
        context.sample_aspect_ratio, context.color_trc = aspect, transfer
        for i in range(8):
            image = np.full((*SIZE, 3), 20 * i, np.uint8)
            image[:, :32] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize(
    ("aspect", "width"),
    [((16, 11), 93), ((10, 11), 58), ((2, 1), 128), ((1, 2), 32), ((1, 1), 64)],
)
def test_frames_have_the_width_of_a_player(
    name: str, aspect: tuple[int, int], width: int, tmp_path: Path
) -> None:
    path = clip(tmp_path / name, CLIPS[name], aspect=Fraction(*aspect))
    stored = decode(path, [1, 5])
    assert stored.shape == (2, 3, *SIZE)
    sizes = []

    def crop(height: int, width: int) -> Box:
        sizes.append((height, width))
        return Box(0, 0, height, width)

    for source in (path, VideoBytes(name, path.read_bytes())):
        shown = decode(source, [1, 5], square_pixels=True, crop=crop)
        assert shown.shape == (2, 3, 48, width)
        assert sizes.pop() == (48, width)
        if aspect == (1, 1):
            assert torch.equal(shown, stored)
        edge = (shown[0].float().mean(dim=(0, 1)) > 130).sum()
        assert abs(int(edge) - width // 2) <= 1
        corners = [frames[:, :, :, -4:].float().mean(dim=(1, 2, 3)) for frames in (shown, stored)]
        assert (corners[0] - corners[1]).abs().max() <= 2


@pytest.mark.parametrize("aspect", [(1000, 1), (1, 1000), (17, 1), (256, 255), (99, 100)])
def test_ratios_of_damage_and_of_rounding_are_ignored(
    aspect: tuple[int, int], tmp_path: Path
) -> None:
    path = clip(tmp_path / "a.mp4", "libx264", aspect=Fraction(*aspect))
    assert torch.equal(decode(path, [1], square_pixels=True), decode(path, [1]))


def test_square_frames_are_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clip(tmp_path / "a.mp4", "libx264", aspect=Fraction(2))
    monkeypatch.setattr(opened, "MAX_PIXELS", 48 * 128 - 1)
    assert decode(path, [1]).shape == (1, 3, *SIZE)
    with pytest.raises(DecodeError, match=r"has frames of 128 x 48 pixels; the limit is 6,143 pix"):
        decode(path, [1], square_pixels=True)


@pytest.mark.parametrize("decoder", ["decord", TORCHCODEC])
def test_other_decoders_refuse_pixels_that_are_not_square(decoder: Decoder, tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", "libx264", aspect=Fraction(16, 11))
    with pytest.raises(
        DecodeError, match=rf"pixels are not square, which decoder {decoder} ignores; choose decode"
    ):
        decode(path, [1], decoder=decoder, square_pixels=True)
    assert decode(path, [1], decoder=decoder).shape == (1, 3, *SIZE)
    square = clip(tmp_path / "b.mp4", "libx264")
    assert decode(square, [1], decoder=decoder, square_pixels=True).shape == (1, 3, *SIZE)


@pytest.mark.parametrize(("aspect", "side"), [((16, 11), 48), ((16, 11), 24), ((10, 11), 24)])
def test_a_copy_looks_as_its_source(aspect: tuple[int, int], side: int, tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", "libx264", aspect=Fraction(*aspect))
    copy = tmp_path / "copy.mp4"
    assert reencode(Reencode(path, copy, side, 4))["num_frames"] == 8
    shapes = [decode(file, [1], square_pixels=True).shape[2:] for file in (path, copy)]
    ratios = [width / height for height, width in shapes]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.03)


@pytest.mark.parametrize("square", [True, False])
def test_the_recipe_selects_the_shape(square: bool, tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", "libx264", aspect=Fraction(2))
    sizes = []

    class Seen(TestTransform):
        def boxes(
            self, height: int, width: int, generator: torch.Generator | None = None
        ) -> list[Box]:
            sizes.append((height, width))
            return super().boxes(height, width, generator)

    samples = Samples(tmp_path, paths=[path.name], labels=[0], class_names=("a",))
    dataset = ClipDataset(
        samples,
        sample_frames=view_sampler("dense", num_frames=4, frame_stride=1),
        transform=Seen(32, crop=(32, 32), num_crops=1),
        decode=partial(decode, square_pixels=square),
    )
    assert dataset[0, 0].frames.shape == (1, 4, 3, 32, 32)
    assert sizes == [(48, 128 if square else 64)]


def test_new_runs_have_square_pixels_and_stored_ones_keep_theirs(tmp_path: Path) -> None:
    values: dict[str, Any] = {"name": "x", "data": {"root": "x"}, "clip": {"num_frames": 4}}
    assert load(values).clip.square_pixels
    assert not from_stored(values).clip.square_pixels
    assert not from_stored({"name": "x"}).clip.square_pixels
    assert from_stored({**values, "clip": {"square_pixels": True}}).clip.square_pixels
    assert comparable(values)["clip"]["square_pixels"] is False
    stored = yaml.safe_load(to_yaml(load(values)))
    assert load(stored).clip.square_pixels
    del stored["clip"]["square_pixels"]  # as an earlier version wrote it
    assert not load(stored).clip.square_pixels
    assert load(stored, ["clip.square_pixels=true"]).clip.square_pixels
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    assert earlier_settings(tmp_path) == ["clip.square_pixels=false"]
    (tmp_path / "config.yaml").write_text(to_yaml(load(values)))
    assert earlier_settings(tmp_path) == []
    assert earlier_settings(tmp_path / "none") == []
    assert ClipConfig().square_pixels


@pytest.fixture
def notes() -> Iterator[list[warnings.WarningMessage]]:
    """The warnings of a process that has given none yet."""
    opened._noted.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
    opened._noted.cache_clear()


@pytest.mark.parametrize(
    ("name", "transfer", "title"),
    [("a.mp4", 16, "PQ"), ("a.mkv", 16, "PQ"), ("b.mp4", 18, "HLG"), ("b\x1b.mkv", 18, "HLG")],
)
def test_hdr_is_noted_once(
    name: str, transfer: int, title: str, tmp_path: Path, notes: list[warnings.WarningMessage]
) -> None:
    for number in range(2):
        path = clip(tmp_path / f"{number}{name}", "libx264", transfer=transfer)
        assert count_frames(path)[0] == 8
        assert decode(path, [1]).shape == (1, 3, *SIZE)
    (note,) = [str(warning.message) for warning in notes]
    shown = f"0{name}".replace("\x1b", "\\x1b")
    assert note.endswith(
        f"{shown} is HDR video ({title}); its frames are not tone-mapped, so they look pale "
        "(given once per process)"
    )


@pytest.mark.parametrize("transfer", [1, 2, 6, 13])
def test_other_video_is_not_noted(
    transfer: int, tmp_path: Path, notes: list[warnings.WarningMessage]
) -> None:
    with Video(clip(tmp_path / "a.mp4", "libx264", transfer=transfer)) as video:
        assert video.num_frames == 8
    assert notes == []


def folder_of_frames(path: Path, numbers: range, template: str) -> Path:
    path.mkdir(parents=True)
    for position, number in enumerate(numbers):
        image = np.full((32, 48, 3), 20 + 4 * position, np.uint8)
        PIL.Image.fromarray(image).save(path / template.format(number))
    return path


@pytest.mark.parametrize(
    ("first", "template"), [(0, "{:05d}.png"), (1, "{}.bmp"), (7, "f{:03d}.png")]
)
def test_frames_are_numbered_from_the_first(first: int, template: str, tmp_path: Path) -> None:
    path = folder_of_frames(tmp_path / "v", range(first, first + 9), template)
    folder = FrameFolder(path, template, first)
    assert count_frames(folder)[0] == 9
    assert levels(decode(folder, range(9))) == list(range(9))
    assert verify_folder((folder, 9)) == {"num_frames": 9, "height": 32, "width": 48}
    with pytest.raises(DecodeError, match=rf"{template.format(first + 9)} is missing"):
        decode(folder, [9])
    (tmp_path / "list.txt").write_text("v 9 0\n")
    samples = read_frames(
        tmp_path / "list.txt", tmp_path, frame_template=template, frame_start=first
    )
    assert samples.source(0) == samples.take([0]).source(0) == folder
    with pytest.raises(ValueError, match=r"^frame_start: got -1; need 0 or more"):
        read_frames(tmp_path / "list.txt", tmp_path, frame_template=template, frame_start=-1)


@pytest.mark.parametrize("first", [0, 1, 5])
def test_the_first_number_in_a_recipe(first: int, tmp_path: Path) -> None:
    folder_of_frames(tmp_path / "v", range(first, first + 4), "img_{:05d}.jpg")
    (tmp_path / "train").write_text("v 4 0\n")
    recipe = {"name": "x", "data": {"root": str(tmp_path), "layout": "frames"}}
    config = load(recipe, [f"data.frame_start={first}"])
    source = make_samples(config.data, "train").source(0)
    assert source == FrameFolder(tmp_path / "v", "img_{:05d}.jpg", first)
    assert levels(decode(source, [0, 3])) == [0, 3]
    with pytest.raises(ValueError, match=r"^data\.frame_start: got -2; need 0 or more"):
        make_samples(load(recipe, ["data.frame_start=-2"]).data, "train")
