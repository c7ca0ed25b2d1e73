"""Writes videos to tar shards; `videoattn.data.shards` describes the files."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from videoattn.data.lists import Samples
from videoattn.data.shards import key
from videoattn.data.shards.table import TABLE, import_webdataset
from videoattn.data.shards.tar import MAX_FILE_BYTES
from videoattn.files import output_folder, write_text

_BLOCK = 512  # bytes; tar files consist of these


class Shard(NamedTuple):
    name: str
    num_samples: int
    num_bytes: int


def write_shards(
    samples: Samples,
    folder: Path,
    *,
    max_bytes: int,
    wrote: Callable[[int, int], None] = lambda done, total: None,
) -> list[Shard]:
    """Writes tar files of at most `max_bytes` (or one sample) and their table, or nothing.

    The order of the samples is random, because neighbors in a list often share a class. It is the
    same in every call.

    Args:
        samples: The videos, with the number of frames and the frame rate of each.
        wrote: Called after each sample with the number of written samples and the total.

    Raises:
        ValueError: If there are no samples, or a video is larger than a shard's files may be.
        OSError: If the files cannot be written.
    """
    if not len(samples):
        raise ValueError(f"samples: got none for {folder}; need at least 1")
    if samples.label_sets is not None:
        raise ValueError("samples: have several labels each; a shard stores one label per video")
    unfinished = _empty_folder(folder.with_name(f".{folder.name}.unfinished"))
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    shards: list[Shard] = []
    used = 0
    writer: Any = None
    try:
        for number, index in enumerate(order):
            sample = _sample(samples, index)
            size = _size(sample)
            if writer is None or _whole(used + size) > max_bytes:
                if writer is not None:
                    writer.close()
                used = 2 * _BLOCK
                shards.append(Shard(f"{len(shards):06d}.tar", 0, 0))
                path = str(unfinished / shards[-1].name)
                writer = import_webdataset().TarWriter(path, encoder=False, mtime=0)
            writer.write({"__key__": key(number), **sample})
            used += size
            shards[-1] = Shard(shards[-1].name, shards[-1].num_samples + 1, _whole(used))
            wrote(number + 1, len(order))
    finally:
        if writer is not None:
            writer.close()
    write_text(unfinished / TABLE, _table(samples, shards))
    unfinished.replace(folder)
    return shards


def _table(samples: Samples, shards: list[Shard]) -> str:
    table = {
        "class_names": list(samples.class_names),
        "num_samples": len(samples),
        "shards": [{"name": shard.name, "num_samples": shard.num_samples} for shard in shards],
    }
    return json.dumps(table, indent=1) + "\n"


def _empty_folder(folder: Path) -> Path:
    """Creates a folder, or removes the shards that an interrupted call left in it."""
    for old in output_folder(folder).iterdir():
        old.unlink()
    return folder


def _sample(samples: Samples, index: int) -> dict[str, bytes]:
    assert samples.num_frames is not None
    assert samples.fps is not None
    path, label = samples.path(index), int(samples.labels[index])
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes; the limit in a shard is {MAX_FILE_BYTES:,}; re-encode it"
        )
    about = {
        "path": samples.paths[index],
        "label": label,
        "class": samples.class_names[label],
        "num_frames": int(samples.num_frames[index]),
        "fps": float(samples.fps[index]),
    }
    return {
        path.suffix.lower().removeprefix("."): path.read_bytes(),
        "cls": str(label).encode(),
        "json": json.dumps(about).encode(),
    }


def _whole(size: int) -> int:
    """Returns the size of a tar file, rounded up to whole records."""
    return -(-size // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _size(sample: dict[str, bytes]) -> int:
    """Returns the size of files in a tar file: each has a header and whole blocks."""
    return sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in sample.values())
