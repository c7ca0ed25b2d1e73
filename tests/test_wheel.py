"""The wheel that users install: built from an sdist, and run outside of a clone."""

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from tests.weights.public_states import recorded, state
from videoattn.data.synthetic import write_demo_clips

ROOT = Path(__file__).parents[1]
RECIPES = {path.name for path in (ROOT / "configs").iterdir()}
CLASS_LISTS = {path.name for path in (ROOT / "data/classes").iterdir()}
BUILD = (
    "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
)

TINY = [
    "data.num_workers=0", "model.options.width=8", "clip.height=32", "clip.width=32",
    "test.short_side=32", "train.num_epochs=1", "train.precision=float32",
]  # fmt: skip


def build(kind: str, source: Path, out: Path) -> Path:
    """Builds what `python -m build --no-isolation` does, from a folder or an unpacked sdist."""
    out.mkdir()
    subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", out],
        cwd=source, check=True, capture_output=True,
    )  # fmt: skip
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    clone = folder / "clone"
    unwanted = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, clone, symlinks=True, ignore=unwanted)
    return build("sdist", clone, folder / "out")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return build("wheel", unpacked, folder / "out")


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel and this one's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin/python"
    install = ["install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # The .pth files over there, such as that of an editable videoattn, are not read.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path


def run(*words: object, status: int = 0) -> str:
    ended = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_the_sdist_has_what_a_clone_has(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive}
    assert {f"configs/{name}" for name in RECIPES} < set(members)
    assert {f"videoattn/configs/{name}" for name in RECIPES} < set(members)
    needed = {"constraints.txt", "data/README.md", "tools/train.py", "tests/pinned/pinned.json"}
    assert needed < set(members)
    assert not any(member.islnk() or member.issym() for member in members.values())


def test_the_wheel_has_the_recipes_and_class_lists(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        demo = archive.read("videoattn/configs/demo.yaml")
    assert {f"videoattn/configs/{name}" for name in RECIPES} < names
    assert {f"videoattn/data/classes/{name}" for name in CLASS_LISTS} < names
    assert "videoattn/py.typed" in names
    page = ROOT / "videoattn/explain/explorer"
    parts = {path.name for path in page.iterdir() if path.suffix in (".html", ".css", ".js")}
    assert {f"videoattn/explain/explorer/{name}" for name in parts} < names
    assert demo == (ROOT / "configs/demo.yaml").read_bytes()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "videoattn").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_its_commands_run_in_an_empty_folder(scripts: Path, empty: Path) -> None:
    where = run(scripts / "python", "-c", "import videoattn; print(videoattn.__file__)")
    assert Path(where.strip()).is_relative_to(scripts.parent)
    assert "pyslowfast/I3D_8x8_R50" in run(scripts / "videoattn", "list", "weights")
    assert run(scripts / "videoattn", "train", "dem", "data.root=.", status=1).startswith(
        "error: dem: no such recipe (did you mean demo?); give the path of a file, or one of demo, "
    )
    assert list(empty.iterdir()) == []


def test_it_trains_installed_recipes_by_name(scripts: Path, empty: Path) -> None:
    write_demo_clips(empty / "clips", num_train_per_class=1, num_test_per_class=1)
    words = ["train", "demo", "data.root=clips", *TINY, "train.validate_every=1"]
    assert "i3d_r18_stem2 + non_local" in run(scripts / "videoattn", *words)
    assert (empty / "runs/demo/best.safetensors").exists()


def test_it_converts_with_installed_class_names(scripts: Path, empty: Path) -> None:
    torch.save({"model_state": state(recorded("pytorchvideo/slow_r50"))}, empty / "SLOW.pyth")
    words = ["convert", "SLOW.pyth", "--as", "pytorchvideo/slow_r50", "kinetics"]
    run(scripts / "videoattn", *words)
    about = json.loads((empty / "kinetics/config.json").read_text())
    names = (ROOT / "data/classes/kinetics400.txt").read_text().splitlines()
    assert about["class_names"] == names


def test_the_demo_starts(scripts: Path, empty: Path) -> None:
    """It reads its recipe and writes its clips; tests/cli/test_demo.py runs all of it."""
    code = (
        "from videoattn.cli import app, demo\n"
        "demo.NUM_TRAIN = demo.NUM_TEST = 1\n"
        "demo.train = lambda *words, **options: exit('the training starts')\n"
        "app.main(['demo', 'out'])"
    )
    assert "the training starts" in run(scripts / "python", "-c", code, status=1)
    assert len(list(empty.glob("out/clips/*/*/*.mp4"))) == 16
