"""Draws the evidence for a prediction: a map of the class score, and the attention."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from videoattn import explain
from videoattn.attention.capture import capture
from videoattn.attention.maps import PairwiseMap
from videoattn.attention.record import record_attention, recordable_blocks
from videoattn.cli.clip import Clip, answer_text, map_owners, read_clip, score_map
from videoattn.files import output_folder
from videoattn.models import info
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
    sheets = {"why": _draw_score(predictor, clip, video, label)}
    if blocks := list(recordable_blocks(predictor.model)):
        sheets["attention"] = _draw_attention(predictor, clip, video, blocks, label)
    written = []
    for kind, image in sheets.items():
        path = stem.with_name(f"{stem.name}_{kind}.png")
        explain.write_png(path, image)
        written.append(path)
    return written


def draw_summary(predictor: Predictor, video: Path) -> Image.Image:
    """Draws the strongest attention in a video, or else the evidence for its most likely class."""
    clip = read_clip(predictor, video)
    with torch.no_grad():
        label = int(predictor.model(clip.video)[0].argmax())
    if blocks := list(recordable_blocks(predictor.model)):
        return _draw_attention(predictor, clip, video, blocks, label)
    return _draw_score(predictor, clip, video, label)


def _draw_score(predictor: Predictor, clip: Clip, video: Path, label: int) -> Image.Image:
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
    return clip.draw(found, f"{video.name}: {answer} in this view\n{caption}")


def _draw_attention(
    predictor: Predictor, clip: Clip, video: Path, blocks: Sequence[str], label: int
) -> Image.Image:
    block, change = _strongest(predictor, clip, blocks)
    class_name = predictor.class_names[label]
    chosen = explain.score_position(predictor.model, clip.video, label, class_name)
    with torch.no_grad(), record_attention(predictor.model, queries=[chosen.query]) as maps:
        predictor.model(clip.video)
    name = next(name for name, owner in map_owners(maps, blocks).items() if owner == block)
    title = f"{video.name}: {name}\nthe attention block that changes its input most{change}"
    if isinstance(maps[name], PairwiseMap):
        title += f", from the position that {chosen.title}"
    return clip.draw(maps[name], title)


def _strongest(predictor: Predictor, clip: Clip, blocks: Sequence[str]) -> tuple[str, str]:
    """Returns the block with the largest |output - input| / |input|, and this number as text.

    Without a block whose output has the shape of its input, it is the last one.
    """
    names = [name for name in blocks if name in dict(predictor.model.named_modules())]
    with (
        torch.no_grad(),
        capture(predictor.model, names, inputs=True, copy=True) as inputs,
        capture(predictor.model, names, copy=True) as outputs,
    ):
        predictor.model(clip.video)
    changes = {
        name: float((outputs[name] - inputs[name]).norm() / inputs[name].norm())
        for name in names
        if name in inputs and name in outputs and inputs[name].shape == outputs[name].shape
    }
    if not changes:
        return blocks[-1], ""
    best = max(changes, key=lambda name: changes[name])
    return best, f", by {100 * changes[best]:.0f} %"
