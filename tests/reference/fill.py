"""The weights and clips behind the records in tests/records, rebuilt from names and shapes.

A record holds what a public implementation answered in eval mode and float32. Its weights and its
input are NumPy's legacy random streams (frozen by NumPy's policy), seeded by each key's CRC-32.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

RECORDS = Path(__file__).parents[1] / "records"


def read(folder: str, name: str) -> dict[str, Any]:
    return json.loads((RECORDS / folder / f"{name}.json").read_text())


def _values(key: str, shape: list[int]) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if len(shape) > 1:  # a kernel: the variance of its output stays that of its input
        return random.standard_normal(shape) * np.sqrt(1.0 / np.prod(shape[1:]))
    if key.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape)
    if key.endswith("weight"):
        return random.uniform(0.5, 1.0, shape)
    return random.standard_normal(shape) * 0.1


def state_dict(record: dict[str, Any]) -> dict[str, Tensor]:
    """Returns every entry of the record. Counters of batches stay 0; `gain` scales named ones."""
    state = {}
    for key, shape in record["keys"].items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
            continue
        values = _values(key, shape)
        for part, factor in record.get("gain", ()):
            if part in key:
                values = values * factor
        state[key] = torch.from_numpy(values.astype(np.float32))
    return state


def clip(record: dict[str, Any]) -> Tensor:
    """Returns the record's input, standard normal, in the layout of its public implementation."""
    source = record["input"]
    random = np.random.RandomState(source["seed"])
    return torch.from_numpy(random.standard_normal(source["shape"]).astype(np.float32))
