"""`videoattn demo`: generates clips, trains two networks and draws attention, in minutes."""

import time
from itertools import count, product
from pathlib import Path
from typing import Annotated

import typer

from videoattn import explain
from videoattn.cli.arguments import Device
from videoattn.cli.clip import forward, read_clip
from videoattn.cli.explore import EXPLORER
from videoattn.cli.explore import command as explore
from videoattn.cli.test import command as evaluate_run
from videoattn.cli.visualize import command as visualize
from videoattn.data.synthetic import MOTIONS, object_centers, write_demo_clips
from videoattn.engine.evaluate import Evaluation
from videoattn.engine.progress import Display
from videoattn.recipe.console import console, show
from videoattn.recipe.experiment import train
from videoattn.recipe.load import load
from videoattn.recipe.run import load as load_run

RECIPE = "demo"
NUM_TRAIN, NUM_TEST = 80, 25
"""Clips per class."""
BLOCK = "layer2.1_non_local"
DRAWN = ("moves_left", "turns_clockwise")
MOVES = ("moves_down", "moves_left", "moves_right", "moves_up")
EXPECTED = 0.95
"""The video accuracy that every working installation reaches."""


def command(
    folder: Annotated[Path, typer.Argument(help="Folder for clips, runs and pictures.")] = Path(
        "runs/demo"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Erase the runs of an earlier demo in the folder.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Generate clips, train on them, and draw the attention.

    The classes differ in motion only. A second network is trained on still frames, for comparison.
    """
    started = time.monotonic()
    clips, moving, still = folder / "clips", folder / "moving", folder / "still"
    for run in (moving, still):
        if run.exists() and not overwrite:
            hint = "erase it with --overwrite, or choose another folder"
            raise ValueError(f"{run} holds a run of an earlier demo; {hint}")
    # Both networks are tested below, so that they need no validation.
    changes = [f"data.root={clips}", "train.validate_every=0"]
    load(RECIPE, changes)  # an error in the recipe comes before the clips are written
    _write_clips(clips)
    train(RECIPE, *changes, folder=moving, overwrite=overwrite, device=device)
    console.rule("the same recipe on still frames: what is possible without motion")
    changes.append("clip.still_frame=true")
    train(RECIPE, *changes, folder=still, overwrite=overwrite, device=device)

    console.rule("accuracy on the test clips")
    scores, baseline = (evaluate_run(run, device=device) for run in (moving, still))
    console.rule("where the network looks")
    pictures = folder / "pictures"
    videos = {motion: _first_correct(clips, motion, scores) for motion in DRAWN}
    for motion, video in videos.items():
        visualize(moving, video, output=pictures / motion, device=device)
    page = explore(moving, list(videos.values()), output=folder / EXPLORER, device=device)
    _draw_object(moving, clips, pictures / "demo.webp", device)
    console.rule(f"done in {(time.monotonic() - started) / 60:.1f} minutes")
    show(
        f"video accuracy {100 * scores.video_accuracy:.1f} %, on still frames "
        f"{100 * baseline.video_accuracy:.1f} % (chance: {100 / len(MOTIONS):.1f} %)"
    )
    show(f"pictures: {pictures}; a page to click: {page}")
    if scores.video_accuracy < EXPECTED:
        raise ValueError(
            f"the demo reached {100 * scores.video_accuracy:.1f} % video accuracy, and a working "
            f"installation reaches {100 * EXPECTED:.0f} %; please report it with {moving}"
        )


def _write_clips(folder: Path) -> None:
    total, done = len(MOTIONS) * (NUM_TRAIN + NUM_TEST), count(1)
    with Display() as display:
        write_demo_clips(
            folder,
            num_train_per_class=NUM_TRAIN,
            num_test_per_class=NUM_TEST,
            on_clip=lambda path: display.update("writing clips", done=next(done), total=total),
        )
    show(f"{folder}: {total} clips of {len(MOTIONS)} motions")


def _first_correct(clips: Path, motion: str, scores: Evaluation) -> Path:
    """Returns the first correctly classified test clip of the motion, or else the first."""
    label = sorted(MOTIONS).index(motion)
    videos = sorted((clips / "test" / motion).iterdir())
    correct = scores.probabilities.argmax(1)[scores.labels == label] == label
    return videos[int(correct.int().argmax())]


def _draw_object(run: Path, clips: Path, path: Path, device: str) -> None:
    """Draws where the center of a moving object attends, as an animated WebP.

    Draws the test clip whose attention is spread most over the frames; in most clips, nearly all of
    it falls on the first or the last frames.
    """
    predictor = load_run(run, device)
    drawings = []
    for motion, number in product(MOVES, range(NUM_TEST)):
        clip = read_clip(predictor, clips / "test" / motion / f"{number:04d}.mp4")
        frame = clip.numbers[len(clip.numbers) // 2]
        x, y = object_centers(motion, seed=0, split="test", number=number)[frame].tolist()
        pixel = clip.pixel((frame, int(x), int(y)))
        attention = forward(predictor, clip, [clip.to_input(pixel)])[0][BLOCK]
        largest_share = float(attention.weights.sum(dim=(-2, -1)).max())
        drawings.append((largest_share, clip, attention, pixel))
    _, clip, attention, pixel = min(drawings, key=lambda drawing: drawing[0])
    explain.write_overlay(path, clip.frames, attention, pixel=pixel, short_side=336)
    show(path)
