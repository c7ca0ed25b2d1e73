"""Draws the evidence for a prediction: maps of the class score, the attention, and attention with
the global vector of another video."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from videoattn import explain
from videoattn.attention.maps import GateMap, PairwiseMap
from videoattn.attention.record import recordable_blocks
from videoattn.attention.swap import swap_global_vectors
from videoattn.cli.clip import Clip, answer_text, forward, map_owners, read_clip
from videoattn.errors import one_of
from videoattn.explain.faithful.score import cost_of
from videoattn.files import output_folder, safe_file_name
from videoattn.models import info
from videoattn.recipe.console import show
from videoattn.recipe.initial import relative_changes
from videoattn.recipe.run import Predictor

CAM = "hires_cam"
EXACT = 1e-3
"""HiResCAM is exact if its sum differs from the score without the bias by at most this share."""


def draw_reasons(predictor: Predictor, video: Path, label: int, stem: Path) -> list[Path]:
    """Draws contact sheets of the center view of a video, and returns the written files.

    The first shows HiResCAM, which sums to the class score if the head is linear after a mean; the
    caption states whether the sum is exact. If the network has attention, the second shows the
    block that changes its input most.
    """
    output_folder(stem.parent)
    clip = read_clip(predictor, video)
    written = []
    for kind, draw in (("why", _score_sheet), ("attention", _attention_sheet)):
        if (image := draw(predictor, clip, label)) is not None:
            written.append(stem.with_name(f"{stem.name}_{kind}.png"))
            explain.write_png(written[-1], image)
    return written


def draw_summary(predictor: Predictor, video: Path) -> Image.Image:
    """Draws the strongest attention in a video, or else the evidence for its most likely class."""
    clip = read_clip(predictor, video)
    with torch.no_grad():
        label = int(predictor.model(clip.video)[0].argmax())
    attention = _attention_sheet(predictor, clip, label)
    return _score_sheet(predictor, clip, label) if attention is None else attention


def _score_sheet(predictor: Predictor, clip: Clip, label: int) -> Image.Image:
    model, found = predictor.model, score_map(predictor, clip, label)
    with torch.no_grad():
        logits = model(clip.video)[0]
    bias = getattr(model.get_submodule(info(model).classifier), "bias", None)
    score = float(logits[label]) - (0.0 if bias is None else float(bias.detach()[label]))
    total = float(found.weights.sum())
    caption = f"HiResCAM, exact: its sum is the score without the bias, {score:.2f}"
    if abs(total - score) > EXACT * max(1.0, abs(score)):
        caption = f"HiResCAM, not exact: its sum is {total:.2f}, not {score:.2f}, the score"
    answer = answer_text(predictor, logits, label)
    return clip.draw(found, f"{clip.name}: {answer} in this view\n{caption}")


def _attention_sheet(predictor: Predictor, clip: Clip, label: int) -> Image.Image | None:
    """Draws the block with the largest |output - input| / |input|, or else the last one; returns
    None without attention."""
    model, blocks = predictor.model, list(recordable_blocks(predictor.model))
    if not blocks:
        return None
    changes = relative_changes(model, blocks, clip.video)
    block = max(changes, key=lambda name: changes[name]) if changes else blocks[-1]
    chosen = explain.score_position(model, clip.video, label, predictor.class_names[label])
    maps, _ = forward(predictor, clip, [chosen.query])
    name = next(name for name, owner in map_owners(maps, blocks).items() if owner == block)
    title = f"{clip.name}: {name}\nthe attention block that changes its input most"
    if changes:
        title += f", by {100 * changes[block]:.0f} %"
    if isinstance(maps[name], PairwiseMap):
        title += f", from the position that {chosen.title}"
    return clip.draw(maps[name], title)


def draw_score(
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
    return clip.save(stem, found, title)


def score_map(
    loaded: Predictor, clip: Clip, label: int, method: str = CAM, **layer: str
) -> GateMap:
    """Returns the map of a method in `explain.METHODS` for the score of a class, on the CPU."""
    target = torch.tensor([label], device=clip.video.device)
    found = explain.METHODS[method](loaded.model, clip.video, target, **layer)
    return replace(found, weights=found.weights.float().cpu())


def draw_swap(
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
