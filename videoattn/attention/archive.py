"""Saves and loads the maps of a clip, with its frames and facts about it, as one file.

The file is a zip archive that `numpy.load` opens: `index.json`, and one .npy for each array. It
holds no pickles, so a file from somebody else is safe to load.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from videoattn.attention.maps import GATE_AXES, Factors, GateMap, PairwiseMap, Rule
from videoattn.files import read_arrays, write_whole
from videoattn.types import Frames

FORMAT = "videoattn-maps/1"

MAX_INDEX_BYTES = 2**24
"""The largest allowed size of index.json in bytes (16 MiB)."""


class MapArchive(NamedTuple):
    """The content of a file that `save_maps` wrote.

    Args:
        maps: The maps by name.
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
    for number, (name, found) in enumerate(maps.items()):
        kind = "gate" if isinstance(found, GateMap) else "pairwise"
        entry: dict[str, Any] = {"name": name, "type": kind}
        for item in fields(found):
            value = getattr(found, item.name)
            if isinstance(value, Factors):
                entry |= {"rule": value.rule, "scale": value.scale}
                arrays |= {f"{number}.q": value.q.numpy(), f"{number}.k": value.k.numpy()}
            elif isinstance(value, Tensor):
                arrays[f"{number}.{item.name}"] = value.numpy()
            elif value is not None:
                entry[item.name] = value
        entries.append(entry)
    index = {"format": FORMAT, "about": dict(about or {}), "maps": entries}

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("index.json", json.dumps(index, indent=1))
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    write_whole(path, write)


def load_maps(path: Path, *, max_bytes: int = 2**31) -> MapArchive:
    """Reads a file that `save_maps` wrote. The file may be untrusted.

    Args:
        max_bytes: Limit on the total size of all arrays in bytes, after decompression.

    Raises:
        ValueError: If the file is not an archive of maps, or exceeds a limit.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            item = archive.getinfo("index.json")
            if item.file_size > MAX_INDEX_BYTES:
                raise ValueError(
                    f"its index has {item.file_size:,} bytes; the limit is {MAX_INDEX_BYTES:,}"
                )
            index = json.loads(archive.read(item))
        if index["format"] != FORMAT:
            raise ValueError(f"its format is {index['format']!r}, not {FORMAT!r}")
        found = read_arrays(path, most=max_bytes)
        arrays = {name: torch.from_numpy(array) for name, array in found.items()}
        maps = {
            entry["name"]: _read(entry, f"{number}.", arrays)
            for number, entry in enumerate(index["maps"])
        }
        frames, about = arrays.get("frames"), index["about"]
        are_frames = frames is None or (
            frames.dtype == torch.uint8 and frames.ndim == 4 and frames.shape[1] == 3
        )
        if not isinstance(about, dict) or not are_frames:
            raise ValueError("its frames or facts are of another kind")
        return MapArchive(maps, frames, about)
    except OSError:
        raise
    except Exception as error:  # those of zipfile, zlib and NumPy share no base class
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is not an archive of attention maps ({reason}); write one with save_maps"
        ) from error


def _read(
    entry: dict[str, Any], prefix: str, arrays: Mapping[str, Tensor]
) -> PairwiseMap | GateMap:
    values = {key: value for key, value in entry.items() if key not in ("name", "type")}
    values |= {
        key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)
    }
    if entry["type"] == "gate":
        gate = GateMap(**values)
        shapes = (axes.split() for axes in GATE_AXES.get(gate.kind, ()))
        if gate.weights.ndim - 1 not in map(len, shapes):
            raise ValueError(f"{entry['name']!r} is not a map of the kind {gate.kind!r}")
        return gate
    if "rule" in values:
        q, k, rule, scale = (values.pop(key) for key in ("q", "k", "rule", "scale"))
        values["factors"] = Factors(q, k, rule, float(scale))
    values |= {key: tuple(map(int, values[key])) for key in ("grid_q", "grid_k")}
    return _checked(entry["name"], PairwiseMap(**values))


def _checked(name: str, found: PairwiseMap) -> PairwiseMap:
    """Returns the map; raises a ValueError if the shapes or the queries do not fit each other."""
    num_clips, num_heads, num_queries = found.rows.shape[:3]
    shapes = {
        "rows": (num_clips, num_heads, num_queries, *found.grid_k),
        "queries": (num_queries, 3),
        "received": (num_clips, *found.grid_k),
        "elsewhere": (num_clips, num_heads, num_queries),
    }
    for key, shape in shapes.items():
        value = getattr(found, key)
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"{key} of {name!r} are {tuple(value.shape)}; need {shape}")
    queries, grid = found.queries, torch.tensor(found.grid_q)
    if len(grid) != 3 or (queries >= grid).any() or (queries < -1).any():
        raise ValueError(f"queries of {name!r} are outside of the grid {found.grid_q}")
    if any(not 0 <= row < num_queries for row in found.special.values()):
        raise ValueError(f"special queries of {name!r} have no row")
    if (factors := found.factors) is not None:
        same_heads = factors.q.shape[:2] == factors.k.shape[:2] == found.rows.shape[:2]
        same_width = factors.q.shape[3:] == factors.k.shape[3:]
        if not (same_heads and same_width and factors.rule in get_args(Rule)):
            raise ValueError(f"factors of {name!r} do not fit its rows")
    return found
