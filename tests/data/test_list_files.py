"""Files as they occur on disks and as editors write them."""

import codecs
from pathlib import Path

import pytest

from tests.data.test_annotations import listing, touch
from tests.data.test_index import indexed
from videoattn.data.lists import (
    ListError,
    read_class_list,
    read_folders,
    read_frames,
    read_kinetics_csv,
    read_list,
    read_ucf101,
)
from videoattn.data.lists.files import folders_in, walk

LIST = "v/1.mp4 0\nv/2.mp4 1\n"


def test_hidden_files_are_skipped(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.mp4", "a/._1.mp4", "a/.cache/2.mp4", "b/.x.mp4", "b/3.mp4")
    expected = [("a/1.mp4", 0), ("b/3.mp4", 1)]
    assert listing(read_folders(root)) == expected
    rows = ["a/1.mp4", "a/._1.mp4", "a/../../secret.mp4", "b/3.mp4", "/etc/a.mp4"]
    indexed(root, dict.fromkeys(rows, 10))
    assert listing(read_folders(root)) == expected, "an index may list them"


def test_a_link_to_a_folder_above_is_skipped(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "train/a/1.mp4", "train/b/2.mp4")
    (root / "train/a/up").symlink_to("..")
    (root / "train/b/self").symlink_to(".")
    (root / "train/b/again").symlink_to(".")
    with pytest.warns(UserWarning, match=r" links to a folder above it and is skipped$"):
        assert listing(read_folders(root, "train")) == [("train/a/1.mp4", 0), ("train/b/2.mp4", 1)]


@pytest.mark.parametrize(
    ("links", "num_loops"),
    [
        ({"train/a/x": "../b", "train/b/y": "../a"}, 2),  # each leads to the other
        ({"train/a/x": "{root}"}, 1),  # absolute, above the split
        ({"train/a/x": "deep", "train/a/deep/y": ".."}, 2),
    ],
)
@pytest.mark.filterwarnings("ignore:.* links to a folder above it and is skipped")
def test_walks_through_links_end(links: dict[str, str], num_loops: int, tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "train/a/1.mp4", "train/a/deep/3.mp4", "train/b/2.mp4")
    for link, target in links.items():
        (root / link).symlink_to(target.format(root=root))
    with pytest.warns(UserWarning, match=r" links to a folder above it and is skipped$") as caught:
        found = list(walk(root))
    assert len(caught) >= num_loops
    assert len(found) == len(set(found)) < 12
    assert {"train/a/1.mp4", "train/a/deep/3.mp4", "train/b/2.mp4"} <= set(found)
    labels = dict(listing(read_folders(root, "train")))
    assert set(labels.values()) == {0, 1}


def test_a_link_above_the_walked_folder_lists_no_file_twice(tmp_path: Path) -> None:
    root = touch(tmp_path / "data/root", "a/1.mp4")
    touch(tmp_path / "data", "other/2.mp4")
    (root / "up").symlink_to("..")
    with pytest.warns(UserWarning, match=r"up/root links to a folder above it and is skipped$"):
        assert sorted(walk(root)) == ["a/1.mp4", "up/other/2.mp4"]


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a/1.mp4", "b/.hidden/2.mp4")
    (root / "loop").symlink_to("loop")
    assert folders_in(root) == ["a", "b"]
    for path, error in {"none": FileNotFoundError, "a/1.mp4": NotADirectoryError}.items():
        with pytest.raises(error, match=path):
            folders_in(root / path)


def test_other_links_are_followed(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a/1.mp4")
    touch(tmp_path / "far", "deep/2.mp4")
    (root / "b").symlink_to(tmp_path / "far")
    (root / "a/same").symlink_to(tmp_path / "far")  # reached twice, but it ends
    (root / "a/loop.mp4").symlink_to("loop.mp4")  # of itself
    assert sorted(walk(root)) == ["a/1.mp4", "a/loop.mp4", "a/same/deep/2.mp4", "b/deep/2.mp4"]
    assert list(walk(root / "none")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LIST.encode("utf-16"), r"list.txt is UTF-16 text; save it as UTF-8$"),
        (
            codecs.BOM_UTF16_BE + LIST.encode("utf-16-be"),
            r"list.txt is UTF-16 text; save it as UTF-8$",
        ),
        (LIST.encode("utf-16-le"), r"list.txt has NUL bytes, as UTF-16 text has; save it as UTF-8"),
        (
            LIST.replace("\n", "\r").encode(),
            r"list.txt has lines that end in CR; save it as UTF-8 with LF line endings$",
        ),
    ],
)
def test_texts_in_another_encoding(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ListError, match=message):
        read_list(tmp_path / "list.txt", tmp_path)
    with pytest.raises(ListError, match=message):
        read_class_list(tmp_path / "list.txt")


