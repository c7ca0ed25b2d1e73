"""Plots the resident memory of a process over many decodes, for each decoder."""

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from common import chosen_decoders, print_table, videos_under
from matplotlib.figure import Figure

from videoattn.data.decode import DecodeError, Decoder, check_decoder, count_frames, decode

Videos = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A folder of videos.")]


def decode_memory(
    folder: Videos,
    picture: Annotated[Path, typer.Option("--out", help="The plot.")] = Path("runs/memory.png"),
    count: Annotated[int, typer.Option(min=1, help="Number of decodes.")] = 10_000,
    decoder: Annotated[str, typer.Option(help="pyav, decord, torchcodec or all.")] = "all",
    max_bytes: Annotated[int, typer.Option(min=1, help="Skip larger videos.")] = 40_000,
) -> None:
    """Plot resident memory over many decodes, each decoder in its own process."""
    paths = videos_under(folder, max_bytes)
    memory = {}
    for name in chosen_decoders(decoder):
        check_decoder(name)
        memory[name] = resident_memory(paths, name, count)
    print_table(
        ("decoder", "MiB at first", "MiB at last", "growth in the last three quarters"),
        [
            (name, f"{mib[0]:.0f}", f"{mib[-1]:.0f}", f"{mib[-1] - mib[len(mib) // 4]:+.1f}")
            for name, mib in memory.items()
        ],
        note=f"{count:,} decodes of 8 frames, {len(paths)} videos in turn. Plot: {picture}",
    )
    _plot(memory, count, picture)


def resident_memory(
    paths: Sequence[Path], decoder: Decoder, count: int, *, points: int = 200
) -> list[float]:
    """Decodes 8 frames of each video in turn, `count` times, in a new process.

    Videos that fail to decode count too.

    Returns:
        The resident memory in MiB, measured `points` times at regular intervals.

    Raises:
        RuntimeError: If the decoder ends the process.
    """
    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_decode_repeatedly, args=(sender, paths, decoder, count, points)
    )
    process.start()
    sender.close()
    measured: list[float] = []
    try:
        while True:
            measured.append(receiver.recv())
    except EOFError:
        process.join()
    if process.exitcode:
        raise RuntimeError(f"decoder {decoder} ended its process (exit code {process.exitcode})")
    return measured


def _decode_repeatedly(
    sender: Connection, paths: Sequence[Path], decoder: Decoder, count: int, points: int
) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # messages of the decoders' libraries
    step = max(count // points, 1)
    lengths: dict[Path, int] = {}
    for done in range(1, count + 1):
        path = paths[done % len(paths)]
        try:
            if path not in lengths:
                lengths[path] = 1
                lengths[path] = count_frames(path)[0]
            decode(path, np.linspace(0, lengths[path] - 1, 8).astype(int), decoder=decoder)
        except DecodeError:
            pass
        if done % step == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sender.send(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def _plot(memory: dict[Decoder, list[float]], count: int, picture: Path) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, values in memory.items():
        axes.plot(np.linspace(count / len(values), count, len(values)), values, label=name)
    axes.set_xlabel("decodes of 8 frames")
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    typer.run(decode_memory)
