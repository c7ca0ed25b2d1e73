import inspect
import re
from pathlib import Path

import pytest

from videoattn.data.lists import parse_list, read_folders, read_list, read_ucf101
from videoattn.data.lists.folders import read_numbered_classes, read_ucf101_list


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def ucf101(root: Path, train: str, test: str = "") -> Path:
    touch(root, "videos/Bow/v_Bow_g01.mp4", "videos/Bow/v_Bow_g02.mp4", "videos/Box/v_Box_g01.mkv")
    touch(root, "videos/Bow/v_Bow_g02.txt", "ucfTrainTestlist/classInd.txt")
    (root / "ucfTrainTestlist/classInd.txt").write_text("1 Bow\n2 Box\n")
    (root / "ucfTrainTestlist/trainlist01.txt").write_text(train)
    (root / "ucfTrainTestlist/testlist01.txt").write_text(test)
    return root


def listing(samples) -> list[tuple[str, int]]:
    return [
        (samples.path(i).relative_to(samples.root).as_posix(), samples.label(i))
        for i in range(len(samples))
    ]


def test_folders(tmp_path: Path) -> None:
    root = touch(tmp_path, "b/2.mp4", "a/y.AVI", "a/x/1 1.mkv", "a/notes.txt", ".git/z.mp4")
    samples = read_folders(root)
    assert samples.class_names == ("a", "b")
    assert listing(samples) == [("a/x/1 1.mkv", 0), ("a/y.AVI", 0), ("b/2.mp4", 1)]


def test_folders_with_split(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/a/1.mp4", "val/a/2.mp4", "val/b/3.mp4")
    assert listing(read_folders(root, "val")) == [("val/a/2.mp4", 0), ("val/b/3.mp4", 1)]
    named = read_folders(root, "val", class_names=["b", "a"])
    assert listing(named) == [("val/b/3.mp4", 0), ("val/a/2.mp4", 1)]


def test_folder_errors(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/a/1.mp4", "val/a/none.txt")
    gone = tmp_path / "gone"
    for read in (read_folders, read_ucf101, lambda r: read_list("l.txt", r)):
        with pytest.raises(
            ValueError,
            match=f"^root: {re.escape(str(gone))} does not exist; need the folder of the videos$",
        ):
            read(gone)
    with pytest.raises(ValueError, match=r" has no split 'test'; it has train, val$"):
        read_folders(root, "test")
    with pytest.raises(ValueError, match=r"val holds no video; expected .*/val/CLASS/VIDEO, with"):
        read_folders(root, "val")
    with pytest.raises(ValueError, match=r"train has no folder for 1 of 2 classes: b; add"):
        read_folders(root, "train", class_names=["a", "b"])
    touch(root, "train/c/1.mp4")
    with pytest.raises(ValueError, match=r"train has folders outside the 1 classes: c; remove"):
        read_folders(root, "train", class_names=["a"])


def test_ucf101(tmp_path: Path) -> None:
    root = ucf101(
        tmp_path,
        train="Box/v_Box_g01.avi 2\nBow/v_Bow_g02.avi 1\n\n",
        test="Bow/v_Bow_g01.avi\n",
    )
    samples = read_ucf101(root)
    assert samples.class_names == ("Bow", "Box")
    assert listing(samples) == [("videos/Box/v_Box_g01.mkv", 1), ("videos/Bow/v_Bow_g02.mp4", 0)]
    assert listing(read_ucf101(root, 1, "test")) == [("videos/Bow/v_Bow_g01.mp4", 0)]


def test_ucf101_other_folder_names(tmp_path: Path) -> None:
    root = ucf101(tmp_path, train="Bow/v_Bow_g01.avi 1\n")
    (root / "videos").rename(root / "UCF-101")
    (root / "ucfTrainTestlist").rename(root / "annotations")
    assert listing(read_ucf101(root)) == [("UCF-101/Bow/v_Bow_g01.mp4", 0)]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("", r"trainlist01.txt: the list is empty; expected lines of 'Class/video.avi'$"),
        (
            "Bow/v_Bow_g01.avi 1\nBow/v_Bow_g02.avi 3\n",
            r"trainlist01.txt line 2: label 3 is out of range; allowed: 1 - 2$",
        ),
        (
            "Bow/v_Bow_g01.avi 0\n",
            r"trainlist01.txt line 1: label 0 is out of range; allowed: 1 - 2$",
        ),
        (
            "\nv_Bow_g01.avi 1\n",
            r"trainlist01.txt line 2: got 'v_Bow_g01.avi 1'; expected 'Class/video.avi'",
        ),
        (
            "Bow/v_Bow_g01.avi 1\nBow/v_Bow_g02.avi 2\n",
            r"01.txt line 2: label 2 is 'Box' in the class list, but the video is in 'Bow'$",
        ),
        ("Bow/a.avi 1\nBow/a.avi 1\n", r"line 2: 'Bow/a.avi' was listed before, in line 1; list"),
        ("Bow/v_Bow_g01.avi one\n", r"trainlist01.txt line 1: got 'Bow/v_Bow_g01.avi one';"),
        (
            "Run/v.avi\n",
            r"trainlist01.txt line 1: class 'Run' is not in the class list \(2 names\)$",
        ),
        (
            "".join(f"Bow/v_Bow_g{i:02d}.avi 1\n" for i in range(1, 9)),
            r"^6 of 8 listed videos do not exist under .*videos: Bow/v_Bow_g03.avi, .*g07.avi and "
            r"1 more; remove them from the list, correct the root, or leave them out "
            r"\(on_error=skip\)$",
        ),
    ],
)
def test_ucf101_errors(train: str, message: str, tmp_path: Path) -> None:
    root = ucf101(tmp_path, train)
    with pytest.raises(ValueError, match=message):
        read_ucf101(root)


