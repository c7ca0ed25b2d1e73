"""Recipes and class lists by name, and paths that start with "~"."""

import re
from pathlib import Path

import pytest

import videoattn
from tests.cli.test_commands import RECIPE, command
from videoattn.cli import app
from videoattn.data.lists import read_class_list
from videoattn.data.synthetic import write_demo_clips
from videoattn.recipe.data import make_samples
from videoattn.recipe.load import load
from videoattn.recipe.packaged import find_file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is empty, and the user's home beside it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "configs/demo.yaml", "configs/demo"])
def test_installed_recipes_are_found_from_any_folder(folder: Path, name: str) -> None:
    assert load(name).name == "demo"
    (folder / "configs").mkdir()
    (folder / "configs/demo.yaml").write_text("name: mine\ndata: {root: x}\n")
    assert load(name).name == "mine"


@pytest.mark.parametrize("name", ["demo", "demo.txt", "configs/other.yml"])
def test_a_file_comes_before_an_installed_recipe(folder: Path, name: str) -> None:
    (folder / "configs").mkdir()
    (folder / name).write_text("name: mine\ndata: {root: x}\n")
    assert load(name).name == "mine"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dmo", " (did you mean demo?)"),
        ("ucf101_tsn.yaml", " (did you mean ucf101_tsn_r50?)"),
        ("configs/demos.yaml", " (did you mean demo?)"),
        ("other/xyz.yaml", ""),
        ("", ""),
    ],
)
def test_wrong_names_list_the_installed_recipes(folder: Path, name: str, hint: str) -> None:
    start = re.escape(f"{name or '.'}: no such recipe{hint}; give the path of a file, or one of ")
    with pytest.raises(ValueError, match=f"^{start}demo, finetune_ucf101_11, .*, ucf101_tsn_r50$"):
        load(name)


@pytest.mark.parametrize("name", ["kinetics400", "kinetics400.txt", "data/classes/kinetics400.txt"])
def test_class_lists(folder: Path, name: str) -> None:
    assert len(read_class_list(find_file("class list", name))) == 400
    with pytest.raises(ValueError, match=r"^kinetics600: no such class list \(did you mean k"):
        find_file("class list", "kinetics600")


def test_paths_in_the_home_folder(folder: Path) -> None:
    home = folder.with_name("home")
    write_demo_clips(home / "clips", num_train_per_class=1, num_test_per_class=1)
    names = [path.name for path in (home / "clips/train").iterdir()]
    (home / "names.txt").write_text("\n".join(sorted(names)))
    (home / "list.txt").write_text("train/grows/0000.mp4 0\n")
    (home / "r.yaml").write_text("name: x\ndata: {root: ~/clips, class_list: ~/names.txt}\n")
    assert find_file("recipe", "~/r.yaml") == home / "r.yaml"
    config = load("~/r.yaml")
    assert len(make_samples(config.data, "test")) == 8
    words = ["data.layout=list", "data.root=~/clips/", "data.train_split=~/list.txt"]
    assert len(make_samples(load("demo", words).data, "train")) == 1
    assert load("demo", ["model.weights=~/runs/x"]).model.weights == f"{home}/runs/x"
    assert load("demo", ["data.root=a~/b"]).data.root == "a~/b"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("~/runs/x", "HOME/runs/x"),
        ("--out=~/a b", "--out=HOME/a b"),
        ("~", "HOME"),
        ("--query=1,2,3", "--query=1,2,3"),
        ("data.root=~/x", "data.root=~/x"),
        ("a~b", "a~b"),
        ("--", "--"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_words_of_the_command_line(folder: Path, word: str, expected: str) -> None:
    home = str(folder.with_name("home"))
    assert app._without_tilde(word) == expected.replace("HOME", home)


def test_a_run_and_a_video_in_the_home_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = folder.with_name("home")
    write_demo_clips(home / "clips", num_train_per_class=1, num_test_per_class=1)
    (home / "tiny.yaml").write_text(RECIPE)
    words = ("data.root=~/clips", "train.num_epochs=1", "train.validate_every=0")
    assert command("train", "~/tiny.yaml", *words) == 0
    (folder / "runs").rename(home / "runs")
    assert command("predict", "~/runs/tiny", "~/clips/test/grows/0000.mp4") == 0
    assert f"{home}/clips/test/grows/0000.mp4\n" in capsys.readouterr().out
    assert command("test", "~/runs/tiny", "--out=~/tables", "data.root=~/clips") == 0
    assert (home / "tables/report.json").is_file()
    assert len(videoattn.load("~/runs/tiny")("~/clips/test/grows/0000.mp4")) == 8
    assert list(folder.iterdir()) == []
