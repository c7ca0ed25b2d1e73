"""Reads `shards.json`, the table of a folder of shards, and tar streams, within limits."""

import json
import math
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from itertools import accumulate
from types import ModuleType
from typing import Any

import numpy as np

from videoattn.data.decode.source import DecodeError, VideoBytes
from videoattn.data.lists import VIDEO_SUFFIXES

TABLE = "shards.json"

MAX_FILE_BYTES = 2**30
"""Largest file in a shard: 1 GiB, for an encoded video."""

MAX_SAMPLES = 10_000_000
"""Most samples of a split. Their names are kept in memory."""

MAX_SHARDS = 100_000
"""Most tar files that a pattern with braces may name."""

MAX_TABLE_BYTES = 2**26
"""Largest shards.json: 64 MiB."""

TAR = re.compile(r"[^/\s]+\.tar")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.tar")
_VIDEO = frozenset(suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES)


def read_table(url: str) -> tuple[tuple[str, ...], dict[str, tuple[int, int]]]:
    """Returns the class names, and by shard (number of the first sample, number of samples)."""
    try:
        with import_webdataset().gopen(url, "rb") as stream:
            content = stream.read(MAX_TABLE_BYTES + 1)
    except OSError as error:
        raise ValueError(
            f"{url} cannot be read ({_reason(error)}); copy it together with the shards"
        ) from error
    if len(content) > MAX_TABLE_BYTES:
        raise ValueError(f"{url} is larger than the limit of {MAX_TABLE_BYTES:,} bytes")
    try:
        table = json.loads(content)
        counts = {entry["name"]: int(entry["num_samples"]) for entry in table["shards"]}
        # A name becomes part of a path, an address or a command.
        if wrong := [name for name in counts if not _NAME.fullmatch(name)]:
            raise ValueError(f"{wrong[0]!r} is not the name of a tar file, such as 000000.tar")
        class_names = tuple(str(name) for name in table["class_names"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{url} is not a list of shards ({error})") from error
    if not class_names or min(counts.values(), default=0) < 1:
        raise ValueError(f"{url} lists no class, no shard, or an empty shard; write them again")
    if (total := sum(counts.values())) > MAX_SAMPLES:
        raise ValueError(f"{url} lists {total:,} samples; the limit is {MAX_SAMPLES:,}")
    firsts = accumulate(counts.values(), initial=0)
    return class_names, {n: (first, counts[n]) for n, first in zip(counts, firsts, strict=False)}


def expanded(pattern: str) -> list[str]:
    """Returns the paths, URLs or commands that a pattern with braces stands for.

    Raises:
        ValueError: If there are more than `MAX_SHARDS`.
    """
    counts = [abs(int(a) - int(b)) + 1 for a, b in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)]
    counts += [words.count(",") + 1 for words in re.findall(r"\{[^{}]*\}", pattern)]
    if math.prod(counts) > MAX_SHARDS:
        raise ValueError(f"{pattern!r} names more shards than the limit of {MAX_SHARDS:,}")
    return list(import_webdataset().shardlists.expand_urls(pattern))


def read_shard(url: str, first: int, num_classes: int) -> Iterator[VideoBytes]:
    """Yields the samples of a shard, whose files must be numbered from `first`.

    Raises a DecodeError if the shard is truncated, or has files that `write_shards` cannot write.
    """
    tariterators, stream = import_webdataset().tariterators, None
    try:
        stream = import_webdataset().gopen(url, "rb")
        files = _tar_files(stream, url)
        for number, sample in enumerate(tariterators.group_by_keys(files), start=first):
            yield _encoded(url, sample, sample_name(number), num_classes)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DecodeError(url, _reason(error)) from error
    finally:
        if stream is not None:
            with suppress(OSError):  # from a command that is stopped early
                stream.close()


def sample_name(number: int) -> str:
    """Returns the name of a sample's files in a tar, without their suffixes."""
    return f"{number:08d}"


def tar_name(url: str) -> str:
    """Returns the name of the shard's file in a path, a URL or a command."""
    return TAR.findall(url)[-1]


def _tar_files(stream: Any, url: str) -> Iterator[dict[str, Any]]:
    """Yields the regular files of a tar stream as webdataset takes them.

    Compressed and sparse files are refused: a small file could exhaust memory, and compression
    hardly shrinks videos.
    """
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if not member.isreg():
                continue
            if member.issparse():
                raise ValueError(f"{member.name} is a sparse file; write it whole")
            if member.size > MAX_FILE_BYTES:
                raise ValueError(
                    f"{member.name} has {member.size:,} bytes; the limit is {MAX_FILE_BYTES:,}"
                )
            file = tar.extractfile(member)
            assert file is not None
            yield {"fname": member.name, "data": file.read(), "__url__": url}
            tar.members = []  # type: ignore[attr-defined]  # else all headers stay in memory


def _encoded(url: str, sample: dict[str, Any], name: str, num_classes: int) -> VideoBytes:
    """Returns the video of a sample; raises a ValueError if `write_shards` would not write it."""
    suffixes = [suffix for suffix in sample if suffix in _VIDEO]
    if sample["__key__"] != name or len(suffixes) != 1 or not {"cls", "json"} <= set(sample):
        files = ", ".join(suffix for suffix in sample if not suffix.startswith("__"))
        raise ValueError(
            f"got sample {sample['__key__']} with {files}; need {name} with a video, cls and json"
        )
    label = int(sample["cls"])
    if not 0 <= label < num_classes:
        raise ValueError(f"{name}: got label {label}; need 0 to {num_classes - 1}")
    try:
        about = json.loads(sample["json"])
        path, num_frames, fps = about["path"], int(about["num_frames"]), float(about["fps"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name}.json is damaged ({error!r})") from error
    if num_frames < 0 or not 0 <= fps < np.inf:
        raise ValueError(
            f"{name}.json: got num_frames {num_frames}, fps {fps}; need 0 or more, and a finite fps"
        )
    return VideoBytes(
        f"{tar_name(url)}/{name} ({path})", sample[suffixes[0]], label, num_frames, fps
    )


def _reason(error: Exception) -> str:
    """Returns the message of an error without webdataset's additions."""
    text = str(error.args[0] if len(error.args) == 1 or not isinstance(error, OSError) else error)
    if ended := re.search(r": exit (-?\d+) \(read\)", text):
        return f"the command that reads it ended with exit code {ended[1]}"
    return str(getattr(error, "strerror", None) or text.partition(" @ ")[0])


@cache
def import_webdataset() -> ModuleType:
    try:
        return import_module("webdataset")
    except ImportError as error:
        raise ImportError(
            "layout shards needs webdataset; install the extra: pip install 'videoattn[shards]'"
        ) from error
