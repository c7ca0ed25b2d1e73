"""Compares the maps of a demo run with the known motion of new clips."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from videoattn.attention.maps import PairwiseMap
from videoattn.attention.record import record_attention, recordable_blocks
from videoattn.cli.clip import Clip, read_clip
from videoattn.cli.env import machine
from videoattn.cli.faithful import Chosen
from videoattn.cli.faithful_report import Results
from videoattn.data.synthetic import MOTIONS, DemoClip, demo_clip, encode_clip
from videoattn.explain.faithful.statistics import bootstrap
from videoattn.explain.truth import place_scores, rival_scores, time_scores, tracking
from videoattn.files import write_text
from videoattn.recipe.console import markdown_table, show

FIRST_NUMBER = 100_000
"""Clips from this number on are in no training or test set of the demo."""
WINDOW = (0.35, 0.65)  # the part of a clip in which the object moves
SCORES = ("pointing", "mass", "lift", "distractors", "time", "right_object", "tracking", "staying")
CHANCES = {"mass": "area", "distractors": "distractors_area"}


def score_known_motion(chosen: Chosen) -> None:
    """Scores maps of new demo clips, and writes known_motion.json and known_motion.md.

    Raises:
        ValueError: If the network does not know the demo's classes.
    """
    missing = [name for name in MOTIONS if name not in chosen.predictor.class_names]
    if missing:
        raise ValueError(
            f"--known-motion: the network does not know {missing[0]!r}, a class of the demo; use a "
            "run of `videoattn demo`"
        )
    results = Results(
        chosen.folder / "known_motion.json", chosen.settings(window=list(WINDOW), machine=machine())
    )
    for number in range(chosen.num_videos):
        if number not in results.done:
            results.add(number, _score(chosen, number))
    with results.as_tables() as rows:
        text = f"# Known motion\n\n{results.header(right=sum(row['right'] for row in rows))}\n"
        text += markdown_table(
            ("map", *SCORES),
            [
                (name, *(_cell([row["maps"][name] for row in rows], score) for score in SCORES))
                for name in rows[0]["maps"]
            ],
        )
    path = results.path.with_suffix(".md")
    write_text(path, text)
    show(results.path)
    show(path)


def _cell(rows: list[dict[str, float]], score: str) -> str:
    chance = CHANCES.get(score, f"{score}_chance")
    values = [row[score] for row in rows if score in row]
    if not values:
        return "-"
    text = str(bootstrap(torch.tensor(values).double()))
    chances = [row[chance] for row in rows if chance in row]
    return text + (f", chance {sum(chances) / len(chances):.2f}" if chances else "")


def _score(chosen: Chosen, number: int) -> dict[str, Any]:
    """Scores three clips of a motion: as in the demo, in `WINDOW` only, with a second object."""
    names = list(MOTIONS)[number % len(MOTIONS) :] + list(MOTIONS)
    motion = names[0]
    rival = next(name for name in names if MOTIONS[name][0] != MOTIONS[motion][0])
    scores: dict[str, dict[str, float]] = {}
    kinds: list[dict[str, Any]] = [{}, {"motion_window": WINDOW}, {"second": rival}]
    for kind in kinds:
        made = demo_clip(
            motion, seed=chosen.seed, split="test", number=FIRST_NUMBER + number,
            with_mask=True, **kind,
        )  # fmt: skip
        clip = _read(chosen, made)
        with torch.no_grad():
            target = int(chosen.predictor.model(clip.video)[0].argmax())
        mask, others = (_as_seen(masks, clip) for masks in (made.mask, made.distractors))
        for name, field in chosen.fields(clip.video, target).items():
            found = scores.setdefault(name, {})
            if "second" in kind:
                found |= rival_scores(field, mask, others[-1])
            elif kind:
                share = torch.tensor(clip.numbers) / (len(made.frames) - 1)
                moving = (share >= WINDOW[0]) & (share <= WINDOW[1])
                found |= time_scores(field, moving.float())
            else:
                found |= place_scores(field, mask, others)
        if not kind:
            right = chosen.predictor.class_names[target] == motion
            for name, following in _follow(chosen, clip, mask).items():
                scores[name] |= following
    return {"right": right, "motion": motion, "maps": scores}


def _read(chosen: Chosen, made: DemoClip) -> Clip:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        encode_clip(path, made)
        return read_clip(chosen.predictor, path)


def _as_seen(masks: Tensor | None, clip: Clip) -> Tensor:
    """Returns the frames and the crop of a clip from masks (..., T, H, W) of the whole video."""
    assert masks is not None
    box = clip.box
    return masks[..., clip.numbers, box.y0 : box.y1, box.x0 : box.x1]


def _follow(chosen: Chosen, clip: Clip, mask: Tensor) -> dict[str, dict[str, float]]:
    model = chosen.predictor.model
    if not recordable_blocks(model):
        return {}
    with torch.no_grad(), record_attention(model, queries=(), factors="instead") as maps:
        model(clip.video)
    pairwise = {n: m for n, m in maps.items() if n in chosen.maps and isinstance(m, PairwiseMap)}
    followed = {name: tracking(found, mask) for name, found in pairwise.items()}
    return {name: scores for name, scores in followed.items() if scores is not None}
