"""`videoattn visualize --swap`: draws two clips with exchanged global vectors."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from videoattn import explain
from videoattn.attention.maps import GateMap
from videoattn.attention.swap import swap_global_vectors
from videoattn.cli.clip import read_clip
from videoattn.engine.parallel import resolve_device
from videoattn.errors import one_of
from videoattn.files import output_folder, safe_file_name
from videoattn.recipe.console import show
from videoattn.recipe.run import Predictor, load

Swap = Annotated[
    Path | None,
    typer.Option(
        metavar="VIDEO",
        help="Learn to pay attention: another video. Exchange the global vectors of both videos, "
        "and draw both.",
    ),
]


def visualize_swap(
    run: Path,
    videos: tuple[Path, Path],
    *,
    layer: str | None = None,
    folder: Path | None = None,
    device: str = "auto",
) -> list[Path]:
    """Draws where Learn to pay attention looks in two videos with either global vector.

    Each level of each video gets a contact sheet (PNG): the weights with its own global vector, and
    below them the weights with the other one. Returns the written files.

    Args:
        layer: The name of a level's map, such as "fc.0". Default: all levels.
    """
    loaded = load(run, resolve_device(device))
    clips = [read_clip(loaded, video) for video in videos]
    own, swapped = swap_global_vectors(loaded.model, clips[0].video, clips[1].video)
    names = list(own.maps) if layer is None else [one_of("layer", layer, own.maps)]
    folder = output_folder(folder or loaded.folder / "pictures")
    written = []
    for index, (video, clip) in enumerate(zip(videos, clips, strict=True)):
        other = videos[1 - index]
        answers = [_answer(loaded, seen.logits[index]) for seen in (own, swapped)]
        for name in names:
            pair = [seen.maps[name].weights[index] for seen in (own, swapped)]
            image = clip.draw(
                GateMap("pooling", torch.cat(pair)[None], normalized=own.maps[name].normalized),
                f"{video.name}: {answers[0]}\n{name} of {loaded.config.model.name}",
                headings=(
                    f"with its own global vector: {answers[0]}",
                    f"with the global vector of {other.name}: {answers[1]}",
                ),
            )
            stem = f"{safe_file_name(video.stem)}_{safe_file_name(name)}_swapped_with_"
            path = folder / f"{stem}{safe_file_name(other.stem)}.png"
            explain.write_png(path, image)
            show(path)
            written.append(path)
    return written


def _answer(loaded: Predictor, logits: Tensor) -> str:
    probabilities = loaded.scores(logits[None])[0]
    best = int(probabilities.argmax())
    return f"{loaded.class_names[best]}, {100 * float(probabilities[best]):.0f} %"
