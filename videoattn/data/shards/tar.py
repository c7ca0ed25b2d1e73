"""Reads the files of a tar stream within limits."""

import tarfile
from collections.abc import Iterator
from typing import Any

MAX_FILE_BYTES = 2**30
"""Largest file in a shard: 1 GiB, for an encoded video."""


def tar_files(stream: Any, url: str) -> Iterator[dict[str, Any]]:
    """Yields the regular files of a tar stream as webdataset takes them.

    Compressed and sparse files are refused, because a few bytes could fill the memory. Videos would
    hardly shrink.

    Args:
        stream: A file or the output of a command, as webdataset opens it.

    Raises:
        tarfile.TarError: If the stream is not a tar file, or ends early.
        ValueError: If a file exceeds `MAX_FILE_BYTES`.
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
