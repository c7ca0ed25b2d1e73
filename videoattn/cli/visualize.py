"""`videoattn visualize`: draws the attention of a network across the frames of a video."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer

from videoattn import explain
from videoattn.attention.archive import MapArchive
from videoattn.attention.maps import GateMap, PairwiseMap
from videoattn.attention.record import Query, cell_number, recordable_blocks
from videoattn.attention.swap import swap_global_vectors
from videoattn.cli.arguments import Costs, Device, Run
from videoattn.cli.clip import (
    Clip,
    answer_text,
    choose_maps,
    map_owners,
    read_clip,
    record_clip,
    score_map,
)
from videoattn.cli.explore import EXPLORER
from videoattn.errors import one_of
from videoattn.explain.faithful.score import cost_of
from videoattn.files import output_folder, safe_file_name, write_whole
from videoattn.models import info
from videoattn.recipe.console import show
from videoattn.recipe.run import Predictor, load

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
        return _draw_swap(loaded, (video, swap), folder, layer)
    if method is not None:
        return _draw_score(loaded, video, folder, method, layer, target, score)
    written = _draw_attention(loaded, video, folder, layer, query or (), score)
    page = loaded.folder / EXPLORER
    how = page if page.exists() else f"videoattn explore {run} {video}"
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
    asked = [clip.to_input(pixel) for pixel in pixels] if pixels else None
    recorded = record_clip(loaded, clip, queries=asked, costs=costs)
    # A map whose queries are all learned tokens has no query position to draw.
    placed = [name for name, m in recorded.maps.items() if isinstance(m, GateMap) or all(m.grid_q)]
    owners = map_owners(dict.fromkeys(placed), list(recordable_blocks(loaded.model)))
    names = choose_maps(layer, owners)
    if pixels and all(isinstance(recorded.maps[name], GateMap) for name in names):
        show("these maps have no query; --query only selected the clip")
    output_folder(folder)
    name, probability = recorded.about["classes"][0]
    written: list[Path] = []
    for full in names:
        block = owners[full]
        short = safe_file_name(block + full.removeprefix(block).replace(".", "_", 1))
        stem = f"{folder / safe_file_name(video.stem)}_{short}"
        title = f"{video.name}: {name}, {100 * probability:.0f} %\n{full} of "
        title += f"{loaded.config.model.name}{recorded.about['costs'].get(full, '')}"
        written += _draw(stem, title, full, clip, recorded, pixels)
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


def _draw(
    stem: str, title: str, name: str, clip: Clip, recorded: MapArchive, pixels: Sequence[Query]
) -> list[Path]:
    """Draws a map: once, or for every query. `stem` is the start of the files' names."""
    found = recorded.maps[name]
    if isinstance(found, GateMap):
        return _save(stem, clip, found, title)
    reasons = [reason for *_, reason in recorded.about["queries"]]
    queries = [(t, y, x) for t, y, x, *_ in recorded.about["queries"]]
    queries = queries or [clip.to_input(pixel) for pixel in pixels]
    strongest = None
    if found.is_whole:
        strongest = explain.summarize(found).strongest
        numbers = [cell_number(query, clip.grid, found.grid_q) for query in queries]
        found = found.select(torch.tensor(numbers))
    written = []
    for index, query in enumerate(queries):
        words = explain.describe_row(
            found,
            index,
            name=name,
            frame=query[0],
            numbers=[str(number) for number in clip.numbers],
            strongest=strongest,
        )
        if reasons:
            words += f"\nThis query was chosen because {reasons[index]}."
        pixel = pixels[index] if pixels else None
        written += _save(f"{stem}_{index + 1}", clip, found, title, index, pixel, words)
    return written


def _draw_score(
    loaded: Predictor,
    video: Path,
    folder: Path,
    method: str,
    layer: str | None,
    target: str | None,
    costs: bool,
) -> list[Path]:
    """Draws the map of a method in `explain.METHODS` for a class, by default the predicted one."""
    if target is not None:
        one_of("target", target, loaded.class_names)
    clip = read_clip(loaded, video)
    with torch.no_grad():
        logits = loaded.model(clip.video)[0]
    label = loaded.class_names.index(target) if target else int(logits.argmax())
    options = {}
    if method in explain.OF_A_LAYER:
        options["layer"] = layer or info(loaded.model).features
    found = score_map(loaded, clip, label, method, **options)
    where = "".join(f" at {layer}" for layer in options.values())
    title = f"{video.name}: {answer_text(loaded, logits, label)}\n"
    title += f"{method}{where} of {loaded.config.model.name}"
    title += cost_of(loaded.model, clip.video, found, label, loaded.scores) if costs else ""
    name = safe_file_name(loaded.class_names[label])
    stem = f"{output_folder(folder) / safe_file_name(video.stem)}_{method}_{name}"
    return _save(stem, clip, found, title)


def _draw_swap(
    loaded: Predictor, videos: tuple[Path, Path], folder: Path, layer: str | None
) -> list[Path]:
    """Draws each level of Learn to pay attention in two videos: the weights with the video's own
    global vector, and below them the weights with the other one."""
    clips = [read_clip(loaded, video) for video in videos]
    own, swapped = swap_global_vectors(loaded.model, clips[0].video, clips[1].video)
    names = list(own.maps) if layer is None else [one_of("layer", layer, own.maps)]
    output_folder(folder)
    written = []
    for index, (video, clip) in enumerate(zip(videos, clips, strict=True)):
        other = videos[1 - index]
        answers = [answer_text(loaded, seen.logits[index]) for seen in (own, swapped)]
        headings = (
            f"with its own global vector: {answers[0]}",
            f"with the global vector of {other.name}: {answers[1]}",
        )
        for name in names:
            pair = [seen.maps[name].weights[index] for seen in (own, swapped)]
            found = GateMap("pooling", torch.cat(pair)[None], normalized=own.maps[name].normalized)
            title = f"{video.name}: {answers[0]}\n{name} of {loaded.config.model.name}"
            stem = f"{safe_file_name(video.stem)}_{safe_file_name(name)}_swapped_with_"
            path = folder / f"{stem}{safe_file_name(other.stem)}.png"
            explain.write_png(path, clip.draw(found, title, headings=headings))
            show(path)
            written.append(path)
    return written


def _save(
    stem: str,
    clip: Clip,
    recorded: PairwiseMap | GateMap,
    title: str,
    query: int = 0,
    pixel: Query | None = None,
    words: str = "",
) -> list[Path]:
    """Writes and prints the sheet of a map, and its overlay if it has one."""
    written = [Path(f"{stem}.png")]
    image = clip.draw(recorded, title, query=query, pixel=pixel, words=words)
    explain.write_png(written[0], image)
    if isinstance(recorded, PairwiseMap) or recorded.kind in explain.SPATIAL:
        written.append(Path(f"{stem}.mp4"))
        with TemporaryDirectory() as temporary:
            path = Path(temporary) / "overlay.mp4"
            height, width = explain.write_overlay(
                path, clip.frames, recorded, query=query, pixel=pixel, input_size=clip.grid[1:]
            )
            write_whole(written[1], lambda file: file.write(path.read_bytes()))
        if width < clip.frames.shape[3]:
            full = f"{clip.frames.shape[3]} x {clip.frames.shape[2]}"
            show(f"the overlay is drawn at {width} x {height} pixels; the clip has {full}")
    for path in written:
        show(path)
    return written
