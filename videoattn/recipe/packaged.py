"""Finds recipes and class lists: files of the user, and those that are installed with videoattn."""

import os
from importlib.resources import files
from pathlib import Path

from videoattn.errors import did_you_mean


def find_recipe(name: str | Path) -> Path:
    """Returns the file of a recipe: a path, or a bare name such as "demo".

    A bare name is looked up in `configs` of the current folder, then among the recipes that are
    installed.

    Raises:
        ValueError: If there is no such file.
    """
    return _find(name, "configs", ".yaml", "recipe")


def find_class_list(name: str | Path) -> Path:
    """Returns the file of a class list: a path, or a bare name such as "kinetics400".

    Raises:
        ValueError: If there is no such file.
    """
    return _find(name, "data/classes", ".txt", "class list")


def _find(name: str | Path, folder: str, suffix: str, kind: str) -> Path:
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return path
    installed = Path(str(files("videoattn"))) / folder
    stem = path.name.removesuffix(suffix)
    if path.parent in (Path(), Path(folder)):  # the second: as typed in a clone
        for candidate in (Path(folder), installed):
            if (candidate / f"{stem}{suffix}").is_file():
                return candidate / f"{stem}{suffix}"
    names = sorted(file.stem for file in installed.glob(f"*{suffix}"))
    raise ValueError(
        f"no {kind} at {path}{did_you_mean(stem, names)}; give the path of a file, or one of "
        f"{', '.join(names)}"
    )
