"""Compares the decoders on every frame of every video in a folder.

PyAV is compared with FOLDER/frames.json if it exists: for each file the number of `frames` that
FFmpeg decodes, and their `mean_gray`. The other decoders are compared with PyAV. For each decoder,
some frames are also requested individually, and compared with those of a PyAV decode from the first
packet.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import DECODERS, print_table, videos_under

from videoattn.data.decode import DecodeError, Decoder, check_decoder, count_frames, decode
from videoattn.data.decode.container import open_container, video_stream
from videoattn.data.decode.pyav import Video
from videoattn.data.decode.rgb import ToRGB
from videoattn.data.prepare.verify import probe

COLUMNS = ("file", "kind", *DECODERS)
CHUNK_BYTES = 150_000_000
NUM_ALONE = 12
"""Number of frames that are requested individually: evenly spaced ones and the last."""
MAX_DIFFERENCE = 4.0
"""Largest mean difference (of 255) of a correct frame. Decoders differ by this in 10-bit colors."""


def decoders(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A folder of videos.")
    ],
) -> None:
    """Compare the decoders on every frame of every video, in sequence and individually."""
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
    results = [first, *(_against_pyav(path, chunks, decoder) for decoder in DECODERS[1:])]
    alone = np.unique(np.linspace(0, info.num_frames - 1, NUM_ALONE).astype(np.int64))
    whole = _from_first_packet(path, alone)
    for number, decoder in enumerate(DECODERS):
        if results[number].startswith("right"):
            results[number] = _alone(path, whole, decoder) or results[number]
    return (_kind(path, info.num_frames), *results)


def _from_first_packet(path: Path, numbers: np.ndarray) -> dict[int, np.ndarray]:
    """Returns the frames with these numbers, by decoding every frame up to the last of them."""
    wanted, images, to_rgb = set(numbers.tolist()), {}, ToRGB()
    with Video(path) as video:
        for number, frame in enumerate(video.frames()):
            if number in wanted:
                images[number] = to_rgb(frame).copy()
    return images


def _alone(path: Path, whole: dict[int, np.ndarray], decoder: Decoder) -> str:
    """Requests each frame individually. Returns the first difference from a full decode, or ""."""
    for number, image in whole.items():
        try:
            frame = decode(path, [number], decoder=decoder)[0].permute(1, 2, 0).numpy()
        except DecodeError as error:
            return f"WRONG: frame {number} alone: error: {_without_decoder(error.reason)}"
        difference = np.abs(frame.astype(np.int16) - image).mean()
        if difference > MAX_DIFFERENCE:
            return f"WRONG: frame {number} alone differs by {difference:.0f} of 255"
    return ""


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
        if difference > MAX_DIFFERENCE:
            return f"WRONG: a frame differs by {difference:.0f} of 255"
        result = "right" if difference < 0.1 else f"right; colors differ by {difference:.0f} of 255"
        lost = f", but not the last {missing}: {_without_decoder(reason)}"
        return result + lost if missing else result
    return f"error: {_without_decoder(reason)}"


def _without_decoder(reason: str) -> str:
    """Removes the decoder's name from a message, because the column's head has it."""
    return re.sub(r"^decoder \w+ |; choose decoder pyav$", "", reason)


def _difference(path: Path, chunk: np.ndarray, decoder: Decoder) -> float:
    """Returns the largest mean difference of a frame from PyAV's frame, in levels of 255."""
    ours, theirs = decode(path, chunk), decode(path, chunk, decoder=decoder)
    return max(
        float((a.float() - b.float()).abs().mean()) for a, b in zip(ours, theirs, strict=True)
    )


if __name__ == "__main__":
    typer.run(decoders)
