"""Saves and loads the maps of a clip, with its frames and facts about it, as one file.

The file is a zip archive that `numpy.load` opens: `index.json`, and one .npy for each array. It
holds no pickles, so a file from somebody else is safe to load.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from videoattn.attention.maps import Factors, GateMap, PairwiseMap
from videoattn.files import write_whole
from videoattn.types import Frames

FORMAT = "videoattn-maps/1"


class MapArchive(NamedTuple):
    """The content of a file that `save_maps` wrote.

    Args:
        frames: The frames of the clip, or None if they were not saved.
        about: Facts such as the video's name and the prediction, as JSON values.
    """

    maps: dict[str, PairwiseMap | GateMap]
    frames: Frames | None
    about: dict[str, Any]


def save_maps(
    path: Path,
    maps: Mapping[str, PairwiseMap | GateMap],
    *,
    frames: Frames | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes maps, and optionally the clip's frames and facts, to one file.

    Raises:
        OSError: If the file cannot be written; a previous one is then unchanged.
    """
    arrays = {} if frames is None else {"frames": frames.cpu().numpy()}
    entries = []
    for index, (name, found) in enumerate(maps.items()):
        entry: dict[str, Any] = {"name": name, "type": _TYPES[type(found)]}
        for item in fields(found):
            value = getattr(found, item.name)
            if isinstance(value, Factors):
                entry |= {"rule": value.rule, "scale": value.scale}
                arrays |= {f"{index}.q": value.q.numpy(), f"{index}.k": value.k.numpy()}
            elif isinstance(value, Tensor):
                arrays[f"{index}.{item.name}"] = value.numpy()
            elif value is not None:
                entry[item.name] = value
        entries.append(entry)
    index_json = {"format": FORMAT, "about": dict(about or {}), "maps": entries}
    write_whole(path, lambda file: _write(file, index_json, arrays))


def load_maps(path: Path) -> MapArchive:
    """Reads a file that `save_maps` wrote.

    Raises:
        ValueError: If the file is not an archive of maps.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            index = json.loads(archive["index.json"])
            if index["format"] != FORMAT:
                raise ValueError(f"its format is {index['format']!r}, not {FORMAT!r}")
            names = [name for name in archive.files if name != "index.json"]
            arrays = {name: torch.from_numpy(archive[name]) for name in names}
            maps = {
                entry["name"]: _read(entry, f"{number}.", arrays)
                for number, entry in enumerate(index["maps"])
            }
            return MapArchive(maps, arrays.get("frames"), index["about"])
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not an archive of attention maps ({error}); write one with save_maps"
        ) from error


def _write(file: Any, index: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("index.json", json.dumps(index, indent=1))
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


_TYPES: dict[type, str] = {PairwiseMap: "pairwise", GateMap: "gate"}


def _read(
    entry: dict[str, Any], prefix: str, arrays: Mapping[str, Tensor]
) -> PairwiseMap | GateMap:
    values = {key: value for key, value in entry.items() if key not in ("name", "type")}
    values |= {
        key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)
    }
    if entry["type"] == "gate":
        return GateMap(**values)
    if "rule" in values:
        q, k, rule, scale = (values.pop(key) for key in ("q", "k", "rule", "scale"))
        values["factors"] = Factors(q, k, rule, scale)
    values |= {key: tuple(values[key]) for key in ("grid_q", "grid_k")}
    return PairwiseMap(**values)
