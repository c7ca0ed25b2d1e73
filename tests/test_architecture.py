"""The house rules that a machine can check: who imports whom, sizes, no print."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "videoattn"
FILES = sorted(PACKAGE.rglob("*.py"))
LOWER = {"types", "errors", "files", "layers", "attention", "models", "weights", "data", "engine"}
LAYERS = {
    "types": set(),
    "_compat": set(),
    "_version": set(),
    "layers": set(),
    "errors": set(),
    "files": set(),
    "attention": {"types", "layers", "errors", "files"},
    "models": {"types", "attention", "layers", "errors"},
    "weights": {"types", "attention", "models", "errors"},
    "data": {"types", "errors", "files"},
    "engine": {"types", "files", "errors", "_version"},
    "explain": {"types", "attention", "models", "files"},
    "recipe": LOWER,
    "cli": {
        "types",
        "errors",
        "files",
        "layers",
        "attention",
        "models",
        "weights",
        "data",
        "engine",
        "explain",
        "recipe",
    },
    "__main__": {"cli"},
    "__init__": {"_compat", "_version", "recipe", "weights"},
}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "videoattn":
                names = [f"videoattn.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("videoattn.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers(path: Path) -> None:
    layer = layer_of(path)
    assert imports(path) <= LAYERS[layer] | {layer}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_sizes_and_habits(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 70, node.name
            if node.name == "__init__":
                assert len(node.args.args) + len(node.args.kwonlyargs) - 1 <= 9
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "eval", "exec")
        if isinstance(node, ast.ImportFrom) and node.module == "omegaconf":
            assert path.relative_to(PACKAGE) == Path("recipe/config.py")


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_importing_the_package_is_light() -> None:
    loaded = run_python("import videoattn, sys; print([m for m in sys.modules if '.' not in m])")
    assert "torch" not in loaded.replace("torchvision", "")


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from videoattn.cli.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    started = time.monotonic()
    text = run_python(code)
    assert time.monotonic() - started < 10  # the point is torch, which takes seconds
    assert text.rstrip().endswith("False")
    assert "visualize" in text


def test_torchvision_imports_whichever_builds_are_installed() -> None:
    code = (
        "import videoattn, torchvision\n"
        "from torchvision.transforms import v2\n"
        "import torchvision.models.video\n"
        "print(torchvision.models.resnet18().fc.out_features)"
    )
    assert run_python(code) == "1000\n"