def test_ucf101_missing_parts(tmp_path: Path) -> None:
    root = ucf101(tmp_path, train="Bow/v_Bow_g01.avi 1\n")
    with pytest.raises(
        ValueError,
        match=r"^the UCF101 list of split 2 \(train\) was not found; looked for .*02.txt",
    ):
        read_ucf101(root, 2)
    (root / "ucfTrainTestlist/classInd.txt").write_text("1 Bow\n2 Box\n3 Run\n")
    with pytest.raises(ValueError, match=r"videos has no folder for 1 of 3 classes: Run; add"):
        read_ucf101(root)
    (root / "ucfTrainTestlist/classInd.txt").write_text("1 Bow\n3 Box\n")
    with pytest.raises(ValueError, match=r"classInd.txt line 2: got '3 Box'; expected '2 ClassNa"):
        read_ucf101(root)
    (root / "ucfTrainTestlist/classInd.txt").unlink()
    with pytest.raises(
        ValueError, match=r"^the class list of UCF101 was not found; looked for .*classI"
    ):
        read_ucf101(root)


def test_list(tmp_path: Path) -> None:
    root = touch(tmp_path, "a b/c d.mp4", "e.mp4")
    file = root / "list.txt"
    file.write_text("a b/c d.mp4 2\n\ne.mp4 0\n")
    samples = read_list(file, root)
    assert samples.class_names == ("0", "1", "2")
    assert listing(samples) == [("a b/c d.mp4", 2), ("e.mp4", 0)]
    assert read_list(file, root, class_names=["x", "y", "z"]).class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"list.txt: the list is empty; expected lines of 'path label'$"),
        (
            "e.mp4 0\ne.mp4\n\nf.mp4 g.mp4\n7\n",
            r"txt line 2: got 'e.mp4'; expected 'path label', e.g. 'a/b.mp4 3'; also line 4, 5$",
        ),
        ("e.mp4 0\n e.mp4\t1\n", r"list.txt line 2: 'e.mp4' was listed before, in line 1; list e"),
        (
            "f.mp4 0\ne.mp4 1 0\n",
            r"list.txt line 2: got 'e.mp4 1 0', with '1 0' after the path; columns='path labels' "
            r"takes all labels, 'path label ...' the first one, 'path frames label' is for lists "
            r"with frame counts$",
        ),
        ("e.mp4 0,1\n", r"list.txt line 1: got 'e.mp4 0,1', with '0,1' after the path; columns='p"),
        (
            "label,youtube_id,time_start,time_end,split\n",
            r"list.txt line 1: got 'label,youtube_id,time_start,time_end,split'; expected 'path la",
        ),
        ("e.mp4 x\n", r"list.txt line 1: got 'e.mp4 x'; expected 'path label'"),
        ("e.mp4 2\n", r"list.txt line 1: label 2 is out of range; allowed: 0 - 1$"),
        ("e.mp4 -1\n", r"list.txt line 1: label -1 is out of range; allowed: 0 - 1$"),
        ("e.mp4 0\nf.mp4 1\n", r"^1 of 2 listed videos do not exist under .*: f.mp4; remove them"),
    ],
)
def test_list_errors(text: str, message: str, tmp_path: Path) -> None:
    root = touch(tmp_path, "e.mp4")
    (root / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_list(root / "list.txt", root, class_names=["a", "b"])


def test_list_file_missing(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"list.txt: the list file does not exist; correct its path$"
    ):
        read_list(tmp_path / "list.txt", tmp_path)


@pytest.mark.parametrize(
    ("columns", "separator", "text", "expected"),
    [
        ("path label", " ", "a b/c d.mp4\t 1\ne, 7.mp4 0", [("a b/c d.mp4", 1), ("e, 7.mp4", 0)]),
        ("path label", ",", "a, b.mp4, 1\n c.mp4,0 ", [("a, b.mp4", 1), ("c.mp4", 0)]),
        ("path label", "::", "a b.mp4::1\nc:d.mp4 :: 0", [("a b.mp4", 1), ("c:d.mp4", 0)]),
        ("path frames label", " ", "a 1.mp4 300 1\nb.mp4 12 0", [("a 1.mp4", 1), ("b.mp4", 0)]),
        ("path frames label", ",", "a.mp4,300,1\nb.mp4,12,0", [("a.mp4", 1), ("b.mp4", 0)]),
        ("path label ...", " ", "a 1.mp4 1 0 2\nb.mp4 0", [("a 1.mp4", 1), ("b.mp4", 0)]),
        ("path label ...", " ", "a.mp4 1,2\nb.mp4 0, 2", [("a.mp4", 1), ("b.mp4", 0)]),
        ("path label ...", ",", "a.mp4,1,2\nb.mp4 , 0", [("a.mp4", 1), ("b.mp4", 0)]),
    ],
)
def test_dialects(
    columns: str, separator: str, text: str, expected: list[tuple[str, int]], tmp_path: Path
) -> None:
    touch(tmp_path, *(path for path, _ in expected))
    (tmp_path / "list.txt").write_text(text)
    samples = read_list(tmp_path / "list.txt", tmp_path, columns=columns, separator=separator)
    assert listing(samples) == expected
    assert not samples.num_frames.any(), "frame counts of videos in lists are often wrong"


@pytest.mark.parametrize(
    ("columns", "separator", "text", "message"),
    [
        ("path label", ",", "a.mp4 1", r"got 'a.mp4 1'; expected .*, with ',' between them$"),
        (
            "path frames label",
            " ",
            "a.mp4 1",
            r"line 1: got 'a.mp4 1'; expected 'path frames label'",
        ),
        (
            "path frames label",
            " ",
            "a.mp4 0 1",
            r"line 1: got 'a.mp4 0 1'; expected 'path frames l",
        ),
        ("path label ...", " ", "a.mp4", r"line 1: got 'a.mp4'; expected 'path label ...', e.g. "),
        ("label path", " ", "a.mp4", r"^columns: got 'label path'; choose from path label, path f"),
        (
            "path label",
            "",
            "a.mp4",
            r"^separator: got ''; need some text; ' ' matches any",
        ),
    ],
)
def test_dialect_errors(
    columns: str, separator: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text(text)
    parse = inspect.unwrap(parse_list)  # values that the types rule out, as a user may write them
    with pytest.raises(ValueError, match=message):
        parse(tmp_path / "list.txt", columns=columns, separator=separator)


def test_many_wrong_lines_are_abbreviated(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("x\n" * 50)
    with pytest.raises(
        ValueError, match=r"line 1: got 'x'; .*; also line 2, 3, .*, 20, 21, \.\.\.$"
    ):
        read_list(tmp_path / "list.txt", tmp_path)


def test_absolute_paths(tmp_path: Path) -> None:
    touch(tmp_path, "far/a.mp4", "root/b.mp4")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/far/a.mp4 0\nb.mp4 1\n")
    samples = read_list(tmp_path / "list.txt", tmp_path / "root")
    assert [samples.path(i) for i in (0, 1)] == [tmp_path / "far/a.mp4", tmp_path / "root/b.mp4"]


def test_missing_files_are_dropped_or_kept(tmp_path: Path) -> None:
    root = touch(tmp_path, "a.mp4", "x/c.mp4")
    (root / "list.txt").write_text("a.mp4 0\nb.mp4 1\nx/c.mp4 1\ny/d.mp4 2\n")
    dropped = read_list(root / "list.txt", root, missing="drop")
    assert listing(dropped) == [("a.mp4", 0), ("x/c.mp4", 1)]
    kept = read_list(root / "list.txt", root, missing="keep")
    assert listing(kept) == [("a.mp4", 0), ("b.mp4", 1), ("x/c.mp4", 1), ("y/d.mp4", 2)]
    assert dropped.missing == kept.missing == ("b.mp4", "y/d.mp4")
    assert dropped.class_names == kept.class_names == ("0", "1", "2")


def test_official_ucf101_lists(real_data: Path) -> None:
    folder = real_data / "annotations" / "ucf101_splits"
    names = read_numbered_classes(folder / "classInd.txt", lambda row: f"{row + 1} Name")
    assert len(names) == 101
    for split, counts in enumerate([(9537, 3783), (9586, 3734), (9624, 3696)], 1):
        for subset, count in zip(("train", "test"), counts, strict=True):
            listed = read_ucf101_list(folder / f"{subset}list{split:02d}.txt", names)
            assert len(listed.names) == len(listed.labels) == count
            paths = zip(listed.names, listed.labels, strict=True)
            assert all(names[label] == path.split("/")[0] for path, label in paths)


def test_real_ucf101_layout(real_data: Path) -> None:
    root = real_data / "ucf101-11"
    assert len(read_ucf101(root, 1, "train")) == 727
    test = read_ucf101(root, 1, "test")
    assert len(test) == 293
    assert all(test.path(i).is_file() for i in range(0, 293, 20))
