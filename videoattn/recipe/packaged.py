"""Finds recipes and class lists: files of the user, and those that are installed with videoattn."""

import os
from importlib.resources import files
from pathlib import Path
from typing import Literal

from videoattn.errors import did_you_mean

_FOLDERS = {"recipe": ("configs", ".yaml"), "class list": ("data/classes", ".txt")}


Kind = Literal["recipe", "class list"]


def find_file(kind: Kind, name: str | Path) -> Path:
    """Returns the path of a file, which is given as a path or as a bare name such as "demo".

    A bare name is looked up in `configs` or `data/classes` of the current folder, then among the
    files that are installed.
    """
    folder, suffix = _FOLDERS[kind]
    path = Path(os.path.expanduser(name))
    if path.is_file():
        return path
    installed = _installed(kind)
    stem = path.name.removesuffix(suffix)
    if path.parent in (Path(), Path(folder)):  # the second: as typed in a clone
        for candidate in (Path(folder), installed):
            if (candidate / f"{stem}{suffix}").is_file():
                return candidate / f"{stem}{suffix}"
    names = installed_names(kind)
    raise ValueError(
        f"{path}: no such {kind}{did_you_mean(stem, names)}; give the path of a file, or one of "
        f"{', '.join(names)}"
    )


def installed_names(kind: Kind) -> list[str]:
    """Returns the bare names of the files that are installed."""
    return sorted(file.stem for file in _installed(kind).glob(f"*{_FOLDERS[kind][1]}"))


def _installed(kind: Kind) -> Path:
    return Path(str(files("videoattn"))) / _FOLDERS[kind][0]
