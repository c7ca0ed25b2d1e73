"""Records the attention maps of a clip, for contact sheets, overlays and the explorer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from videoattn import explain
from videoattn.attention.archive import MapArchive
from videoattn.attention.maps import GateMap, PairwiseMap
from videoattn.attention.record import Maps, Query, record_attention, recordable_blocks
from videoattn.cli.clip import Clip
from videoattn.explain.explorer.pack import stage_of
from videoattn.explain.faithful.fields import field_of
from videoattn.explain.faithful.hide import Hider
from videoattn.explain.faithful.score import top_tenth
from videoattn.recipe.console import show
from videoattn.recipe.run import Predictor

NUM_CLASSES = 5
"""Classes with a CAM: the most probable ones, and the true one."""
CAM = "hires_cam"
LEAST_CELLS = 10
"""A map with fewer cells has no top tenth."""
MOST_BLOCKS = 4  # if a network has more, the last of each stage is drawn


def record_clip(
    loaded: Predictor,
    video: Path,
    clip: Clip,
    *,
    queries: Sequence[Query] | None = None,
    truth: str | None = None,
    cams: bool = False,
    costs: bool = False,
) -> MapArchive:
    """Returns the maps of every block, the frames, and facts about the clip.

    Args:
        queries: Positions in the network's input. Default: those that `chosen_queries` returns, if
            a block has a pairwise map.
        truth: The true class, if it is known.
        cams: Also record a CAM of the last stage for the most probable classes and the true one.
        costs: Also measure what hiding the top tenth of each map costs the predicted class, in 12
            forward passes for each map.
    """
    maps, logits = _forward(loaded, clip, queries or ())
    probabilities = loaded.scores(logits[None])[0]
    best = probabilities.argsort(descending=True).tolist()
    shown = best[:NUM_CLASSES]
    if truth is not None and loaded.class_names.index(truth) not in shown:
        shown.append(loaded.class_names.index(truth))
    pairwise = any(isinstance(found, PairwiseMap) for found in maps.values())
    chosen: list[explain.Chosen] = []
    if pairwise and queries is None:
        chosen = chosen_queries(loaded, clip, best[0], maps)
        large = [name for name, m in maps.items() if isinstance(m, PairwiseMap) and not m.is_whole]
        if large:  # their rows are too many; only these are recorded
            again, _ = _forward(loaded, clip, [one.query for one in chosen])
            maps |= {name: again[name] for name in large}
    if cams:
        maps |= _cams(loaded, clip, shown)
    about = {
        "video": video.name,
        "run": loaded.config.name,
        "network": loaded.config.model.name,
        "numbers": clip.numbers,
        "fps": clip.fps,
        "input": list(clip.grid),
        "classes": [(loaded.class_names[k], float(probabilities[k])) for k in shown],
        "truth": truth,
        "queries": [(*one.query, one.title, one.reason) for one in chosen],
        "costs": _costs(loaded, clip, maps, best[0]) if costs else {},
    }
    return MapArchive(maps, clip.frames, about)


def chosen_queries(loaded: Predictor, clip: Clip, label: int, maps: Maps) -> list[explain.Chosen]:
    """Returns the position that adds most to the score of a class, and the one with the most motion
    or, if nothing moves, the one that receives the most attention in the last block."""
    chosen = [explain.score_position(loaded.model, clip.video, label, loaded.class_names[label])]
    moving = explain.motion_position(clip.frames, clip.grid)
    if moving is not None:
        return [*chosen, moving]
    pairwise = [m for m in maps.values() if isinstance(m, PairwiseMap) and m.is_whole]
    for found in pairwise[-1:]:  # a still clip
        received = explain.summarize(found).received.view(1, *found.grid_k)
        (query,) = explain.choose_queries(replace(found, received=received), clip.grid, count=1)
        chosen.append(explain.Chosen(query, "most attention", "it receives the most attention"))
    return chosen


def _forward(loaded: Predictor, clip: Clip, queries: Sequence[Query]) -> tuple[Maps, torch.Tensor]:
    """Returns the maps and the logits. Maps that are products or have few rows are complete."""
    if not recordable_blocks(loaded.model):
        with torch.no_grad():
            return {}, loaded.model(clip.video)[0].float().cpu()
    with (
        torch.no_grad(),
        record_attention(loaded.model, queries=queries, factors="instead") as maps,
    ):
        logits = loaded.model(clip.video)[0]
    return maps, logits.float().cpu()


def _cams(loaded: Predictor, clip: Clip, labels: Sequence[int]) -> Maps:
    found: Maps = {}
    for label in labels:
        target = torch.tensor([label], device=clip.video.device)
        cam = explain.METHODS[CAM](loaded.model, clip.video, target)
        name = f"{CAM}/{loaded.class_names[label]}"
        found[name] = replace(cam, weights=cam.weights.float().cpu())
    return found


def cost_of(loaded: Predictor, clip: Clip, found: PairwiseMap | GateMap, label: int) -> str:
    """Returns "; hiding its top tenth costs 31 points, random 6", or "" if a map has no places."""
    field = field_of(found, clip.grid)
    if field is None or field.numel() < LEAST_CELLS:
        return ""
    grid = len(field), field.shape[1], field.shape[2]
    hider = Hider(loaded.model, clip.video, grid, label, probabilities=loaded.scores)
    return f"; {top_tenth(hider, field, torch.Generator().manual_seed(0))}"


def _costs(loaded: Predictor, clip: Clip, maps: Maps, label: int) -> dict[str, str]:
    """Returns the cost of each map; of CAMs, that of the predicted class."""
    cam = f"{CAM}/{loaded.class_names[label]}"
    names = {name: name for name in maps if not name.startswith(f"{CAM}/")}
    names |= {CAM: cam} if cam in maps else {}
    return {name: cost_of(loaded, clip, maps[full], label) for name, full in names.items()}


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
        last = {stage_of(block): block for block in blocks}
        drawn = list(last.values())[-MOST_BLOCKS:]
        note = (
            f"drawing {len(drawn)} of {len(blocks)} attention blocks, the last of each stage; for "
            f"others pass --layer with a name or a prefix (--layer {stage_of(blocks[0])}): "
        )
        show(note + ", ".join(blocks))
    return [name for name, block in owners.items() if block in drawn]
