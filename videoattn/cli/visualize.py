"""`videoattn visualize`: where does the network look, across the frames of a video?"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videoattn.attention.record import (
    GateMap,
    PairwiseMap,
    Query,
    record_attention,
    recordable_blocks,
)
from videoattn.data.dataset import sample_generator, sample_numbers
from videoattn.data.decode import DecodeError, Video, decode
from videoattn.data.transforms import Box, resize
from videoattn.engine.parallel import resolve_device
from videoattn.errors import did_you_mean
from videoattn.explain import (
    METHODS,
    OF_A_LAYER,
    PLACED,
    choose_queries,
    draw_field,
    draw_sheet,
    write_field_overlay,
    write_overlay,
)
from videoattn.explain.marks import PNG_LEVEL
from videoattn.models import info as info_of
from videoattn.recipe.console import console as out
from videoattn.recipe.data import clock_of, make_to_video, test_frames, test_transform
from videoattn.recipe.run import Predictor, load

CHOSEN = 2
"""Queries for each block when the user names none."""
MOST_BLOCKS = 4
"""A network with more has the last one of each stage drawn when the user names none."""


@dataclass(frozen=True)
class _Clip:
    """The clip that the network is shown: the centre view.

    shown: its frames as decoded, cut to the crop, (T, 3, H, W) uint8; pictures are drawn on them.
    video: what the network sees, (1, 3, T, h, w). box: the crop in the video's pixels.
    numbers: the frames' places in the video, which has `fps` frames a second.
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
    """Draws the maps of attention blocks: contact sheets (PNG), and overlays (MP4) of those that
    have a place in the frame; of a pairwise or local map one of each for every query.

    queries: "FRAME,X,Y", a frame number and a pixel of the video. Without any, each block's
        positions that receive the most attention are asked.
    layer: a block, one of its maps, or the beginning of such names (layer3); without it every
        block's, or in a network of many the last of each stage.

    Raises:
        ValueError: a query that is malformed or outside what the network sees; an unknown layer.
        DecodeError: the video cannot be decoded.
    """
    loaded = load(run, resolve_device(device))
    asked = [_parse(query) for query in queries]
    clip = _read_clip(loaded, video, asked[0][0] if asked else None)
    pixels = [_pixel(query, clip) for query in asked]  # (frame, y, x) of the crop
    height, width = clip.video.shape[3:]
    scale = (height / clip.shown.shape[2], width / clip.shown.shape[3])
    inputs = [(t, int(y * scale[0]), int(x * scale[1])) for t, y, x in pixels]

    maps, said = _look(loaded, clip, inputs, received=not asked)
    owners = _owners(maps, list(recordable_blocks(loaded.model)))
    names = _choose_maps(layer, owners)
    if asked and all(isinstance(maps[name], GateMap) for name in names):
        out.print("these maps have no query: --query has only chosen the clip", markup=False)
    folder = folder or loaded.folder / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in names:
        recorded = maps[name]
        block = owners[name]
        stem = f"{video.stem}_{block}{name.removeprefix(block).replace('.', '_', 1)}"
        title = f"{video.name}: {said}\n{name} of {loaded.config.model.name}"
        if isinstance(recorded, GateMap):
            written += _draw_field(folder / stem, clip, recorded, title)
            continue
        chosen: Sequence[Query | None] = pixels
        if not asked:
            size = (len(clip.numbers), height, width)
            found = choose_queries(recorded, size, count=CHOSEN)
            again = _look(loaded, clip, found)[0][name]
            assert isinstance(again, PairwiseMap)
            recorded, chosen = again, [None] * len(found)  # the query's cell's centre is marked
        for number, pixel in enumerate(chosen):
            written += _draw(folder / f"{stem}_{number + 1}", clip, recorded, number, pixel, title)
    for path in written:
        out.print(str(path), markup=False)
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
    """Draws what a class's score rests on: one of `explain.METHODS`, for networks with attention
    and without.

    layer: of the CAMs; the last stage unless given. target: a class; the one that the
        network names unless given.

    Raises:
        ValueError: an unknown method, layer or class; a network that the method is not for.
        DecodeError: the video cannot be decoded.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is not one of {', '.join(METHODS)}")
    if layer is not None and method not in OF_A_LAYER:
        raise ValueError(
            f"layer: {method} looks at the input; --layer is for {', '.join(OF_A_LAYER)}"
        )
    loaded = load(run, resolve_device(device))
    if target is not None and target not in loaded.class_names:
        hint = did_you_mean(target, loaded.class_names)
        raise ValueError(
            f"target: {target!r} is no class of {run}{hint}; it has {', '.join(loaded.class_names)}"
        )
    clip = _read_clip(loaded, video, None)
    with torch.no_grad():
        logits = loaded.model(clip.video)
    label = loaded.class_names.index(target) if target else int(logits.argmax())
    options = {"layer": layer or info_of(loaded.model).features} if method in OF_A_LAYER else {}
    labels = torch.tensor([label], device=logits.device)
    found = METHODS[method](loaded.model, clip.video, labels, **options)
    found = replace(found, weights=found.weights.float().cpu())
    share = 100 * float(logits.softmax(1)[0, label])
    name = loaded.class_names[label]
    place = "".join(f" at {layer}" for layer in options.values())
    folder = folder or loaded.folder / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{video.name}: {name}, {share:.0f} %\n{method}{place} of {loaded.config.model.name}"
    written = _draw_field(folder / f"{video.stem}_{method}_{name}", clip, found, title)
    for path in written:
        out.print(str(path), markup=False)
    return written


def _draw(
    stem: Path, clip: _Clip, recorded: PairwiseMap, query: int, pixel: Query | None, title: str
) -> list[Path]:
    sheet, overlay = Path(f"{stem}.png"), Path(f"{stem}.mp4")
    draw_sheet(
        clip.shown,
        recorded,
        title=title,
        query=query,
        pixel=pixel,
        origin=(clip.box.y0, clip.box.x0),
        frame_numbers=clip.numbers,
        frames_per_second=clip.fps,
    ).save(sheet, compress_level=PNG_LEVEL)
    write_overlay(overlay, clip.shown, recorded, query=query, pixel=pixel)
    return [sheet, overlay]


def _draw_field(stem: Path, clip: _Clip, recorded: GateMap, title: str) -> list[Path]:
    sheet, overlay = Path(f"{stem}.png"), Path(f"{stem}.mp4")
    seen = (clip.video.shape[3], clip.video.shape[4])
    draw_field(
        clip.shown,
        recorded,
        title=title,
        frame_numbers=clip.numbers,
        frames_per_second=clip.fps,
        input_size=seen,
    ).save(sheet, compress_level=PNG_LEVEL)
    if recorded.kind not in PLACED:
        return [sheet]
    write_field_overlay(overlay, clip.shown, recorded, input_size=seen)
    return [sheet, overlay]


def _look(
    loaded: Predictor, clip: _Clip, queries: Sequence[Query], *, received: bool = False
) -> tuple[dict[str, PairwiseMap | GateMap], str]:
    """The maps of every block, and the class that the network names. In float32."""
    with (
        torch.no_grad(),
        record_attention(loaded.model, queries=queries, received=received) as maps,
    ):
        probabilities = loaded.model(clip.video).softmax(1)[0]
    best = int(probabilities.argmax())
    return maps, f"{loaded.class_names[best]}, {100 * float(probabilities[best]):.0f} %"


def _read_clip(loaded: Predictor, path: Path, frame: int | None) -> _Clip:
    """Decodes only the frames of the clip."""
    with Video(path) as video:
        try:
            return _clip_of(loaded, video, video.num_frames, frame)
        except DecodeError as error:  # a damaged file lists more frames than decode
            if not error.num_frames:
                raise
            return _clip_of(loaded, video, error.num_frames, frame)


def _clip_of(loaded: Predictor, video: Video, num_frames: int, frame: int | None) -> _Clip:
    config = replace(loaded.config, test=replace(loaded.config.test, num_clips=1, num_crops=1))
    if frame is not None and not 0 <= frame < num_frames:
        raise ValueError(
            f"query: frame {frame} is not in {video.source}; it has frames 0 to {num_frames - 1}"
        )
    numbers = sample_numbers(
        test_frames(config), video, num_frames, video.fps, sample_generator(0, 0, 0),
        clock_of(config),
    )[0]  # fmt: skip
    if frame is not None and config.clip.sampling == "dense":
        numbers = _moved_to(numbers, frame, num_frames)
    frames = decode(video, numbers)
    transform = test_transform(config)
    box = transform.boxes(*frames.shape[2:])[0]
    shown = frames[..., box.y0 : box.y1, box.x0 : box.x1]
    seen = resize(shown, transform.crop)[None]
    device = next(loaded.model.parameters()).device
    return _Clip(
        shown=shown,
        video=make_to_video(config.clip, device)(seen),
        box=box,
        numbers=numbers.tolist(),
        fps=video.fps,
    )


def _moved_to(numbers: np.ndarray, frame: int, num_frames: int) -> np.ndarray:
    """The clip, moved so that its middle is the frame, as far as the video's ends allow."""
    shift = frame - numbers[len(numbers) // 2]
    shift = min(max(shift, -numbers.min()), num_frames - 1 - numbers.max())
    return numbers + shift


def _parse(query: str) -> tuple[int, int, int]:
    try:
        frame, x, y = (int(part) for part in query.split(","))
    except ValueError as error:
        raise ValueError(
            f"query {query!r} is not FRAME,X,Y: a frame number and a pixel, such as 40,160,90"
        ) from error
    return frame, x, y


def _pixel(query: tuple[int, int, int], clip: _Clip) -> Query:
    """(FRAME, X, Y) of the video -> (frame, y, x) of the clip's crop."""
    frame, x, y = query
    distances = [abs(number - frame) for number in clip.numbers]
    nearest = distances.index(min(distances))
    gaps = np.diff(np.sort(np.unique(clip.numbers)))
    if distances[nearest] > (gaps.max() if len(gaps) else 0):
        raise ValueError(
            f"query: frame {frame} is not in the clip that the network is shown, frames "
            f"{min(clip.numbers)} to {max(clip.numbers)}; ask for it in a call of its own"
        )
    box = clip.box
    if not (box.x0 <= x < box.x1 and box.y0 <= y < box.y1):
        raise ValueError(
            f"query: pixel ({x}, {y}) is outside the centre crop that the network sees; "
            f"x must be {box.x0} to {box.x1 - 1}, y {box.y0} to {box.y1 - 1}"
        )
    return nearest, y - box.y0, x - box.x0


def _owners(maps: Mapping[str, object], blocks: Sequence[str]) -> dict[str, str]:
    """For each map its block: the one of the longest name that the map's begins with."""
    return {
        name: max(
            (block for block in blocks if name == block or name.startswith(f"{block}.")), key=len
        )
        for name in maps
    }


def _choose_maps(layer: str | None, owners: Mapping[str, str]) -> list[str]:
    """The names of the maps to draw, and a word on those that are left out."""
    blocks = list(dict.fromkeys(owners.values()))
    if layer is not None:
        whole = re.compile(re.escape(layer) + r"(?!(?<=\d)\d)")  # layer1 is not layer10
        chosen = [name for name in owners if whole.match(name)]
        if not chosen:
            raise ValueError(
                f"layer {layer!r} has no attention map; choose from {', '.join(blocks)}"
            )
        return chosen
    drawn = blocks
    if len(blocks) > MOST_BLOCKS:
        last = {_stage(block): block for block in blocks}
        drawn = list(last.values())[-MOST_BLOCKS:]
        out.print(
            f"{len(drawn)} of {len(blocks)} attention blocks are drawn, the last of each stage; "
            "for others give --layer a name, or the beginning of some (--layer "
            f"{_stage(blocks[0])}): {', '.join(blocks)}",
            markup=False,
        )
    return [name for name, block in owners.items() if block in drawn]


def _stage(block: str) -> str:
    """layer2.1.bn2.cbam is in layer2: what stands before the first number of a list of blocks."""
    return re.split(r"\.(?=\d)", block)[0]
