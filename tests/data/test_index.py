import re
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import MakeClip
from tests.data.test_annotations import listing
from tests.data.test_dataset import train_set
from videoattn.data.decode import Video
from videoattn.data.lists import read_folders, read_list
from videoattn.data.prepare.index import INDEX_NAME, read_index, write_index


def indexed(root: Path, num_frames: dict[str, int]) -> Path:
    facts = {"height": 32, "width": 32}
    rows = num_frames.items()
    write_index(root, [{"path": p, "num_frames": n, "fps": n / 2, **facts} for p, n in rows])
    return root


def test_a_written_index_is_read_back(tmp_path: Path) -> None:
    assert read_index(tmp_path) is None
    indexed(tmp_path, {"b/2.mp4": 20, "a/1.mp4": 10})
    index = read_index(tmp_path)
    assert index is not None
    assert list(index.paths) == ["a/1.mp4", "b/2.mp4"]
    assert (index.num_frames.tolist(), index.fps.tolist()) == ([10, 20], [5.0, 10.0])
    assert [path.name for path in tmp_path.iterdir()] == [INDEX_NAME]


def test_a_list_is_checked_against_the_index_alone(tmp_path: Path) -> None:
    root = indexed(tmp_path, {"x/b.mp4": 20, "a.mp4": 0, "other.mp4": 5})
    (root / "list.txt").write_text("x/b.mp4 1\na.mp4 0\n")
    samples = read_list(root / "list.txt", root)
    assert listing(samples) == [("x/b.mp4", 1), ("a.mp4", 0)]
    assert samples.num_frames.tolist() == [20, 0]
    (root / "list.txt").write_text("x/b.mp4 1\nc.mp4 0\n")
    with pytest.raises(
        ValueError,
        match=rf"^1 of 2 listed videos are not in {re.escape(str(root))}/videoattn_index.npz: "
        "c.mp4; remove them from the list, correct the root, or leave them out "
        r"\(on_error=skip\); if files were added since it was made, delete it or make a new one$",
    ):
        read_list(root / "list.txt", root)
    kept = read_list(root / "list.txt", root, missing="keep")
    assert listing(kept) == [("x/b.mp4", 1), ("c.mp4", 0)]
    assert kept.num_frames.tolist() == [20, 0]


def test_class_folders(tmp_path: Path) -> None:
    for name in ("train/b", "train/a"):
        (tmp_path / name).mkdir(parents=True)
    indexed(
        tmp_path, {"train/b/1.mp4": 4, "train/a/2.mp4": 7, "train/a/d/1.mp4": 5, "test/a/3.mp4": 9}
    )
    samples = read_folders(tmp_path, "train")
    assert listing(samples) == [("train/a/2.mp4", 0), ("train/a/d/1.mp4", 0), ("train/b/1.mp4", 1)]
    assert samples.num_frames.tolist() == [7, 5, 4]


def test_frames_are_not_counted_again(make_clip: MakeClip, tmp_path: Path, monkeypatch) -> None:
    make_clip("c/a.mp4", 12)
    expected = train_set(read_folders(tmp_path))[0, 0].frames
    indexed(tmp_path, {"c/a.mp4": 12})
    monkeypatch.setattr(Video, "expect_frames", None)
    assert (train_set(read_folders(tmp_path))[0, 0].frames == expected).all()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(60)])
def test_a_file_that_is_not_an_index(content: bytes, tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"npz is damaged or not an index \(.+\); delete it, or index the folder again$",
    ):
        read_index(tmp_path)


def test_arrays_that_disagree(tmp_path: Path) -> None:
    indexed(tmp_path, {"a": 1, "b": 2})
    with np.load(tmp_path / INDEX_NAME) as arrays:
        good = dict(arrays)
    for wrong in (
        {"num_frames": good["num_frames"][:1]},
        {"ends": good["ends"][::-1]},
        {"paths": good["paths"][:1]},
    ):
        np.savez(tmp_path / INDEX_NAME, **{**good, **wrong})
        with pytest.raises(
            ValueError, match=r"is damaged: its arrays disagree; delete it, or index"
        ):
            read_index(tmp_path)
    np.savez(tmp_path / INDEX_NAME, **{**good, "num_frames": np.array([0.5, 1])})
    with pytest.raises(ValueError, match=r"is damaged or not an index \(Cannot cast"):
        read_index(tmp_path)
    del good["fps"]
    np.savez(tmp_path / INDEX_NAME, **good)
    with pytest.raises(ValueError, match=r"is damaged or not an index \(.*fps"):
        read_index(tmp_path)
