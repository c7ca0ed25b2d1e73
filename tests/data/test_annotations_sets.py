"""HMDB51, Kinetics, Something-Something, Jester: layouts, full-size lists, messages."""

import json
import re
from pathlib import Path

import pytest

from tests.data.test_annotations import listing, touch
from tests.data.test_index import indexed
from videoattn.data.lists import (
    read_class_list,
    read_hmdb51,
    read_jester,
    read_kinetics,
    read_kinetics_csv,
    read_something,
    read_ucf101,
)
from videoattn.data.lists.folders import read_hmdb51_lists

HEADER = "label,youtube_id,time_start,time_end,split\n"


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)
    return root


def hmdb51(root: Path, bow: str, box: str = "x.avi 1\n") -> Path:
    touch(root, "videos/shoot_bow/a#1 b.mp4", "videos/shoot_bow/c.avi", "videos/box/x.avi")
    (root / "splits").mkdir(exist_ok=True)
    return write(
        root, **{"splits/shoot_bow_test_split1__txt": bow, "splits/box_test_split1__txt": box}
    )


def test_hmdb51(tmp_path: Path) -> None:
    root = hmdb51(tmp_path, "a#1 b.avi 1 \nc.avi 2 \n", "x.avi 0\n")
    samples = read_hmdb51(root)
    assert samples.class_names == ("box", "shoot_bow")
    assert listing(samples) == [("videos/shoot_bow/a#1 b.mp4", 1)]
    assert listing(read_hmdb51(root, 1, "test")) == [("videos/shoot_bow/c.avi", 1)]


@pytest.mark.parametrize(
    ("bow", "message"),
    [
        (
            "c.avi 1\nc.avi\n\nd.avi 3\n",
            r"bow_test_split1.txt line 2: got 'c.avi'; expected 'video.avi 1' \(train\), "
            r"2 \(test\) or 0 \(not in this split\); also line 4$",
        ),
        (
            "c.avi 1\nc.avi 2\n",
            r"line 2: 'c.avi' was listed before, in line 1; list each video once$",
        ),
        (
            "c.avi 2\nd.avi 1\n",
            r"^1 of 2 listed videos do not exist under .*videos: shoot_bow/d.avi;",
        ),
    ],
)
def test_hmdb51_errors(bow: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_hmdb51(hmdb51(tmp_path, bow))


def test_hmdb51_empty_split(tmp_path: Path) -> None:
    root = hmdb51(tmp_path, "c.avi 1\n")
    with pytest.raises(ValueError, match=r"_test_split1.txt: no test video in split 1$"):
        read_hmdb51(root, 1, "test")
    with pytest.raises(
        ValueError, match=r"^\*_test_split2.txt was not found in .*; put HMDB51's list files there$"
    ):
        read_hmdb51(root, 2)


def test_hmdb51_full_size(real_data: Path) -> None:
    for split in (1, 2, 3):
        for subset, count in (("train", 3570), ("test", 1530)):
            listed = read_hmdb51_lists(real_data / "annotations/hmdb51_splits", split, subset)
            assert len(listed.names) == count
            assert len(listed.class_names) == 51
            assert all(
                name.split("/")[0] == listed.class_names[label]
                for name, label in zip(listed.names, listed.labels, strict=True)
            )


@pytest.mark.parametrize(
    "folder",
    ["train/air drumming/", "train/air_drumming/", "train/", "videos_train/a/", "", "x/y/"],
)
def test_kinetics_folders(folder: str, tmp_path: Path) -> None:
    clips = [f"{folder}-a_b3fGh1jK_000005_000015.mp4", f"{folder}0123456789A_000123_000133.mkv"]
    touch(tmp_path, *clips, f"{folder}0123456789A_000123_000133.json")
    write(tmp_path, train__csv=HEADER + "air drumming,0123456789A,123,133,train\n"
          "abseiling,-a_b3fGh1jK,5,15,train\n")  # fmt: skip
    samples = read_kinetics(tmp_path)
    assert samples.class_names == ("abseiling", "air drumming")
    assert listing(samples) == [(clips[1], 1), (clips[0], 0)]


def test_kinetics_columns(tmp_path: Path) -> None:
    """Columns may be in any order, more than needed, and quoted."""
    touch(tmp_path, "val/abc_000001_000011.mp4", "annotations/x")
    (tmp_path / "annotations/val.csv").write_text(
        '\ufeffis_cc,split,"label",youtube_id,time_start,time_end\r\n'
        '0,val,"running, on grass",abc,1,11\r\n'
    )
    samples = read_kinetics(tmp_path, "val")
    assert samples.class_names == ("running, on grass",)
    assert listing(samples) == [("val/abc_000001_000011.mp4", 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            r"train.csv: the csv is empty; expected the columns label,youtube_id,time_start,time_",
        ),
        (HEADER, r"train.csv: the list is empty; expected lines of 'label,youtube_id,time_start,"),
        (
            "34870;Drumming Fingers\n",
            r"train.csv line 1: got '34870;Drumming Fingers'; expected the columns "
            "label,youtube_id,time_start,time_end,split: choose the layout of this list's "
            "dataset$",
        ),
        (
            "youtube_id,time_start,time_end,split\na,1,2,test\n",
            r"line 1: got 'youtube_id,time_start",
        ),
        (
            HEADER + "run,abc,1,11,train\nrun,abc,1\n\nrun,abd,1,x,train\nrun,abe,11,1,train\n"
            "run,,1,2,train\n",
            r"train.csv line 3: got 'run,abc,1'; expected label,youtube_id,time_start,time_end,"
            r"split, e.g. 'abseiling,0347ZoDXyP0,95,105,train'; also line 5, 6, 7$",
        ),
        (
            HEADER + "run,abc,1,11,train\nwalk,abc,1,11,train\n",
            r"train.csv line 3: 'abc_000001_000011' was listed before, in line 2; list each video",
        ),
        (
            HEADER + "run,abc,1,11,train\nwalkin,abd,1,11,train\n",
            r"train.csv line 3: class 'walkin' is not in the class list \(2 names\) \(did you mean "
            r"walk\?\)$",
        ),
    ],
)
def test_kinetics_errors(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, train__csv=text)
    with pytest.raises(ValueError, match=message):
        read_kinetics(tmp_path, class_names=["run", "walk"])


