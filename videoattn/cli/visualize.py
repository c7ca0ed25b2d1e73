"""`videoattn visualize`: draws the attention of a network across the frames of a video."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from videoattn import explain
from videoattn.attention.maps import GateMap, PairwiseMap
from videoattn.attention.record import Query, cell_number, recordable_blocks
from videoattn.cli.arguments import Costs, Device, Run
from videoattn.cli.clip import Clip, answer_text, map_owners, read_clip, record_clip
from videoattn.cli.explore import EXPLORER
from videoattn.cli.why import draw_score, draw_swap
from videoattn.errors import one_of
from videoattn.explain.explorer.pack import stage_of
from videoattn.explain.faithful.score import cost_of
from videoattn.files import output_folder, safe_file_name
from videoattn.recipe.console import show
from videoattn.recipe.run import Predictor, load

MOST_BLOCKS = 4  # if a network has more, the last of each stage is drawn
Queries = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FRAME,X,Y",
        help="Draw the attention of this pixel in this frame. Repeatable. Default: the position "
        "that adds most to the class score, and the one with the most motion.",
    ),
]
Layer = Annotated[
    str | None,
    typer.Option(
        help="An attention block, or a prefix of block names; all blocks if not given, or "
        "the last of each stage if many. With a CAM: its layer; the last stage if not given."
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="Draw an explanation of a class score instead of attention: cam, grad_cam, "
        "hires_cam, saliency, guided_backprop, deconvnet, integrated_gradients or occlusion."
    ),
]
Swap = Annotated[
    Path | None,
    typer.Option(
        metavar="VIDEO",
        help="Learn to pay attention: another video. Exchange the global vectors of both videos, "
        "and draw both.",
    ),
]


class Asked(NamedTuple):
    """A query in the network's input, and its pixel in the frames if the user named it, else the
    reason for the choice."""

    query: Query
    pixel: Query | None = None
    reason: str = ""


def command(
    run: Run,
    video: Annotated[Path, typer.Argument(help="A video file.")],
    query: Queries = None,
    layer: Layer = None,
    method: Method = None,
    target: Annotated[
        str | None, typer.Option(help="With --method: the class; the predicted class if not given.")
    ] = None,
    swap: Swap = None,
    output: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the pictures; RUN/pictures if not given."),
    ] = None,
    score: Costs = False,
    device: Device = "auto",
) -> list[Path]:
    """Draw where a network looks, across the frames of a video.

    Writes contact sheets (PNG) and overlays (MP4).
    """
    if swap is not None and (query or method or target or score):
        raise ValueError("--swap draws a head; leave out --query, --method, --target, --score")
    if method is None and target is not None:
        raise ValueError("--target needs a --method, such as --method grad_cam")
    if method is not None:
        if query:
            raise ValueError(f"{method} has no query; leave out --query, or --method")
        one_of("method", method, explain.METHODS)
        if layer is not None and method not in explain.OF_A_LAYER:
            takers = ", ".join(explain.OF_A_LAYER)
            raise ValueError(f"layer: {method} explains the input; only {takers} take --layer")
    loaded = load(run, device)
    folder = output or loaded.folder / "pictures"
    if swap is not None:
        return draw_swap(loaded, (video, swap), folder, layer)
    if method is not None:
        return draw_score(loaded, video, folder, method, layer, target, score)
    written = _draw_attention(loaded, video, folder, layer, query or (), score)
    page = loaded.folder / EXPLORER
    how = page if page.exists() else shlex.join(["videoattn", "explore", f"{run}", f"{video}"])
    show(f"every other query, in a page to click: {how}")
    return written


def _draw_attention(
    loaded: Predictor,
    video: Path,
    folder: Path,
    layer: str | None,
    queries: Sequence[str],
    costs: bool,
) -> list[Path]:
    """Draws the maps of the blocks, and returns the written files."""
    positions = [_parse_query(query) for query in queries]
    clip = read_clip(loaded, video, positions[0][0] if positions else None)
    pixels = [clip.pixel(position) for position in positions]
    asked = [Asked(clip.to_input(pixel), pixel) for pixel in pixels]
    maps, logits, chosen = record_clip(loaded, clip, [one.query for one in asked] or None)
    asked += [Asked(one.query, reason=one.reason) for one in chosen]
    # A map whose queries are all learned tokens has no query position to draw.
    placed = [name for name, m in maps.items() if isinstance(m, GateMap) or all(m.grid_q)]
    owners = map_owners(dict.fromkeys(placed), list(recordable_blocks(loaded.model)))
    names = choose_maps(layer, owners)
    if pixels and all(isinstance(maps[name], GateMap) for name in names):
        show("these maps have no query; --query only selected the clip")
    output_folder(folder)
    written: list[Path] = []
    for name in names:
        found, block = maps[name], owners[name]
        short = safe_file_name(block + name.removeprefix(block).replace(".", "_", 1))
        stem = f"{folder / safe_file_name(video.stem)}_{short}"
        title = f"{video.name}: {answer_text(loaded, logits)}\n{name} of {loaded.config.model.name}"
        if costs:
            label = int(logits.argmax())
            title += cost_of(loaded.model, clip.video, found, label, loaded.scores)
        if isinstance(found, GateMap):
            written += clip.save(stem, found, title)
        else:
            written += _draw_rows(stem, title, name, clip, found, asked)
    return written


def _parse_query(text: str) -> tuple[int, int, int]:
    """Returns the numbers in "FRAME,X,Y"."""
    try:
        frame, x, y = (int(number) for number in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"query {text!r} is not FRAME,X,Y: a frame number and a pixel, such as 40,160,90"
        ) from error
    return frame, x, y


def _draw_rows(
    stem: str, title: str, name: str, clip: Clip, found: PairwiseMap, asked: Sequence[Asked]
) -> list[Path]:
    """Draws the row of each query. `stem` is the start of the files' names."""
    strongest = None
    if found.is_whole:
        strongest = explain.summarize(found).strongest
        numbers = [cell_number(one.query, clip.grid, found.grid_q) for one in asked]
        found = found.select(torch.tensor(numbers))
    written = []
    for row, (query, pixel, reason) in enumerate(asked):
        words = explain.describe_row(
            found,
            row,
            name=name,
            frame=query[0],
            numbers=[str(number) for number in clip.numbers],
            strongest=strongest,
        )
        if reason:
            words += f"\nThis query was chosen because {reason}."
        stem_of_row = f"{stem}_{row + 1}"
        written += clip.save(stem_of_row, found, title, query=row, pixel=pixel, words=words)
    return written


def choose_maps(layer: str | None, owners: Mapping[str, str]) -> list[str]:
    """Returns the names of the maps to draw, and prints a note about those that are left out."""
    blocks = list(dict.fromkeys(owners.values()))
    if layer is not None:
        prefix = re.compile(re.escape(layer) + r"(?!(?<=\d)\d)")  # layer1 does not match layer10
        chosen = [name for name in owners if prefix.match(name)]
        if not chosen:
            names = ", ".join(blocks)
            raise ValueError(f"layer {layer!r} has no attention map; choose from {names}")
        return chosen
    drawn = blocks
    if len(blocks) > MOST_BLOCKS:
        last = {stage_of(block): block for block in blocks}
        drawn = list(last.values())[-MOST_BLOCKS:]
        note = (
            f"drawing {len(drawn)} of {len(blocks)} attention blocks, the last of each stage; for "
            f"others pass --layer with a name or a prefix (--layer {stage_of(blocks[0])}): "
        )
        show(note + ", ".join(blocks))
    return [name for name, block in owners.items() if block in drawn]
