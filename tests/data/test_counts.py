"""The numbers of frames that a run found are used by the next one."""

from pathlib import Path

import pytest
import torch

from tests.data.conftest import MakeClip
from tests.data.test_dataset import train_set
from videoattn.data.dataset import ClipDataset
from videoattn.data.decode import DecodeError, Video
from videoattn.data.lists import Samples
from videoattn.data.prepare.index import FrameCount, read_counts, write_counts
from videoattn.recipe.memory import recall_counts, remember_counts

NAMES = ["c/a.mp4", "c/b.avi"]


@pytest.fixture
def videos(make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEOATTN_HOME", str(tmp_path / "home"))
    make_clip(NAMES[0], 12)
    make_clip(NAMES[1], 15, codec="mpeg4")
    return tmp_path


def dataset(root: Path) -> ClipDataset:
    return train_set(Samples(root, paths=NAMES, labels=[0, 0], class_names=["c"]))


def test_counts_reach_the_next_run(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dataset(videos)
    recall_counts([first])  # there are none yet
    expected = [first[0, index].frames for index in range(2)]
    assert {name: count.num_frames for name, count in first.found_counts().items()} == {
        NAMES[0]: 12,
        NAMES[1]: 15,
    }
    remember_counts([first])
    again = dataset(videos)
    recall_counts([again])
    assert again.found_counts() == first.found_counts()
    monkeypatch.setattr(Video, "expect_frames", None)
    assert all(torch.equal(again[0, index].frames, expected[index]) for index in range(2))


def test_counts_of_several_runs_are_joined(videos: Path) -> None:
    for index in range(2):
        one = dataset(videos)
        assert one[0, index].frames.shape[1] == 4
        remember_counts([one])
    (file,) = (videos / "home/counts").iterdir()
    assert set(read_counts(file)) == set(NAMES)


def test_a_changed_file_is_counted_again(videos: Path, make_clip: MakeClip, tmp_path: Path) -> None:
    first = dataset(videos)
    assert first[0, 1].fps == 25
    remember_counts([first])
    make_clip(NAMES[1], 40, codec="mpeg4")
    again = dataset(videos)
    recall_counts([again])
    assert torch.equal(again[0, 1].frames, dataset(videos)[0, 1].frames)
    assert again.found_counts()[NAMES[1]].num_frames == 40
    (videos / NAMES[1]).unlink()
    with pytest.raises(DecodeError, match=r"b\.avi: No such file or directory$"):
        again[1, 1]


def test_a_damaged_file_of_counts_is_noted(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = dataset(videos)
    assert first[0, 0].fps == 25
    remember_counts([first])
    (file,) = (videos / "home/counts").iterdir()
    file.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"npz is damaged \(.+\); delete it$"):
        read_counts(file)
    recall_counts([dataset(videos)])
    remember_counts([first])
    notes = " ".join(capsys.readouterr().out.split())
    assert "delete it; the frames are counted again" in notes
    assert "note: the next run will count frames again: " in notes
    assert file.read_bytes() == b"PK"


def test_names_that_are_not_text_are_stored(tmp_path: Path) -> None:
    counts = {"a\udcff.mp4": FrameCount(3, 29.97, 1 << 40), "\u00e9/b.avi": FrameCount(7, 0.0, 1)}
    write_counts(tmp_path / "x.npz", counts)
    assert read_counts(tmp_path / "x.npz") == counts
    write_counts(tmp_path / "x.npz", {})
    assert read_counts(tmp_path / "x.npz") == {}