def test_kinetics_missing(tmp_path: Path) -> None:
    touch(tmp_path, "train/abc_000001_000011.mp4")
    write(tmp_path, train__csv=HEADER + "run,abc,1,11,train\nwalk,abd,1,11,train\n")
    with pytest.raises(
        ValueError,
        match=r"^1 of 2 listed videos do not exist under .*/train: abd_000001_000011; remove them "
        r"from the list, correct the root, or leave them out \(on_error=skip\)$",
    ):
        read_kinetics(tmp_path)
    left = read_kinetics(tmp_path, missing="drop")
    assert listing(left) == [("train/abc_000001_000011.mp4", 0)]
    assert left.class_names == ("run", "walk")
    assert left.missing == ("abd_000001_000011",)
    (tmp_path / "train/abc_000001_000011.mp4").unlink()
    with pytest.raises(ValueError, match=r"^2 of 2 listed .*; set root to the folder that the"):
        read_kinetics(tmp_path, missing="drop")
    with pytest.raises(
        ValueError,
        match=r"^the Kinetics list of 'val' was not found; looked for .*/val.csv, .*/annot",
    ):
        read_kinetics(tmp_path, "val")


def test_kinetics_full_size(real_data: Path, tmp_path: Path) -> None:
    file = real_data / "annotations/val_k200.csv"
    listed = read_kinetics_csv(file)
    assert (len(listed.names), len(listed.class_names)) == (5000, 200)
    assert (listed.names[0], listed.class_names[0]) == ("0wR5jVB-WPk_000417_000427", "abseiling")
    names = read_class_list(real_data / "annotations/label_map_k400.txt")
    assert len(names) == 400
    in_400 = read_kinetics_csv(file, names)
    assert all(
        listed.class_names[a] == names[b] for a, b in zip(listed.labels, in_400.labels, strict=True)
    )
    with pytest.raises(
        ValueError, match=r"line 2: class 'abseiling' is not in the class list \(399"
    ):
        read_kinetics_csv(file, names[1:])
    # An index is enough to find all of them.
    paths = [
        f"val/{names[y]}/{name}.mkv" for name, y in zip(listed.names, in_400.labels, strict=True)
    ]
    indexed(tmp_path, dict.fromkeys(paths, 300))
    (tmp_path / "val_k200.csv").write_bytes(file.read_bytes())
    samples = read_kinetics(tmp_path, "val_k200", class_names=names)
    assert [path for path, _ in listing(samples)] == paths


