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
from videoattn.cli.arguments import Costs, Device, Run
from videoattn.cli.clip import (
    Clip,
    choose_maps,
    map_owners,
    parse_query,
    read_clip,
    record_clip,
    score_map,
)
from videoattn.cli.explore import EXPLORER
from videoattn.cli.swap import Swap, visualize_swap
from videoattn.engine.parallel import resolve_device
from videoattn.errors import one_of
from videoattn.explain.faithful.score import cost_of
from videoattn.files import output_folder, safe_file_name, write_whole
from videoattn.models import info
from videoattn.recipe.console import show
from videoattn.recipe.run import load

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
) -> None:
    """Draw where a network looks, across the frames of a video.

    Writes contact sheets (PNG) and overlays (MP4).
    """
    if swap is not None:
        if query or method or target or score:
            raise ValueError("--swap draws a head; leave out --query, --method, --target, --score")
        visualize_swap(run, (video, swap), layer=layer, folder=output, device=device)
        return
    if method is None:
        if target is not None:
            raise ValueError("--target needs a --method, such as --method grad_cam")
        queries = query or ()
        visualize(
            run, video, queries=queries, layer=layer, folder=output, costs=score, device=device
        )
        return
    if query:
        raise ValueError(f"{method} has no query; leave out --query, or --method")
    visualize_score(
        run,
        video,
        method=method,
        layer=layer,
        target=target,
        folder=output,
        costs=score,
        device=device,
    )


def visualize(
    run: Path,
    video: Path,
    *,
    queries: Sequence[str] = (),
    layer: str | None = None,
    folder: Path | None = None,
    costs: bool = False,
    device: str = "auto",
) -> list[Path]:
    """Draws the maps of attention blocks, and returns the written files.

    A map gets a contact sheet (PNG), and an overlay (MP4) if it has positions in the frame;
    pairwise and local maps get both for every query.

    Args:
        queries: "FRAME,X,Y", a frame number and a pixel of the video. Default: the position that
            adds most to the score of the predicted class, and the one with the most motion.
        layer: A block, one of its maps, or a prefix of such names ("layer3"). Default: every
            block, or the last block of each stage if there are many.
        costs: Add what hiding the top tenth of each map costs.
    """
    loaded = load(run, resolve_device(device))
    positions = [parse_query(query) for query in queries]
    clip = read_clip(loaded, video, positions[0][0] if positions else None)
    pixels = [clip.pixel(position) for position in positions]
    asked = [clip.to_input(pixel) for pixel in pixels] if pixels else None
    recorded = record_clip(loaded, video, clip, queries=asked, costs=costs)
    # A map whose queries are all learned tokens has no query position to draw.
    placed = [name for name, m in recorded.maps.items() if isinstance(m, GateMap) or all(m.grid_q)]
    owners = map_owners(dict.fromkeys(placed), list(recordable_blocks(loaded.model)))
    names = choose_maps(layer, owners)
    if pixels and all(isinstance(recorded.maps[name], GateMap) for name in names):
        show("these maps have no query; --query only selected the clip")
    folder = output_folder(folder or loaded.folder / "pictures")
    name, probability = recorded.about["classes"][0]
    written: list[Path] = []
    for full in names:
        block = owners[full]
        short = safe_file_name(block + full.removeprefix(block).replace(".", "_", 1))
        stem = f"{folder / safe_file_name(video.stem)}_{short}"
        title = f"{video.name}: {name}, {100 * probability:.0f} %\n{full} of "
        title += f"{loaded.config.model.name}{recorded.about['costs'].get(full, '')}"
        written += _draw(stem, title, full, clip, recorded, pixels)
    page = loaded.folder / EXPLORER
    how = page if page.exists() else f"videoattn explore {run} {video}"
    show(f"every other query, in a page to click: {how}")
    return written


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


def visualize_score(
    run: Path,
    video: Path,
    *,
    method: str,
    layer: str | None = None,
    target: str | None = None,
    folder: Path | None = None,
    costs: bool = False,
    device: str = "auto",
) -> list[Path]:
    """Draws a map that explains the score of a class, and returns the written files.

    Works for networks with and without attention.

    Args:
        method: A name in `explain.METHODS`.
        layer: The layer of a CAM. Default: the last stage.
        target: A class. Default: the predicted class.
        costs: Add what hiding the top tenth of the map costs.

    Raises:
        ValueError: If a name is unknown, or the method does not apply to the network.
    """
    one_of("method", method, explain.METHODS)
    if layer is not None and method not in explain.OF_A_LAYER:
        raise ValueError(
            f"layer: {method} explains the input; only {', '.join(explain.OF_A_LAYER)} take --layer"
        )
    loaded = load(run, resolve_device(device))
    if target is not None:
        one_of("target", target, loaded.class_names)
    clip = read_clip(loaded, video, None)
    with torch.no_grad():
        logits = loaded.model(clip.video)
    label = loaded.class_names.index(target) if target else int(logits.argmax())
    options = {}
    if method in explain.OF_A_LAYER:
        options["layer"] = layer or info(loaded.model).features
    found = score_map(loaded, clip, label, method, **options)
    percent = 100 * float(loaded.scores(logits)[0, label])
    name = loaded.class_names[label]
    where = "".join(f" at {layer}" for layer in options.values())
    title = f"{video.name}: {name}, {percent:.0f} %\n{method}{where} of {loaded.config.model.name}"
    title += cost_of(loaded.model, clip.video, found, label, loaded.scores) if costs else ""
    folder = output_folder(folder or loaded.folder / "pictures")
    stem = f"{folder / safe_file_name(video.stem)}_{method}_{safe_file_name(name)}"
    return _save(stem, clip, found, title)


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
