"""Compares the decoders on every frame of every video in a folder.

PyAV is compared with FOLDER/frames.json if it exists: for each file the number of `frames` that
FFmpeg decodes, and their `mean_gray`. The other decoders are compared with PyAV.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import DECODERS, print_table, videos_under

from videoattn.data.decode import DecodeError, Decoder, check_decoder, count_frames, decode, probe
from videoattn.data.decode.container import open_container, video_stream

COLUMNS = ("file", "kind", *DECODERS)
CHUNK_BYTES = 150_000_000


def decoders(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A folder of videos.")
    ],
) -> None:
    """Compare the decoders on every frame of every video, with PyAV and FOLDER/frames.json."""
    print_table(COLUMNS, compare(folder))


def compare(root: Path) -> list[tuple[str, ...]]:
    """Returns a row for each video: its name, its format, and the result of each decoder."""
    record = root / "frames.json"
    expected = json.loads(record.read_text()) if record.is_file() else {}
    for name in DECODERS:
        check_decoder(name)
    paths = sorted(videos_under(root))
    names = [str(path.relative_to(root)) for path in paths]
    return [
        (f"`{name}`", *_compare_file(path, expected.get(name)))
        for path, name in zip(paths, names, strict=True)
    ]


def _compare_file(path: Path, record: dict[str, Any] | None) -> tuple[str, ...]:
    try:
        info = probe(path)
    except DecodeError as error:
        wrong = "WRONG: " if record is not None and record["frames"] else ""
        return ("does not decode", *[f"{wrong}error: {error.reason}"] * len(DECODERS))
    frame_bytes = info.height * info.width * 3
    num_chunks = -(-info.num_frames * frame_bytes // CHUNK_BYTES)
    chunks = np.array_split(np.arange(info.num_frames), num_chunks)
    first = _against_record(path, chunks, record)
    others = [_against_pyav(path, chunks, decoder) for decoder in DECODERS[1:]]
    return (_kind(path, info.num_frames), first, *others)


def _kind(path: Path, num_frames: int) -> str:
    with open_container(path) as container:
        stream = video_stream(container, path)
        codec, header = stream.codec_context, stream.frames
        kind = f"{container.format.name.split(',')[0]}, {codec.name} {codec.pix_fmt}"
    kind += f", {num_frames} frame{'s' * (num_frames != 1)}"
    return kind if header in (0, num_frames) else f"{kind} (header: {header})"


def _against_record(path: Path, chunks: Sequence[np.ndarray], record: dict[str, Any] | None) -> str:
    num_frames = sum(map(len, chunks))
    counted = count_frames(path)[0]
    if counted != num_frames:
        return f"WRONG: counts {counted}"
    if record is None:
        return "right"
    if record["frames"] != num_frames:
        return f"WRONG: {num_frames} frames instead of {record['frames']}"
    levels = []
    for chunk in chunks:
        means = decode(path, chunk).float().mean(dim=(2, 3)).numpy()
        levels.append(means @ np.array([0.299, 0.587, 0.114], np.float32))
    expected = np.array(record["mean_gray"])
    error = np.abs(np.concatenate(levels)[: len(expected)] - expected).max(initial=0)
    return "right" if error < 2.1 else f"WRONG: a gray level is off by {error:.1f}"


def _against_pyav(path: Path, chunks: Sequence[np.ndarray], decoder: Decoder) -> str:
    frames, reason = np.concatenate(chunks), ""
    for missing in range(min(4, len(frames))):  # some decoders lose frames at the end
        rest = np.array_split(frames[: len(frames) - missing], len(chunks))
        try:
            difference = max(_difference(path, chunk, decoder) for chunk in rest if len(chunk))
        except DecodeError as error:
            reason = reason or error.reason
            continue
        if difference > 4:
            return f"WRONG: a frame differs by {difference:.0f} of 255"
        result = "right" if difference < 0.1 else f"right; colors differ by {difference:.0f} of 255"
        lost = f", but not the last {missing}: {_without_decoder(reason)}"
        return result + lost if missing else result
    return f"error: {_without_decoder(reason)}"


def _without_decoder(reason: str) -> str:
    """Removes the decoder's name from a message, because the column's head has it."""
    return re.sub(r"^decoder \w+ |; choose decoder pyav$", "", reason)


def _difference(path: Path, chunk: np.ndarray, decoder: Decoder) -> float:
    """Returns the mean difference from PyAV's frame, for the frame where it is largest."""
    ours, theirs = decode(path, chunk), decode(path, chunk, decoder=decoder)
    return max(
        float((a.float() - b.float()).abs().mean()) for a, b in zip(ours, theirs, strict=True)
    )


if __name__ == "__main__":
    typer.run(decoders)
