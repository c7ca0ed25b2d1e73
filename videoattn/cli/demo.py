"""`videoattn demo`: clips, two trainings, and pictures of attention, in a few minutes."""

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from videoattn.cli.test import evaluate_run
from videoattn.cli.train import train
from videoattn.cli.visualize import visualize
from videoattn.data.synthetic import MOTIONS, write_demo_clips
from videoattn.engine.evaluate import Evaluation
from videoattn.recipe.console import console as out

RECIPE = Path("configs/demo.yaml")
NUM_TRAIN, NUM_TEST = 80, 25
"""Clips per class."""
EXPECTED = 0.95
"""Video accuracy below which something is wrong with the installation."""


def demo(folder: Path, *, device: str = "auto", recipe: Path = RECIPE) -> None:
    """Writes clips whose class only motion tells, trains on them and on still frames, draws.

    Raises:
        ValueError: no recipe here; or an accuracy that a sound installation exceeds.
    """
    started = time.monotonic()
    clips = folder / "clips"
    _write_clips(clips)
    # Both are tested below; a validation would only say the same before.
    changes = [f"data.root={clips}", "train.validate_every=0"]
    moving, still = folder / "moving", folder / "still"
    train(recipe, changes, folder=moving, overwrite=True, device=device)
    out.rule("the same recipe, every clip one repeated frame: what can be told without motion")
    train(recipe, [*changes, "clip.still_frame=true"], folder=still, overwrite=True, device=device)

    out.rule("accuracy on the test clips")
    scores = evaluate_run(moving, device=device)
    baseline = evaluate_run(still, device=device)
    out.rule("where the network looks")
    pictures = folder / "pictures"
    for motion in ("moves_left", "turns_clockwise"):
        video = _first_right(clips, motion, scores)
        visualize(moving, video, folder=pictures / motion, device=device)
    _conclude(scores, baseline, pictures, seconds=time.monotonic() - started)
    if scores.video_accuracy < EXPECTED:
        raise ValueError(
            f"the demo reached {100 * scores.video_accuracy:.1f} % video accuracy, a sound "
            f"installation at least {100 * EXPECTED:.0f} %; please report it with {moving}"
        )


def _write_clips(folder: Path) -> None:
    total = len(MOTIONS) * (NUM_TRAIN + NUM_TEST)
    console = Console(file=sys.stderr)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("writing clips", total=total)
        write_demo_clips(
            folder,
            num_train_per_class=NUM_TRAIN,
            num_test_per_class=NUM_TEST,
            on_clip=lambda path: progress.advance(task),
        )
    out.print(f"{folder}: {total} clips of {len(MOTIONS)} motions", markup=False)


def _first_right(clips: Path, motion: str, scores: Evaluation) -> Path:
    """The first test clip of the motion that the network names rightly, or the first of all."""
    label = sorted(MOTIONS).index(motion)
    videos = sorted((clips / "test" / motion).iterdir())
    right = scores.probabilities.argmax(1)[scores.labels == label] == label
    return videos[int(right.int().argmax())]


def _conclude(scores: Evaluation, baseline: Evaluation, pictures: Path, *, seconds: float) -> None:
    out.rule(f"done in {seconds / 60:.1f} minutes")
    lines = {
        "clip accuracy": f"{100 * scores.clip_accuracy:.1f} %",
        "video accuracy": f"{100 * scores.video_accuracy:.1f} %  ({scores.num_labelled} videos, "
        f"{scores.num_views} views each)",
        "still-frame baseline": f"{100 * baseline.video_accuracy:.1f} %  "
        f"(chance: {100 / len(MOTIONS):.1f} %)",
        "pictures": str(pictures),
    }
    for name, value in lines.items():
        out.print(f"{name:>22}  {value}", markup=False)
