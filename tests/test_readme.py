"""Runs every block of the README as it is typed, and compares its tables with the code."""

import json
import re
import shlex
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import videoattn
from tests.cli.test_commands import command
from tests.weights.published import published_file
from tests.weights.server import body, serve
from videoattn.attention.systems import SYSTEMS
from videoattn.cli.list import accuracy_of
from videoattn.data.synthetic import Split, demo_clip, encode_clip
from videoattn.recipe.load import load
from videoattn.recipe.run import Predictor
from videoattn.weights import PUBLIC

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "data/README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    textwrap.dedent(block).strip()
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", TEXT, re.M)
]
SHELL = [block for block in BLOCKS if re.match(r"pip|make|videoattn", block)]
PYTHON = [block for block in BLOCKS if block.startswith("import")]

SPLITS: tuple[Split, ...] = ("train", "test")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the clone, and the user's files that the README names.

    Its configs/demo.yaml trains for one epoch, in small batches and without loader processes.
    """
    folder = tmp_path_factory.mktemp("clone")
    for name in ("data", "tools"):
        (folder / name).symlink_to(ROOT / name)
    recipe = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    recipe["data"]["num_workers"] = 0
    recipe["train"] |= {"num_epochs": 1, "batch_size": 4}
    (folder / "configs").mkdir()
    (folder / "configs/demo.yaml").write_text(yaml.safe_dump(recipe))
    for split in SPLITS:
        for name, motion in {"waving": "turns_clockwise", "walking": "moves_right"}.items():
            (folder / "my_clips" / split / name).mkdir(parents=True)
            for number in range(4):
                clip = demo_clip(motion, seed=0, split=split, number=number)
                encode_clip(folder / f"my_clips/{split}/{name}/{number}.mp4", clip)
    encode_clip(folder / "some.mp4", demo_clip("grows", seed=1, split="test", number=0))
    (folder / "I3D_8x8_R50.pyth").write_bytes(published_file("pytorchvideo/i3d_r50"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        videoattn.train("configs/demo.yaml", "data.root=my_clips", folder=Path("runs/demo/moving"))
    return folder


def test_every_block_is_run() -> None:
    citation = [block for block in BLOCKS if block.startswith("@software")]
    assert len(SHELL) >= 5
    assert len(PYTHON) == 1
    after_install = [block for block in SHELL if not block.startswith("pip")]
    assert after_install[0] == "videoattn predict pytorchvideo/i3d_r50 some.mp4"
    assert sorted(SHELL + PYTHON + citation) == sorted(BLOCKS)


def test_its_commands_run(clone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The lines have no comments and no patterns, which an interactive zsh does not take.

    A server takes the place of the network. One small view of the public model saves time.
    """
    assert not re.search(r"[#*?\[\]{}~$]", "\n".join(SHELL))
    monkeypatch.chdir(clone)
    name = "pytorchvideo/i3d_r50"
    small = replace(PUBLIC[name].preprocessing, num_clips=1, num_crops=1, test_size=64)
    monkeypatch.setitem(PUBLIC, name, replace(PUBLIC[name], preprocessing=small))
    monkeypatch.setenv("VIDEOATTN_HOME", str(tmp_path))
    with serve() as server:
        server.default = body((clone / "I3D_8x8_R50.pyth").read_bytes())
        monkeypatch.setenv("VIDEOATTN_MIRROR", server.address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for line in "\n".join(SHELL).splitlines():
            program, *words = shlex.split(line)
            if program == "videoattn":
                assert command(*words) == 0, line
            elif program == "make":
                assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M), line
            else:
                assert program == "pip"
    assert server.num_requests == 1
    assert (ROOT / "constraints.txt").is_file()
    assert list((clone / "runs/demo/moving/pictures").glob("*.png"))
    assert (clone / "runs/mine/test").is_dir()
    assert json.loads((clone / "i3d_kinetics/config.json").read_text())["config"]["model"]


def test_its_python_runs(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    names: dict[str, object] = {}
    exec(PYTHON[0], names)
    predictor, maps, video = names["predictor"], names["maps"], names["video"]
    assert isinstance(predictor, Predictor)
    assert isinstance(maps, dict)
    assert isinstance(video, torch.Tensor)
    best, *others = predictor("some.mp4")
    assert best.name in predictor.class_names
    assert best.probability >= others[0].probability
    assert video.shape == (2, 3, 12, 56, 56)
    assert list(maps) == ["layer2.1_non_local", "layer3.1_non_local"]
    assert maps["layer2.1_non_local"].weights.shape == (2, 1, 3, 7, 7)


def test_its_python_trains(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs", "my_clips"):
        (tmp_path / name).symlink_to(clone / name)
    monkeypatch.chdir(tmp_path)
    (expression,) = re.findall(r"`(videoattn\.train\(.*?\))`", TEXT)
    eval(expression, {"videoattn": videoattn})
    assert (tmp_path / "runs/mine/checkpoint-last.pt").is_file()


def test_its_table_of_public_models() -> None:
    rows = table("| name | data |")
    assert len(rows) > 10
    for name, data, top1, views, license_of in rows:
        row = PUBLIC[name]
        assert row.dataset == data
        assert accuracy_of(row).startswith(f"{top1} (")
        assert row.preprocessing.views == views
        assert row.license == license_of
    assert re.search(r"^(\d+) ", TEXT.partition("## Public models\n\n")[2])[1] == str(len(PUBLIC))


def test_its_table_of_attention_systems() -> None:
    rows = [
        [name, f"{system.title} ({system.paper})", system.map_of]
        for name, system in SYSTEMS.items()
    ]
    assert table("| name | paper |") == rows
    assert "sixteen systems" in TEXT
    assert len(SYSTEMS) == 16


def table(head: str) -> list[list[str]]:
    """Returns the cells of a table's rows, without backticks."""
    lines = TEXT.partition(head)[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []
    text = re.sub(r"https?:[^)\s]+", "", text)
    named = set(
        re.findall(
            r"\b(?:tests|configs|tools|data|docs|videoattn)/[\w/-]+\.(?:yaml|py|md|txt)", text
        )
    )
    roots = (ROOT, ROOT / "videoattn")  # design.md names files of the package
    missing = [name for name in named if not any((root / name).exists() for root in roots)]
    assert missing == []


def test_commands_in_the_page_of_datasets_run(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset", reason="install videoattn[shards]")
    (tmp_path / "configs").symlink_to(clone / "configs")
    shutil.copytree(clone / "my_clips", tmp_path / "my_clips")
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^    videoattn (.*)$", (ROOT / "data/README.md").read_text(), re.M)
    assert len(lines) == 6
    for line in lines:
        assert command(*shlex.split(line)) == 0, line
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == (
        ["shards", "verify-my_clips", "waving"]
    )
    assert (tmp_path / "my_clips/videoattn_index.npz").is_file()
    assert len(list((tmp_path / "my_small_clips").rglob("*.mp4"))) == 16


def test_settings_in_the_page_of_datasets_load() -> None:
    """Words such as data.layout=list are typed as they are printed."""
    text = (ROOT / "data/README.md").read_text()
    spans = [*re.findall(r"`([^`]+)`", text), *re.findall(r"^    (.*)$", text, re.M)]
    typed = [
        word
        for span in spans
        if re.search(r"\b(?:data|clip|augment|train)\.\w+=", span)
        for word in shlex.split(span)
        if "=" in word and not word.endswith("...")
    ]
    assert len(typed) > 20
    for word in typed:
        load(ROOT / "configs/demo.yaml", [word])
