"""Writes videos to tar shards; `videoattn.data.shards` describes the files."""

import hashlib
import json
import tarfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from videoattn.data.lists import Samples
from videoattn.data.shards.table import MAX_FILE_BYTES, TABLE, import_webdataset, sample_name
from videoattn.files import output_folder, require_empty, write_text, write_whole

_BLOCK = 512  # bytes; tar files consist of these
_UNFINISHED = ".unfinished"  # holds a digest of the plan until all shards are written


class Shard(NamedTuple):
    """A tar file: its name, the number of its first sample, and its samples in order."""

    name: str
    first: int
    indices: list[int]
    num_bytes: int


def write_shards(
    subsets: Mapping[str, Samples],
    folder: Path,
    *,
    max_bytes: int,
    wrote: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[Shard]]:
    """Writes each subset to a folder of tar files, each of at most `max_bytes` or one sample.

    The order of the samples is random, because neighbors in a list often share a class. It is the
    same in every call. An interrupted call leaves complete tar files; the same call continues after
    them, and the result is that of an uninterrupted call.

    Args:
        subsets: The videos of each subfolder, with the number of frames and the frame rate of each.
            The name "" is `folder` itself.
        wrote: Called after each shard with the number of written samples and the total.

    Raises:
        ValueError: If a subset is empty, a video exceeds the size limit of a file in a shard or
            changes during the call, or the folder holds other files.
        OSError: If the files cannot be written.
    """
    check_output(folder)
    digest = hashlib.sha256()
    plans = {name: _plan(samples, max_bytes, digest.update) for name, samples in subsets.items()}
    _start(folder, digest.hexdigest())
    done, total = 0, sum(map(len, subsets.values()))
    for name, shards in plans.items():
        target, samples = output_folder(folder / name), subsets[name]
        for leftover in target.glob(".*.partial"):  # of a call that was killed
            leftover.unlink()
        for shard in shards:
            file = target / shard.name
            if not file.is_file():
                write_whole(file, partial(_write, samples, shard))
            done += len(shard.indices)
            wrote(done, total)
        write_text(target / TABLE, _table(samples, shards))
    (folder / _UNFINISHED).unlink()
    return plans


def check_output(folder: Path) -> None:
    """Raises a ValueError if a folder holds files, unless an interrupted call left them."""
    if not (folder / _UNFINISHED).is_file():
        require_empty(folder)


def _plan(samples: Samples, max_bytes: int, note: Callable[[bytes], None]) -> list[Shard]:
    """Divides samples into shards, and calls `note` with all that determines their content."""
    if not len(samples):
        raise ValueError("samples: got none; need at least 1")
    if samples.label_sets is not None:
        raise ValueError("samples: have several labels each; a shard stores one label per video")
    if (samples.labels < 0).any():
        raise ValueError(
            "samples: have unknown labels (-1); a shard stores the label of each video"
        )
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    shards: list[Shard] = []
    used = 0
    for number, index in enumerate(order):
        state = samples.path(index).stat()
        if state.st_size > MAX_FILE_BYTES:
            raise ValueError(
                f"{samples.path(index)} has {state.st_size:,} bytes; the limit in a shard is "
                f"{MAX_FILE_BYTES:,}; re-encode it"
            )
        texts = _texts(samples, index)
        # A file in a tar file is a header and whole blocks.
        sizes = (state.st_size, *map(len, texts.values()))
        size = sum(_BLOCK - (-n // _BLOCK) * _BLOCK for n in sizes)
        if not shards or _whole(used + size) > max_bytes:
            used = 2 * _BLOCK
            shards.append(Shard(f"{len(shards):06d}.tar", number, [], 0))
        used += size
        shards[-1].indices.append(index)
        shards[-1] = shards[-1]._replace(num_bytes=_whole(used))
        note(f"{shards[-1].name} {state.st_size} {state.st_mtime_ns} {texts}".encode())
    note(_table(samples, shards).encode())
    return shards


def _start(folder: Path, digest: str) -> None:
    """Marks the folder as unfinished. If it is marked already, its digest must be the same."""
    marker = output_folder(folder) / _UNFINISHED
    if marker.is_file() and marker.read_bytes() != digest.encode():
        raise ValueError(
            f"{folder} holds unfinished shards of other videos, or of another size; choose another "
            "folder, or remove it"
        )
    write_text(marker, digest)


def _write(samples: Samples, shard: Shard, stream: Any) -> None:
    with import_webdataset().TarWriter(stream, encoder=False, mtime=0) as writer:
        for number, index in enumerate(shard.indices, shard.first):
            path = samples.path(index)
            try:
                video = path.read_bytes()
            except OSError as error:  # here it would read as an error of writing the shard
                raise ValueError(f"{path} cannot be read: {error.strerror}") from error
            suffix = path.suffix.lower().removeprefix(".")
            key = sample_name(number)
            writer.write({"__key__": key, suffix: video, **_texts(samples, index)})
    if stream.tell() != shard.num_bytes:
        raise ValueError(f"a video of {shard.name} changed while it was written; start again")


def _table(samples: Samples, shards: list[Shard]) -> str:
    table = {
        "class_names": list(samples.class_names),
        "num_samples": len(samples),
        "shards": [{"name": s.name, "num_samples": len(s.indices)} for s in shards],
    }
    return json.dumps(table, indent=1) + "\n"


def _texts(samples: Samples, index: int) -> dict[str, bytes]:
    """Returns the label and the description of a sample, by the suffix of their files."""
    label = int(samples.labels[index])
    about = {
        "path": samples.paths[index],
        "label": label,
        "class": samples.class_names[label],
        "num_frames": int(samples.num_frames[index]),
        "fps": float(samples.fps[index]),
    }
    return {"cls": str(label).encode(), "json": json.dumps(about).encode()}


def _whole(size: int) -> int:
    """Returns the size of a tar file, rounded up to whole records."""
    return -(-size // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
