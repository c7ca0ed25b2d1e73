"""Remembers facts about this user's runs and data, outside of the folders that others may share."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videoattn.data.dataset import ClipDataset
from videoattn.data.prepare.index import read_counts, write_counts
from videoattn.files import write_text
from videoattn.recipe.config import Config
from videoattn.recipe.console import show
from videoattn.recipe.load import to_dict


def remember_data(folder: Path, config: Config) -> None:
    """Records a run's data section for `test`, which must not trust the config in its folder."""
    record = {"folder": str(folder.resolve()), "data": to_dict(config)["data"]}
    try:
        write_text(_record(folder, "runs", ".json"), json.dumps(record, indent=2) + "\n")
    except OSError as error:
        show(f"note: `videoattn test {folder}` will ask for its data: {error}")


def remembered_data(run: Path) -> dict[str, Any] | None:
    """Returns the data section of a run (folder or file in it) that this user trained, or None."""
    path = _record(run.parent if run.is_file() else run, "runs", ".json")
    if not path.is_file():
        return None
    data: dict[str, Any] = json.loads(path.read_text())["data"]
    return data


def recall_counts(datasets: Sequence[ClipDataset]) -> None:
    """Gives each dataset the numbers of frames that earlier runs found in its folder."""
    for dataset in datasets:
        try:
            dataset.use_counts(read_counts(_record(dataset.samples.root, "counts", ".npz")))
        except ValueError as error:
            show(f"note: {error}; the frames are counted again")


def remember_counts(datasets: Sequence[ClipDataset]) -> None:
    """Records the numbers of frames that the datasets found, for `recall_counts`."""
    for dataset in datasets:
        path = _record(dataset.samples.root, "counts", ".npz")
        try:
            if found := dataset.found_counts():
                earlier = read_counts(path)
                if earlier | found != earlier:
                    write_counts(path, earlier | found)
        except (OSError, ValueError) as error:
            show(f"note: the next run will count frames again: {error}")


def _record(folder: Path, kind: str, suffix: str) -> Path:
    home = os.environ.get("VIDEOATTN_HOME")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    state = Path(home) if home else Path(base, "videoattn")
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return state / kind / f"{digest[:32]}{suffix}"
