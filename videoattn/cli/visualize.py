"""`videoattn visualize`: draws where a network looks, across the frames of a video."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from videoattn import explain
from videoattn.attention.record import (
    GateMap,
    PairwiseMap,
    Query,
    record_attention,
    recordable_blocks,
)
from videoattn.data.dataset import sample_generator, sample_numbers
from videoattn.data.decode import DecodeError, count_frames, decode
from videoattn.data.transforms import Box, resize
from videoattn.engine.parallel import resolve_device
from videoattn.errors import one_of
from videoattn.files import output_folder, safe_file_name, write_whole
from videoattn.models import info
from videoattn.recipe.console import console as out
from videoattn.recipe.data import clock_of, make_to_video, test_frames, test_transform
from videoattn.recipe.run import Predictor, load

NUM_QUERIES = 2  # per block, if the user names none
MOST_BLOCKS = 4  # if a network has more, the last of each stage is drawn


@dataclass(frozen=True)
class Clip:
    """The center view of a video.

    Args:
        shown: Decoded frames, cut to the crop, (T, 3, H, W) uint8. Pictures are drawn on them.
        video: The network's input, (1, 3, T, h, w).
        box: The crop in pixels of the video.
        numbers: The index of each frame in the video.
        fps: The frame rate of the video.
    """

    shown: Tensor
    video: Tensor
    box: Box
    numbers: list[int]
    fps: float


def visualize(
    run: Path,
    video: Path,
    *,
    queries: Sequence[str] = (),
    layer: str | None = None,
    folder: Path | None = None,
    device: str = "auto",
) -> list[Path]:
    """Draws the maps of attention blocks and returns the files that were written.

    A map gets a contact sheet (PNG), and an overlay (MP4) if it has positions in the frame;
    pairwise and local maps get both for every query.

    Args:
        queries: "FRAME,X,Y", a frame number and a pixel of the video; by default the positions
            that receive the most attention in each block.
        layer: A block, one of its maps, or a prefix of such names ("layer3"); by default every
            block, or the last block of each stage if there are many.
    """
    loaded = load(run, resolve_device(device))
    positions = [_parse(query) for query in queries]
    clip = _read_clip(loaded, video, positions[0][0] if positions else None)
    pixels = [_pixel(position, clip) for position in positions]
    (height, width), (h, w) = clip.shown.shape[2:], clip.video.shape[3:]
    inputs = [(t, int(y * (h / height)), int(x * (w / width))) for t, y, x in pixels]
    maps, answer = _record(loaded, clip, inputs, received=not pixels)
    owners = map_owners(maps, list(recordable_blocks(loaded.model)))
    names = choose_maps(layer, owners)
    if pixels and all(isinstance(maps[name], GateMap) for name in names):
        out.print("these maps have no query; --query only selected the clip", markup=False)
    folder = output_folder(folder or loaded.folder / "pictures")
    written: list[Path] = []
    for name in names:
        recorded, block = maps[name], owners[name]
        short = safe_file_name(block + name.removeprefix(block).replace(".", "_", 1))
        stem = f"{folder / safe_file_name(video.stem)}_{short}"
        title = f"{video.name}: {answer}\n{name} of {loaded.config.model.name}"
        if isinstance(recorded, GateMap):
            written += _save(stem, clip, recorded, title)
            continue
        chosen: Sequence[Query | None] = pixels
        if not pixels:
            found = explain.choose_queries(recorded, (len(clip.numbers), h, w), count=NUM_QUERIES)
            recorded = _record(loaded, clip, found)[0][name]
            chosen = [None] * len(found)  # the center of the query's cell is marked
        for index, pixel in enumerate(chosen):
            written += _save(f"{stem}_{index + 1}", clip, recorded, title, index, pixel)
    return written


def visualize_score(
    run: Path,
    video: Path,
    *,
    method: str,
    layer: str | None = None,
    target: str | None = None,
    folder: Path | None = None,
    device: str = "auto",
) -> list[Path]:
    """Draws what the score of a class depends on and returns the files that were written.

    Works for networks with and without attention.

    Args:
        method: A name in `explain.METHODS`.
        layer: The layer of a CAM; the last stage unless given.
        target: A class; the predicted one unless given.

    Raises:
        ValueError: If a name is unknown, or the method does not apply to the network.
    """
    one_of("method", method, explain.METHODS)
    if layer is not None and method not in explain.OF_A_LAYER:
        raise ValueError(
            f"layer: {method} explains the input; --layer is for {', '.join(explain.OF_A_LAYER)}"
        )
    loaded = load(run, resolve_device(device))
    if target is not None:
        one_of("target", target, loaded.class_names)
    clip = _read_clip(loaded, video, None)
    with torch.no_grad():
        logits = loaded.model(clip.video)
    label = loaded.class_names.index(target) if target else int(logits.argmax())
    options = (
        {"layer": layer or info(loaded.model).features} if method in explain.OF_A_LAYER else {}
    )
    labels = torch.tensor([label], device=logits.device)
    found = explain.METHODS[method](loaded.model, clip.video, labels, **options)
    found = replace(found, weights=found.weights.float().cpu())
    percent = 100 * float(logits.softmax(1)[0, label])
    name = loaded.class_names[label]
    where = "".join(f" at {layer}" for layer in options.values())
    title = f"{video.name}: {name}, {percent:.0f} %\n{method}{where} of {loaded.config.model.name}"
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
) -> list[Path]:
    """Writes and prints the sheet of a map, and its overlay if it has one."""
    labels = explain.label_frames(clip.numbers, clip.fps)
    size = (clip.video.shape[3], clip.video.shape[4])
    if isinstance(recorded, GateMap):
        image = explain.draw_gate(clip.shown, recorded, title=title, labels=labels, input_size=size)
    else:
        image = explain.draw_sheet(
            clip.shown,
            recorded,
            title=title,
            labels=labels,
            query=query,
            pixel=pixel,
            origin=(clip.box.y0, clip.box.x0),
        )
    written = [Path(f"{stem}.png")]
    write_whole(written[0], lambda file: image.save(file, "PNG", compress_level=explain.PNG_LEVEL))
    if isinstance(recorded, PairwiseMap) or recorded.kind in explain.SPATIAL:
        written.append(Path(f"{stem}.mp4"))
        with TemporaryDirectory() as temporary:
            path = Path(temporary) / "overlay.mp4"
            explain.write_overlay(
                path, clip.shown, recorded, query=query, pixel=pixel, input_size=size
            )
            write_whole(written[1], lambda file: file.write(path.read_bytes()))
    for path in written:
        out.print(str(path), markup=False)
    return written


def _record(
    loaded: Predictor, clip: Clip, queries: Sequence[Query], *, received: bool = False
) -> tuple[dict[str, PairwiseMap | GateMap], str]:
    """Returns the maps of every block, and the predicted class with its probability."""
    with (
        torch.no_grad(),
        record_attention(loaded.model, queries=queries, received=received) as maps,
    ):
        probabilities = loaded.model(clip.video).softmax(1)[0]
    best = int(probabilities.argmax())
    return maps, f"{loaded.class_names[best]}, {100 * float(probabilities[best]):.0f} %"


def _read_clip(
    loaded: Predictor, path: Path, frame: int | None, timing: tuple[int, float] | None = None
) -> Clip:
    """Reads the clip in the middle of a video, or around a frame.

    `timing` is the number of frames and the frame rate, taken from the file unless given.
    """
    config = replace(loaded.config, test=replace(loaded.config.test, num_clips=1, num_crops=1))
    num_frames, fps = timing or count_frames(path)
    if frame is not None and not 0 <= frame < num_frames:
        raise ValueError(
            f"query: frame {frame} is not in {path}; choose one of frames 0 to {num_frames - 1}"
        )
    generator = sample_generator(0, 0, 0)
    sampler, clock = test_frames(config), clock_of(config)
    numbers = sample_numbers(sampler, path, num_frames, fps, generator, clock)[0]
    if frame is not None and config.clip.sampling == "dense":
        shift = frame - numbers[len(numbers) // 2]  # the frame becomes the middle of the clip
        numbers = numbers + min(max(shift, -numbers.min()), num_frames - 1 - numbers.max())
    try:
        frames = decode(path, numbers)
    except DecodeError as error:
        if error.num_frames is None or error.num_frames >= num_frames:
            raise
        return _read_clip(loaded, path, frame, (error.num_frames, fps))  # a damaged file
    transform = test_transform(config)
    box = transform.boxes(frames.shape[2], frames.shape[3])[0]
    shown = frames[..., box.y0 : box.y1, box.x0 : box.x1]
    device = next(loaded.model.parameters()).device
    video = make_to_video(config.clip, device)(resize(shown, transform.crop)[None])
    return Clip(shown, video, box, numbers.tolist(), fps)


def _parse(query: str) -> tuple[int, int, int]:
    try:
        frame, x, y = (int(number) for number in query.split(","))
    except ValueError as error:
        raise ValueError(
            f"query {query!r} is not FRAME,X,Y: a frame number and a pixel, such as 40,160,90"
        ) from error
    return frame, x, y


def _pixel(query: tuple[int, int, int], clip: Clip) -> Query:
    """Converts (FRAME, X, Y) in the video to (frame, y, x) in the clip's crop."""
    frame, x, y = query
    distances = [abs(number - frame) for number in clip.numbers]
    nearest = distances.index(min(distances))
    gaps = np.diff(np.sort(np.unique(clip.numbers)))
    if distances[nearest] > (gaps.max() if len(gaps) else 0):
        raise ValueError(
            f"query: frame {frame} is not in the network's clip, frames {min(clip.numbers)} to "
            f"{max(clip.numbers)}; run the command again for this frame"
        )
    box = clip.box
    if not (box.x0 <= x < box.x1 and box.y0 <= y < box.y1):
        raise ValueError(
            f"query: pixel ({x}, {y}) is outside the center crop that the network sees; "
            f"x must be {box.x0} to {box.x1 - 1}, y {box.y0} to {box.y1 - 1}"
        )
    return nearest, y - box.y0, x - box.x0


def map_owners(maps: Mapping[str, object], blocks: Sequence[str]) -> dict[str, str]:
    """Returns the block of each map: the longest block name that the map's name starts with."""
    longest_first = sorted(blocks, key=len, reverse=True)
    return {
        name: next(block for block in longest_first if f"{name}.".startswith(f"{block}."))
        for name in maps
    }


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
        last = {_stage(block): block for block in blocks}
        drawn = list(last.values())[-MOST_BLOCKS:]
        note = (
            f"drawing {len(drawn)} of {len(blocks)} attention blocks, the last of each stage; for "
            f"others pass --layer with a name or a prefix (--layer {_stage(blocks[0])}): "
        )
        out.print(note + ", ".join(blocks), markup=False)
    return [name for name, block in owners.items() if block in drawn]


def _stage(block: str) -> str:
    """Returns the name before the first list index: "layer2" for "layer2.1.bn2.cbam"."""
    return re.split(r"\.(?=\d)", block)[0]
