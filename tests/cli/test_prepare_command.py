"""`videoattn prepare` as users type it, and training on its shards."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.cli.test_commands import command, refused
from videoattn.data.lists import read_folders
from videoattn.data.prepare.verify import probe
from videoattn.data.synthetic import demo_clip, encode_clip, write_demo_clips
from videoattn.engine import checkpoint
from videoattn.engine import train as engine
from videoattn.recipe.config import DataConfig
from videoattn.recipe.data import make_samples
from videoattn.recipe.load import load
from videoattn.recipe.run import load as load_run

RECIPE = """\
name: tiny
data: {root: clips, num_workers: 0}
clip: {sampling: segments, num_frames: 4, height: 16, width: 16}
augment: {flip: false}
test: {short_side: 16}
model: {name: i3d_r18, options: {width: 2}}
train: {num_epochs: 2, batch_size: 4, precision: float32, save_every_steps: 1}
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    write_demo_clips(root, num_train_per_class=2, num_test_per_class=1)
    return root


@pytest.fixture
def clips(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """clips/{train,test}/*/*.mp4 and tiny.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)
    shutil.copytree(demo, "clips")
    return Path("clips")


def words(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_verify_a_recipe(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ("prepare", "verify", "tiny.yaml", "--workers", 1)
    assert command(*call) == 0
    total = len(list(clips.glob("*/*/*.mp4")))
    assert f"{total} files: {total} clean, 0 broken; runs/verify-tiny/ lists them" in words(capsys)
    paths = sorted(str(path.relative_to(clips)) for path in (clips / "train").glob("*/*.mp4"))
    (clips / paths[0]).write_bytes(b"")
    assert command(*call) == 1
    said = words(capsys)
    assert f"{total} files: {total - 1} clean, 1 broken; runs/verify-tiny/ lists them" in said
    assert f"{paths[0]}: the file is empty (0 bytes)" in said
    folder = Path("runs/verify-tiny").resolve()
    broken = (folder / "broken.txt").read_text()
    assert broken == f"{paths[0]}\tthe file is empty (0 bytes)\n"
    assert len((folder / "checked.jsonl").read_text().splitlines()) == 1 + total + 1
    config = DataConfig(
        root="clips", layout="list", train_split=f"{folder}/clean_train.txt",
        test_split=f"{folder}/clean_test.txt", class_list=f"{folder}/classes.txt",
    )  # fmt: skip
    clean, listed = make_samples(config, "train"), read_folders(clips, "train")
    assert sorted(clean.paths) == paths[1:]
    assert clean.class_names == listed.class_names
    label_of = dict(zip(listed.paths, listed.labels, strict=True))
    assert all(clean.label(i) == label_of[path] for i, path in enumerate(clean.paths))
    assert len(make_samples(config, "test")) == total - len(paths)


def test_verify_a_list_with_a_missing_file(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = read_folders(clips, "test").paths[0]
    Path("clips/list.txt").write_text(f"{path} 0\nnone.mp4 1\n")
    lists = ("data.layout=list", "data.train_split=list.txt", "data.test_split=list.txt")
    call = ("prepare", "verify", "tiny.yaml", *lists, "--out", "here", "--workers", 1)
    assert command(*call) == 1
    assert "2 files: 1 clean, 1 broken; here/ lists them" in words(capsys)
    assert Path("here/broken.txt").read_text() == "none.mp4\tNo such file or directory\n"
    assert Path("here/clean_test.txt").read_text() == f"{path} 0\n"


def test_verify_a_folder(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = read_folders(clips, "test").paths[0]
    (clips / path).write_text("no video")
    call = ("prepare", "verify", clips / "test", "--out", "here", "--workers", 1)
    assert command(*call) == 1
    names = sorted(str(path.relative_to("clips/test")) for path in clips.glob("test/*/*"))
    broken = str(Path(path).relative_to("test"))
    assert Path("here/clean.txt").read_text().splitlines() == [n for n in names if n != broken]
    assert "is a folder, which has no settings; remove train.lr=1" in refused(*call, "train.lr=1")
    Path("none").mkdir()
    assert "none holds no video" in refused("prepare", "verify", "none")
    assert "here/checked.jsonl belongs to a run with" in refused(
        "prepare", "verify", clips / "train", "--out", "here"
    )


def test_index(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = read_folders(clips, "train")
    assert not samples.num_frames.any()
    counts = [probe(samples.path(i)).num_frames for i in range(len(samples))]
    assert command("prepare", "index", clips, "--workers", 1) == 0
    total = len(list(clips.glob("*/*/*.mp4")))
    assert f"clips/videoattn_index.npz: {total} videos, " in words(capsys)
    indexed = read_folders(clips, "train")
    assert list(indexed.paths) == list(samples.paths)
    assert indexed.num_frames.tolist() == counts
    samples.path(0).unlink()
    samples.path(1).write_bytes(b"")
    assert command("prepare", "index", clips, "--workers", 1) == 0
    assert f"{total - 1} videos, " in (said := words(capsys))
    assert "1 that do not decode have none" in said
    again = read_folders(clips, "train")
    assert again.num_frames.tolist() == [0, *counts[2:]]
    assert "root: none does not exist" in refused("prepare", "index", "none")


def test_reencode(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clips / "notes.txt").write_text("a list\n")
    first = read_folders(clips, "train").path(0)
    moved = first.rename(first.with_suffix(".mkv"))
    (clips / "test" / "text.avi").write_text("no video")
    call = ("prepare", "reencode", clips, "out", "--short-side", 32, "--workers", 1)
    assert command(*call) == 1
    said = words(capsys)
    total = len(list(clips.glob("*/*/*.m*")))
    assert f"out: {total} videos, " in said
    assert "MB after; 1 lists copied; 1 broken ones left out" in said
    assert "note: 2 names end in .mp4 now; change them in the lists, too" in said
    broken = Path("out/broken.txt").read_text()
    assert broken.startswith("test/text.avi\tcannot be opened as a video")
    for path in clips.glob("*/*/*.m*"):
        info = probe("out" / path.relative_to(clips).with_suffix(".mp4"))
        assert info.num_frames == probe(path).num_frames
        assert min(info.height, info.width) == 32
    assert Path("out/notes.txt").read_text() == "a list\n"
    assert moved.is_file()
    assert len(read_folders("out", "train")) == len(read_folders(clips, "train"))
    made = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.mp4")}
    gone = next(iter(made))
    gone.unlink()  # as if the copy had been interrupted before this file
    assert command(*call) == 1
    redone = [path for path, time in made.items() if path.stat().st_mtime_ns != time]
    assert redone == [gone]
    begun = "out/reencoded.jsonl belongs to a run with {'short_side': 32, 'key_frame_interval': 8}"
    assert begun in refused(*call[:-3], 64)
    assert "clips/out is inside of clips; choose another folder" in refused(
        "prepare", "reencode", clips, "clips/out"
    )
    shutil.copyfile(moved, moved.with_suffix(".mp4"))
    assert "would both become" in refused(*call)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "checkpoint-last.pt")["model"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # on fewer cores
@pytest.mark.parametrize("num_workers", [0, 3])
def test_training_from_shards_stopped_inside_an_epoch(
    num_workers: int, clips: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    call = ("prepare", "shards", "tiny.yaml", "packed", "--max-mb", 0.03, "--workers", 1)
    assert command(*call) == 0
    said = words(capsys)
    assert "packed/train: 16 videos of 8 classes in " in said
    assert said.endswith("to train on them: data.layout=shards data.root=packed")
    assert "packed already exists; choose another name, or remove it" in refused(*call)
    shards = ("data.layout=shards", "data.root=packed")
    assert command("train", "tiny.yaml", *shards, "name=whole") == 0
    assert "16 training and 8 test videos of 8 classes" in words(capsys)
    update, steps = engine.update, []

    def stopping(*args: object, **given: object) -> object:
        if len(steps) == 6:  # the third of the second epoch
            raise InterruptedError("pulled the plug")
        steps.append(1)
        return update(*args, **given)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "update", stopping)
        assert "pulled the plug" in refused("train", "tiny.yaml", *shards)
    again = ("train", "tiny.yaml", *shards, f"data.num_workers={num_workers}", "--resume")
    assert command(*again) == 0
    resumed = weights(Path("runs/tiny"))
    assert all(torch.equal(value, resumed[k]) for k, value in weights(Path("runs/whole")).items())
    files = [Path(f"runs/{name}/metrics.jsonl") for name in ("tiny", "whole")]
    records = [json.loads(file.read_text().splitlines()[-1]) for file in files]
    assert records[0]["loss"] == records[1]["loss"]
    assert records[0]["videos"] == 8


def test_a_run_on_shards_predicts_the_given_videos(
    clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("prepare", "shards", "tiny.yaml", "packed", "--workers", 1) == 0
    call = ("train", "tiny.yaml", "data.layout=shards", "data.root=packed", "train.num_epochs=1")
    assert command(*call) == 0
    shutil.rmtree("packed")
    videos = [
        clips / "test/moves_up/0000.mp4",
        clips.resolve() / "train/grows/0001.mp4",
        Path("new.mp4"),
    ]
    encode_clip(videos[2], demo_clip("shrinks", seed=7, split="test", number=3))
    capsys.readouterr()
    assert command("predict", "runs/tiny", *videos, "--top", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == [str(video) for video in videos]
    predictor = load_run("runs/tiny")
    for video, line in zip(videos, lines[1::2], strict=True):
        best = predictor(video)[0]
        assert line.split() == [f"{100 * best.probability:.1f}", "%", best.name]


@pytest.mark.parametrize("stop_at", ["train/000001.tar", "train/shards.json", "test/000000.tar"])
def test_shards_that_were_interrupted(
    stop_at: str, clips: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(folder: str) -> tuple[object, ...]:
        return ("prepare", "shards", "tiny.yaml", folder, "--max-mb", 0.03, "--workers", 1)

    assert command(*call("whole")) == 0
    replace = os.replace

    def stopping(source: Path, target: Path) -> None:
        if str(target) == f"packed/{stop_at}":
            raise InterruptedError("pulled the plug")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stopping)
        assert f"cannot write packed/{stop_at}" in refused(*call("packed"))
    split = stop_at.split("/")[0]
    options = ("data.layout=shards", "data.root=packed", f"data.train_split={split}")
    error = refused("train", "tiny.yaml", *options)
    assert f"packed/{split}/shards.json cannot be read (No such file" in error
    capsys.readouterr()
    assert command(*call("packed")) == 0
    assert "packed/test: 8 videos of 8 classes in " in words(capsys)
    files = [path.relative_to("whole") for path in Path("whole").rglob("*") if path.is_file()]
    assert {path.relative_to("packed") for path in Path("packed").rglob("*.*")} == set(files)
    assert all(Path("packed", f).read_bytes() == Path("whole", f).read_bytes() for f in files)


def test_shards_of_class_folders_and_broken_videos(
    clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("prepare", "shards", clips / "test", "all", "--workers", 1) == 0
    said = words(capsys)
    assert "all: 8 videos of 8 classes in 1 shards, " in said
    options = "data.layout=shards data.root=all data.train_split=. data.test_split=."
    assert said.endswith(f"to train on them: {options}")
    config = load("tiny.yaml", options.split()).data
    assert len(make_samples(config, "train")) == len(make_samples(config, "test")) == 8
    Path("names.txt").write_text("a\nb\n")
    other = load("tiny.yaml", [*options.split(), "data.class_list=names.txt"]).data
    match = (
        "^the train shards have 8 classes, the first .* the 2 of data.class_list, names.txt, the"
    )
    with pytest.raises(ValueError, match=match):
        make_samples(other, "train")
    path = read_folders(clips, "train").paths[3]
    (clips / path).write_bytes(b"")
    call = ("prepare", "shards", "tiny.yaml", "some", "--workers", 1)
    assert f"1 of 16 videos do not decode; the first: {path}: the file is empty" in refused(*call)
    assert command(*call, "data.on_error=skip") == 0
    said = words(capsys)
    assert "some/train: 15 videos of 8 classes in 1 shards, " in said
    assert f"1 broken ones left out {path}: the file is empty (0 bytes)" in said
    assert "data.layout: got shards; need the layout of the original videos" in refused(
        "prepare", "verify", "tiny.yaml", *options.split()
    )


@pytest.fixture
def linked(clips: Path) -> Path:
    """A dataset that links to a private video, a private folder, and a video of its own."""
    private = Path("private/deep")
    private.mkdir(parents=True)
    own = read_folders(clips, "train").path(0)
    shutil.copyfile(own, private / "secret.mp4")
    shutil.copyfile(own, private.parent / "secret.mkv")
    (clips / "train" / "extra").mkdir()
    (clips / "train" / "extra" / "file.mp4").symlink_to(private.resolve() / "secret.mp4")
    (clips / "train" / "extra" / "own.mp4").symlink_to(own.resolve())
    (clips / "train" / "folder").symlink_to(Path("../../private"))
    (clips / "more.txt").symlink_to(Path("tiny.yaml").resolve())
    return clips


OUTSIDE = {"train/extra/file.mp4", "train/folder/deep/secret.mp4", "train/folder/secret.mp4"}


@pytest.mark.parametrize("root", ["clips", "link"])
def test_copies_of_links_that_lead_outside(
    root: str, linked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dataset itself may be a link."""
    Path("link").symlink_to("clips")
    call = ("prepare", "reencode", root, "out", "--short-side", 16, "--workers", 1)
    assert command(*call) == 0
    said = words(capsys)
    assert f"note: 3 links lead outside of {root}: train/extra/file.mp4, " in said
    assert f"lists that are links to files outside of {root} are not copied: more.txt" in said
    copied = {str(path.relative_to("out")) for path in Path("out").rglob("*.mp4")}
    assert not OUTSIDE & copied
    assert "train/extra/own.mp4" in copied
    assert not Path("out/more.txt").exists()
    assert command(*call, "--follow-links") == 0
    assert "lead outside" not in words(capsys)
    assert {str(path.relative_to("out")) for path in Path("out").rglob("*.mp4")} >= OUTSIDE
    assert Path("out/more.txt").is_file()


@pytest.mark.parametrize("what", ["clips/train", "tiny.yaml"])
def test_shards_of_links_that_lead_outside(
    what: str, linked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("data.test_split=train",) if what == "tiny.yaml" else ()
    call = ("prepare", "shards", what, "packed", *typed, "--workers", 1)
    assert command(*call) == 0
    said = words(capsys)
    assert "links lead outside of clips" in said
    total = len(read_folders(linked, "train"))
    folder = Path("packed/train" if what == "tiny.yaml" else "packed")
    packed = json.loads((folder / "shards.json").read_text())["num_samples"]
    assert packed == total - 3
    assert b"secret" not in b"".join(path.read_bytes() for path in folder.glob("*.tar"))
    shutil.rmtree("packed")
    assert command(*call, "--follow-links") == 0
    assert json.loads((folder / "shards.json").read_text())["num_samples"] == total


def test_a_dataset_of_links_alone(linked: Path) -> None:
    for source in ("reencode", "shards"):
        Path("links/a").mkdir(parents=True, exist_ok=True)
        Path("links/a/1.mp4").unlink(missing_ok=True)
        Path("links/a/1.mp4").symlink_to(Path("private/secret.mkv").resolve())
        message = "all links lead outside of links: a/1.mp4; copy their files with --follow-links"
        assert message in refused("prepare", source, "links", f"out-{source}")
        assert not Path(f"out-{source}").exists()


def test_nothing_is_written_through_links_of_a_dataset(
    clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("victim").write_text("mine\n")
    for name in ("videoattn_index.npz", "videoattn_index.unfinished.npz"):
        (clips / name).symlink_to(Path("victim").resolve())
    assert "not an index" in refused("train", "tiny.yaml")
    assert command("prepare", "index", clips, "--workers", 1) == 0
    assert not (clips / "videoattn_index.npz").is_symlink()
    (clips / "videoattn_index.jsonl").unlink()
    (clips / "videoattn_index.jsonl").symlink_to(Path("victim").resolve())
    assert "videoattn_index.jsonl is a link; remove it" in refused("prepare", "index", clips)
    assert Path("victim").read_text() == "mine\n"


def test_index_and_training_from_a_folder_with_a_colon(
    clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips.rename("day:1")
    for folder in ("day:1", "http:"):
        Path("day:1" if folder == "http:" else folder).rename(folder)
        assert command("prepare", "index", folder, "--workers", 1) == 0
        assert command("prepare", "verify", folder, "--workers", 1, "--out", f"{folder[0]}") == 0
        assert " 0 broken" in words(capsys)
