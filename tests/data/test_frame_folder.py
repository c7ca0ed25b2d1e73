import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.test_dataset import train_set
from videoattn.data.decode import DecodeError, count_frames, decode
from videoattn.data.decode.source import FrameFolder
from videoattn.data.lists import read_frames, read_jester

TEMPLATE = "img_{:05d}.jpg"


def pictures(folder: Path, count: int, template: str = TEMPLATE) -> Path:
    """Frame i is gray, 20 + 4 * i."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("L", (24, 16), 20 + 4 * i).save(folder / template.format(i + 1), quality=95)
    return folder


def read(folder: Path, wanted: list[int]) -> torch.Tensor:
    return decode(FrameFolder(folder, TEMPLATE), wanted)


def count(folder: Path, template: str = TEMPLATE) -> tuple[int, float]:
    return count_frames(FrameFolder(folder, template))


def levels(frames: torch.Tensor) -> list[int]:
    return ((frames.float().mean(dim=(1, 2, 3)) - 20) / 4).round().int().tolist()


def test_frames_by_number(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", 6)
    frames = read(folder, [0, 4, 5])
    assert frames.shape == (3, 3, 16, 24)
    assert frames.dtype == torch.uint8
    assert levels(frames) == [0, 4, 5]
    assert count(folder) == (6, 0.0)


def test_damage(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "a", 6)
    (folder / "img_00002.jpg").write_bytes((folder / "img_00002.jpg").read_bytes()[:200])
    (folder / "img_00003.jpg").write_text("text")
    (folder / "img_00004.jpg").unlink()
    Image.new("RGB", (8, 16)).save(folder / "img_00005.jpg")
    for index, reason in [
        (1, "img_00002.jpg is damaged: .*[Tt]runcated.*"),
        (2, "img_00003.jpg is damaged: cannot identify image file .*"),
        (3, "img_00004.jpg is missing"),
        (6, "img_00007.jpg is missing"),
        (4, "img_00005.jpg is 8x16, but others are 24x16"),
    ]:
        with pytest.raises(DecodeError, match=f"^{re.escape(str(folder))}: {reason}$") as error:
            read(folder, [0, index])
        assert error.value.num_frames is None, "no other frames may be drawn instead"
    assert count(folder) == (3, 0.0)
    with pytest.raises(DecodeError, match=r"none: No such file or directory$"):
        count(tmp_path / "none")
    with pytest.raises(DecodeError, match=r"a: no frame {:05d}.png".replace("{:05d}", "00001")):
        count(folder, "{:05d}.png")


def test_clips_from_folders_with_known_counts(tmp_path: Path) -> None:
    pictures(tmp_path / "deep" / "my clip", 12)
    pictures(tmp_path / "b", 9)
    (tmp_path / "list.txt").write_text("deep/my clip 12 1\nb 9 0\n")
    samples = read_frames(tmp_path / "list.txt", tmp_path)
    assert samples.num_frames.tolist() == [12, 9]
    dataset = train_set(samples)
    found = levels(dataset[0, 0].frames[0])
    assert np.diff(found).tolist() == [2, 2, 2]
    assert dataset[0, 1].label == 0
    (tmp_path / "list.txt").write_text("b 12 0\nc 12 1\n")
    with pytest.raises(ValueError, match=r"^1 of 2 listed videos do not exist under .*: c; remove"):
        read_frames(tmp_path / "list.txt", tmp_path)
    kept = read_frames(tmp_path / "list.txt", tmp_path, missing="keep")
    with pytest.raises(DecodeError, match=r"c: img_0000\d.jpg is missing$"):
        train_set(kept)[0, 1]
    left = read_frames(tmp_path / "list.txt", tmp_path, missing="drop")
    assert (len(left), left.missing) == (1, ("c",))
    assert left.num_frames.tolist() == [12]


def test_jester_counts_frames_on_first_use(tmp_path: Path) -> None:
    pictures(tmp_path / "20bn-jester-v1" / "34870", 9, "{:05d}.jpg")
    (tmp_path / "jester-v1-labels.csv").write_text("Swiping Left\nDrumming Fingers\n")
    (tmp_path / "jester-v1-train.csv").write_text("34870;Drumming Fingers\n")
    samples = read_jester(tmp_path)
    assert not samples.num_frames.any()
    sample = train_set(samples)[0, 0]
    assert sample.label == 1
    assert np.diff(levels(sample.frames[0])).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "template",
    [
        "img.jpg",
        "img_{:05d}_{}.jpg",
        "{name}.jpg",
        "{:q}.jpg",
        "{0!s:.1}",
        "{:>4000000000}",
        "{0.x}.jpg",
        "../x{:05d}.jpg",
        "/x{:05d}.jpg",
    ],
)
def test_template(template: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"^frame_template: got '.*'; need a file name with one frame number, as",
    ):
        read_frames(tmp_path / "list.txt", tmp_path, frame_template=template)