@pytest.mark.parametrize("text", [LIST.replace("\n", "\r\n"), "\ufeff" + LIST, LIST + "\0" * 64])
def test_texts_that_are_read(text: str, tmp_path: Path) -> None:
    root = touch(tmp_path, "v/1.mp4", "v/2.mp4")
    (root / "list.txt").write_bytes(text.encode())
    assert listing(read_list(root / "list.txt", root)) == [("v/1.mp4", 0), ("v/2.mp4", 1)]


def test_file_names_that_are_not_utf_8(tmp_path: Path) -> None:
    name = "latin1_\udce9.mp4"
    touch(tmp_path, f"a/{name}")
    (tmp_path / "list.txt").write_bytes(b"a/latin1_\xe9.mp4 0\n")
    for samples in (read_list(tmp_path / "list.txt", tmp_path), read_folders(tmp_path)):
        assert listing(samples) == [(f"a/{name}", 0)]


@pytest.mark.parametrize(
    "again", ["./v/1.mp4", "v//1.mp4", "v/./1.mp4", ".//v/1.mp4", "{root}/v/1.mp4"]
)
def test_one_video_under_two_spellings_is_a_repeat(again: str, tmp_path: Path) -> None:
    root = touch(tmp_path, "v/1.mp4", "v/2.mp4")
    again = again.format(root=root)
    (root / "list.txt").write_text(f"{LIST}{again} 1\n")
    with pytest.raises(
        ListError, match=r"list.txt line 3: 'v/1.mp4' was listed before, in line 1; list each"
    ):
        read_list(root / "list.txt", root)
    (root / "list.txt").write_text(f"{again} 1\n")
    assert listing(read_list(root / "list.txt", root)) == [("v/1.mp4", 1)]
    indexed(root, {"v/1.mp4": 12})
    assert listing(read_list(root / "list.txt", root)) == [("v/1.mp4", 1)]


@pytest.mark.parametrize("again", ["v/../v/1.mp4", "w/1.mp4", "{root}/v/1.mp4", "w/../v/1.mp4"])
def test_one_file_that_two_names_of_a_list_lead_to(again: str, tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "v/1.mp4", "v/2.mp4")
    (root / "w").symlink_to("v")
    (tmp_path / "link").symlink_to("root")
    again = again.format(root=tmp_path / "link")
    (root / "list.txt").write_text(f"{LIST}{again} 1\n")
    with pytest.raises(
        ListError, match=r"^v/1\.mp4 and .*1\.mp4 are one file, .*1\.mp4; list each"
    ):
        read_list(root / "list.txt", root)


def test_two_names_of_an_official_list_that_lead_to_one_copy(tmp_path: Path) -> None:
    root = touch(tmp_path, "videos/Run/a.mp4", "videos/Run/b.mp4")
    (root / "annotations").mkdir()
    (root / "annotations/classInd.txt").write_text("1 Run\n")
    (root / "annotations/trainlist01.txt").write_text("Run/a.avi 1\nRun/b.avi 1\nRun/a.mpg 1\n")
    with pytest.raises(
        ListError, match=r"Run/a\.avi and Run/a\.mpg are one file, videos/Run/a\.mp4"
    ):
        read_ucf101(root)


def test_a_folder_of_frames_may_end_in_a_slash(tmp_path: Path) -> None:
    touch(tmp_path, "v/1/img_00001.jpg")
    (tmp_path / "list.txt").write_text("v/1/ 12 0\n")
    assert listing(read_frames(tmp_path / "list.txt", tmp_path)) == [("v/1", 0)]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("w/1.mp4 0\n", r"set root to the folder that the list's paths start from$"),
        ("v\\1.mp4 0\n", r"write / instead of \\ in the list$"),
        ('"v/1.mp4" 0\n', r"remove the quotes from the list$"),
    ],
)
def test_why_all_paths_are_missing(text: str, remedy: str, tmp_path: Path) -> None:
    touch(tmp_path, "v/1.mp4")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ListError, match=remedy):
        read_list(tmp_path / "list.txt", tmp_path)


def test_csv_with_an_open_quote(tmp_path: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "train.csv").write_text(header + '"' + "run,abc,1,11,train\n" * 10_000)
    with pytest.raises(ListError, match=r"train.csv line \d+: not a csv file"):
        read_kinetics_csv(tmp_path / "train.csv")
