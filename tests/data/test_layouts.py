"""The key data.layout of a recipe, and the keys that depend on it."""

from pathlib import Path

import pytest

from tests.data.test_annotations import listing, touch
from videoattn.recipe.config import DataConfig
from videoattn.recipe.data import make_samples

HEADER = "label,youtube_id,time_start,time_end,split\n"


def test_every_layout(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/b/1.mp4", "train/a/2.mp4", "videos/b/1.mp4", "videos/a/2.mp4")
    touch(root, "train/xyz_000001_000011.mp4", "videos/7.webm", "20bn-jester-v1/7/00001.jpg")
    files = {
        "list.csv": "train/b/1.mp4,1\n",
        "frames.txt": "videos/b 12 1\n",
        "train.csv": HEADER + "b,xyz,1,11,train\n",
        "classInd.txt": "1 a\n2 b\n",
        "trainlist02.txt": "b/1.avi 2\n",
        "a_test_split2.txt": "2.avi 2 \n",
        "b_test_split2.txt": "1.avi 1 \n",
        "labels.json": '{"a": "0", "b": "1"}',
        "train.json": '[{"id": "7", "template": "b"}]',
        "jester-v1-labels.csv": "a\nb\n",
        "jester-v1-train.csv": "7;b\n",
        "classes.txt": "a\nb\n",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    classes = str(root / "classes.txt")
    # train.csv is the list of Kinetics here, and Jester would look for it first.
    jester = {"layout": "jester", "train_split": "jester-v1-train"}
    (root / "annotations").mkdir()
    (root / "jester-v1-train.csv").rename(root / "annotations/jester-v1-train.csv")
    for keys, path in [
        ({"layout": "list", "train_split": "list.csv", "separator": ","}, "train/b/1.mp4"),
        ({"layout": "frames", "train_split": "frames.txt"}, "videos/b"),
        ({"layout": "kinetics", "class_list": classes}, "train/xyz_000001_000011.mp4"),
        ({"layout": "ucf101", "official_split": 2}, "videos/b/1.mp4"),
        ({"layout": "hmdb51", "official_split": 2}, "videos/b/1.mp4"),
        ({"layout": "something"}, "videos/7.webm"),
        (jester, "20bn-jester-v1/7"),
    ]:
        samples = make_samples(DataConfig(root=str(root), **keys), "train")
        assert listing(samples) == [(path, 1)], keys
    frames = DataConfig(root=str(root), layout="frames", train_split="frames.txt")
    assert make_samples(frames, "train").frame_template == "img_{:05d}.jpg"
    folders = make_samples(DataConfig(root=str(root), class_list=classes), "train")
    assert listing(folders) == [("train/a/2.mp4", 0), ("train/b/1.mp4", 1)]


@pytest.mark.parametrize(
    ("layout", "train", "test", "message"),
    [
        (
            "list", "a.mp4 0\nb.mp4 1\n", "c.mp4 2\n",
            r"test line 1: label 2 is out of range; allowed: 0 - 1$",
        ),
        (
            "frames", "a.mp4 9 0\nb.mp4 9 1\n", "c.mp4 9 2\n",
            r"test line 1: label 2 is out of range; allowed: 0 - 1$",
        ),
        (
            "kinetics", HEADER + "run,a,1,11,train\n", HEADER + "walk,b,1,11,test\n",
            r"test.csv line 2: class 'walk' is not in the class list \(1 names\)$",
        ),
    ],
)  # fmt: skip
def test_the_training_split_defines_the_classes(
    layout: str, train: str, test: str, message: str, tmp_path: Path
) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "b_000001_000011.mp4")
    end = ".csv" if layout == "kinetics" else ""
    for name, text in (("train", train), ("test", test)):
        (tmp_path / (name + end)).write_text(text)
    config = DataConfig(root=str(tmp_path), layout=layout)
    with pytest.raises(ValueError, match=message):
        make_samples(config, "test")


def test_missing_videos_under_skip(tmp_path: Path) -> None:
    """Training leaves them out. Evaluation keeps them, and they fail."""
    touch(tmp_path, "a.mp4")
    for name in ("train", "test"):
        (tmp_path / name).write_text("a.mp4 0\nb.mp4 1\n")
    config = DataConfig(root=str(tmp_path), layout="list", on_error="skip")
    assert listing(make_samples(config, "train")) == [("a.mp4", 0)]
    assert listing(make_samples(config, "test")) == [("a.mp4", 0), ("b.mp4", 1)]
    strict = DataConfig(root=str(tmp_path), layout="list")
    for subset in ("train", "test"):
        with pytest.raises(ValueError, match=r"^1 of 2 listed videos do not exist under "):
            make_samples(strict, subset)
