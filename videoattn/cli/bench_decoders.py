"""`videoattn bench decoders`: every frame of every file, by each decoder (docs/decoders.md)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from videoattn.cli.bench_decode import DECODERS, videos_under
from videoattn.data.decode import (
    DecodeError,
    Decoder,
    Video,
    check_decoder,
    count_frames,
    decode,
    probe,
)
from videoattn.recipe.run import out

RIGHT = "right"
CHUNK_BYTES = 150_000_000


class Row(NamedTuple):
    """A file, what it is, and what each decoder makes of it."""

    name: str
    kind: str
    cells: tuple[str, ...]


def bench_decoders(root: Path, *, markdown: bool = False) -> list[Row]:
    """Every video under `root`. PyAV is held against root/frames.json, where it is there (what
    FFmpeg decodes of each file: `frames` and `mean_gray`), the others against PyAV.

    Raises: ValueError where there is no video; ImportError for a decoder that is not installed.
    """
    record = root / "frames.json"
    expected = json.loads(record.read_text()) if record.is_file() else {}
    for name in DECODERS:
        check_decoder(name)
    rows = [
        _row(path, str(path.relative_to(root)), expected.get(str(path.relative_to(root))))
        for path in sorted(videos_under(root))
    ]
    head = ("file", "kind", *DECODERS)
    if not markdown:
        table = Table(*head)
        for row in rows:
            table.add_row(row.name, row.kind, *row.cells)
        out.print(table)
        return rows
    lines = [head, ("---",) * len(head)]
    lines += [(f"`{row.name}`", row.kind, *row.cells) for row in rows]
    out.print("\n".join(f"| {' | '.join(line)} |" for line in lines), markup=False)
    return rows


def _row(path: Path, name: str, record: dict[str, Any] | None) -> Row:
    try:
        with Video(path) as video:
            container = video.container.format.name.split(",")[0]
            codec = video.stream.codec_context
            kind, stated = f"{container}, {codec.name} {codec.pix_fmt}", video.stream.frames
        info = probe(path)
    except DecodeError as error:
        wrong = "WRONG: " if record is not None and record["frames"] else ""
        return Row(name, "does not decode", (f"{wrong}error: {error.reason}",) * len(DECODERS))
    kind += f", {info.num_frames} frame{'s' * (info.num_frames != 1)}"
    if stated and stated != info.num_frames:
        kind += f" (its header says {stated})"
    size = info.height * info.width * 3
    chunks = np.array_split(np.arange(info.num_frames), -(-info.num_frames * size // CHUNK_BYTES))
    first = _against_record(path, chunks, info.num_frames, record)
    return Row(name, kind, (first, *(_against_pyav(path, chunks, name) for name in DECODERS[1:])))


def _against_record(
    path: Path, chunks: list[np.ndarray], num_frames: int, record: dict[str, Any] | None
) -> str:
    counted = count_frames(path)[0]
    if counted != num_frames:
        return f"WRONG: counts {counted}"
    if record is None:
        return RIGHT
    if record["frames"] != num_frames:
        return f"WRONG: {num_frames} frames instead of {record['frames']}"
    levels = []
    for chunk in chunks:
        means = decode(path, chunk).float().mean(dim=(2, 3)).numpy()
        levels.append(means @ np.array([0.299, 0.587, 0.114], np.float32))
    want = np.array(record["mean_gray"])
    error = np.abs(np.concatenate(levels)[: len(want)] - want).max()
    return RIGHT if error < 2.1 else f"WRONG: a grey level is off by {error:.1f}"


def _against_pyav(path: Path, chunks: list[np.ndarray], decoder: Decoder) -> str:
    frames, reason = np.concatenate(chunks), ""
    for lost in range(4):  # frames at the end
        try:
            left = np.array_split(frames[: len(frames) - lost], len(chunks))
            differs = max(_differences(path, left, decoder), default=None)
        except DecodeError as error:
            reason = reason or error.reason
            continue
        if differs is None:
            break
        if differs > 4:
            return f"WRONG: a frame differs by {differs:.0f} of 255"
        said = RIGHT if differs < 0.1 else f"{RIGHT}; colours differ by {differs:.0f} of 255"
        return f"{said}, but not the last {lost}: {_short(reason)}" if lost else said
    return f"error: {_short(reason)}"


def _short(reason: str) -> str:
    """Without the decoder's name, which is the column's."""
    return re.sub(r"^decoder \w+ |; choose decoder pyav$", "", reason)


def _differences(path: Path, chunks: list[np.ndarray], decoder: Decoder) -> Iterator[float]:
    """The largest mean difference of a frame, of each chunk."""
    for chunk in chunks:
        if len(chunk):
            ours, theirs = decode(path, chunk), decode(path, chunk, decoder=decoder)
            each = (ours[i].float() - theirs[i].float() for i in range(len(chunk)))
            yield max(float(difference.abs().mean()) for difference in each)