def test_ucf101_full_size_by_index(real_data: Path, tmp_path: Path) -> None:
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (tmp_path / "videos").mkdir()
    paths = []
    for file in (real_data / "annotations/ucf101_splits").iterdir():
        (lists / file.name).write_bytes(file.read_bytes())
        if "01" in file.name:
            words = (line.split()[0] for line in file.read_text().splitlines())
            paths += [f"videos/{word.removesuffix('.avi')}.mp4" for word in words]
    indexed(tmp_path, dict.fromkeys(paths, 100))
    for split, counts in enumerate([(9537, 3783), (9586, 3734), (9624, 3696)], 1):
        for subset, count in zip(("train", "test"), counts, strict=True):
            samples = read_ucf101(tmp_path, split, subset)
            assert len(samples) == count
            assert all(samples.class_names[y] == p.split("/")[1] for p, y in listing(samples))


def something(root: Path, entries: object) -> Path:
    labels = {"Holding something": "1", "Approaching something with your camera": "0"}
    touch(root, "20bn-something-something-v2/78687.webm", "20bn-something-something-v2/42326.mp4")
    write(root, **{"something-something-v2-labels__json": json.dumps(labels)})
    return write(root, train__json=entries if isinstance(entries, str) else json.dumps(entries))


def entry(name: str, template: str = "Holding [something]") -> dict[str, object]:
    return {"id": name, "label": "holding a cup", "template": template, "placeholders": ["a cup"]}


def test_something(tmp_path: Path) -> None:
    camera = "Approaching [something] with your camera"
    samples = read_something(something(tmp_path, [entry("42326", camera), entry("78687")]))
    assert samples.class_names == ("Approaching something with your camera", "Holding something")
    folder = "20bn-something-something-v2"
    assert listing(samples) == [(f"{folder}/42326.mp4", 0), (f"{folder}/78687.webm", 1)]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("[{", r"train.json is not valid JSON: "),
        (
            [],
            r"train.json: expected a list of entries with 'id' and 'template'; choose the layout",
        ),
        ({"database": {}}, r"train.json: expected a list of entries with 'id' and 'template'"),
        (
            [entry("78687"), {"id": "42326"}, 3],
            r"train.json entry 2: got {'id': '42326'}; expected an 'id' and a 'template'; "
            "also entry 3$",
        ),
        (
            [entry("78687", "Holding [something] up")],
            r"entry 1: class 'Holding something up' is not in the class list \(2 names\) \(did ",
        ),
        ([entry("78687"), entry("78687")], r"entry 2: '78687' was listed before, in entry 1; list"),
    ],
)
def test_something_errors(entries: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_something(something(tmp_path, entries))


def test_something_labels(tmp_path: Path) -> None:
    root = something(tmp_path, [entry("78687")])
    write(root, **{"something-something-v2-labels__json": '{"a": "0", "b": "2"}'})
    with pytest.raises(
        ValueError, match=r"labels.json: number 1 is missing among 2 classes; expected a"
    ):
        read_something(root)
    write(root, **{"something-something-v2-labels__json": '["a"]'})
    with pytest.raises(ValueError, match=r"labels.json: expected a class name and its number each"):
        read_something(root)
    write(root, **{"something-something-v2-labels__json": '{"Holding something": "0"}'})
    with pytest.raises(ValueError, match=r"^the list 'validation.json' was not found; looked for "):
        read_something(root, "validation")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"train.csv: the list is empty; expected lines of 'id;class name'$"),
        (
            "1;Stop Sign\n2\n;Stop Sign\n",
            r"train.csv line 2: got '2'; expected 'id;class name', e.g. '34870;Drumming Fingers'; "
            "also line 3$",
        ),
        (HEADER + "run,abc,1,11,train\n", r"train.csv line 1: got 'label,youtube_id,time_start,"),
        ("1;Stop\n", r"line 1: class 'Stop' is not in the class list \(1 names\)"),
        ("1;Stop Sign\n1;Stop Sign\n", r"line 2: '1' was listed before, in line 1; list each"),
        ("1;Stop Sign\n3;Stop Sign\n", r"^1 of 2 listed videos do not exist under .*: 3; remove"),
    ],
)
def test_jester_errors(text: str, message: str, tmp_path: Path) -> None:
    touch(tmp_path, "20bn-jester-v1/1/00001.jpg")
    write(tmp_path, labels__csv="Stop Sign\n", train__csv=text)
    with pytest.raises(ValueError, match=message):
        read_jester(tmp_path)


def test_class_list(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: no such class list; "):
        read_class_list(file)
    file.write_text("run\nwalk a dog\n\nrun\n")
    with pytest.raises(ValueError, match=r"line 4: class 'run' is line 1, too; name each once$"):
        read_class_list(file)
    file.write_text("\n")
    with pytest.raises(
        ValueError, match=r"the list is empty; expected lines of one class name each$"
    ):
        read_class_list(file)
    file.write_text("run\r\n walk a dog\n")
    assert read_class_list(file) == ("run", "walk a dog")
