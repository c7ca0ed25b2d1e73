"""Draws the evidence for a prediction: a map of the class score, and the attention."""

from pathlib import Path

import torch
from PIL import Image

from videoattn import explain
from videoattn.attention.maps import PairwiseMap
from videoattn.attention.record import recordable_blocks
from videoattn.cli.clip import Clip, answer_text, forward, map_owners, read_clip, score_map
from videoattn.files import output_folder
from videoattn.models import info
from videoattn.recipe.initial import relative_changes
from videoattn.recipe.run import Predictor

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
    for kind, draw in (("why", _draw_score), ("attention", _draw_attention)):
        if (image := draw(predictor, clip, label)) is not None:
            written.append(stem.with_name(f"{stem.name}_{kind}.png"))
            explain.write_png(written[-1], image)
    return written


def draw_summary(predictor: Predictor, video: Path) -> Image.Image:
    """Draws the strongest attention in a video, or else the evidence for its most likely class."""
    clip = read_clip(predictor, video)
    with torch.no_grad():
        label = int(predictor.model(clip.video)[0].argmax())
    attention = _draw_attention(predictor, clip, label)
    return _draw_score(predictor, clip, label) if attention is None else attention


def _draw_score(predictor: Predictor, clip: Clip, label: int) -> Image.Image:
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


def _draw_attention(predictor: Predictor, clip: Clip, label: int) -> Image.Image | None:
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
