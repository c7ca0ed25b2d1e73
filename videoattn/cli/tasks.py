"""`videoattn tasks`: writes diagnostic tasks, and compares the maps of a network with the truth."""

import json
import os
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from videoattn.attention.maps import PairwiseMap
from videoattn.attention.record import record_attention, recordable_blocks
from videoattn.cli.arguments import Device, Overrides, Recipe, Run
from videoattn.cli.clip import read_clip
from videoattn.data.tasks.clips import TASKS
from videoattn.data.tasks.files import read_truth, write_task
from videoattn.engine.parallel import resolve_device
from videoattn.engine.progress import Display
from videoattn.errors import one_of
from videoattn.explain.truth import mass, pointing, pointing_chance
from videoattn.files import require_empty, write_text
from videoattn.models import info
from videoattn.models.extent import receptive_field
from videoattn.recipe.config import AttentionConfig
from videoattn.recipe.console import show
from videoattn.recipe.load import load
from videoattn.recipe.memory import remembered_data
from videoattn.recipe.model import make_model
from videoattn.recipe.run import Predictor
from videoattn.recipe.run import load as load_run

OPTIONS = {"match": "identities", "match_unmarked": "identities", "track": "dots"}
"""Task -> the option that makes it harder."""
TRUTH = "test.npz"


def write(
    name: Annotated[str, typer.Argument(help=f"The task: {', '.join(TASKS)}.")],
    folder: Annotated[Path, typer.Argument(help="A new folder for the clips and their truth.")],
    identities: Annotated[
        int | None, typer.Option(help="match: the number of different glyphs, 4 to 48; 8 if unset.")
    ] = None,
    dots: Annotated[
        int | None, typer.Option(help="track: the number of dots, 2, 4 or 8; 4 if unset.")
    ] = None,
    train: Annotated[int, typer.Option(help="Number of training clips.")] = 2000,
    test: Annotated[int, typer.Option(help="Number of test clips.")] = 500,
    seed: Annotated[int, typer.Option(help="Another seed draws other clips.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Number of threads.")] = os.cpu_count() or 1,
) -> None:
    """Write the clips of a task, and masks of what a network has to find.

    FOLDER/train and FOLDER/test have a folder of H.264 clips per class; FOLDER/train.npz and
    FOLDER/test.npz have the masks of the evidence and of the distractors, and the pixel to ask
    from. The recipes configs/task_NAME.yaml read such a folder (data.root=FOLDER).
    """
    one_of("NAME", name, TASKS)
    given = {"identities": identities, "dots": dots}
    options = {key: value for key, value in given.items() if value is not None}
    for option in options:
        if OPTIONS.get(name) != option:
            users = " and ".join(task for task, used in OPTIONS.items() if used == option)
            raise ValueError(f"--{option} is an option of {users}; {name} does not have it")
    require_empty(folder)
    total, done = train + test, 0
    with Display() as display:

        def count(path: Path) -> None:
            nonlocal done
            done += 1
            display.update(f"writing clips: {done:,} of {total:,}", done=done, total=total)

        write_task(
            name,
            folder,
            num_train=train,
            num_test=test,
            seed=seed,
            num_threads=workers,
            on_clip=count,
            **options,
        )
    show(
        f"{folder}: {train:,} training clips and {test:,} test clips of {len(TASKS[name])} classes"
    )


def truth(
    run: Run,
    data: Annotated[
        Path | None, typer.Option(help="The folder of the task; the run's own if not given.")
    ] = None,
    videos: Annotated[int, typer.Option(min=1, help="Number of test clips, spread evenly.")] = 100,
    device: Device = "auto",
) -> None:
    """Compare the pairwise maps of a network with the ground truth of a task.

    For the query of each test clip: the share of its row on the evidence (mass) and on the
    distractors, beside their shares of the clip, and how often the highest cell meets the evidence
    (pointing), beside chance. Correctly and wrongly classified clips are separate rows. Also writes
    RUN/truth.json.
    """
    predictor = load_run(run, resolve_device(device), data=remembered_data(run))
    if data is None and not predictor.config.data.root:
        raise ValueError(f"{run}: the folder of its task is unknown; pass it as --data")
    root = data or Path(predictor.config.data.root)
    if not has_truth(root):
        raise ValueError(f"{root} has no {TRUTH}; need a folder of `videoattn tasks write`")
    table = compare_with_truth(predictor, root, videos=videos)
    if not table:
        raise ValueError(
            f"{run} has no pairwise map, and the truth is about queries; choose a run with "
            "non_local, cross_layer, sagan, similarity or stand_alone"
        )
    write_text(predictor.folder / "truth.json", json.dumps(table, indent=1))
    for key, row in table.items():
        show(
            f"{key} ({row['clips']} clips): evidence {100 * row['mass']:.1f} % "
            f"(area {100 * row['area']:.1f} %), distractors {100 * row['distractor_mass']:.1f} % "
            f"({100 * row['distractor_area']:.1f} %), pointing {100 * row['pointing']:.1f} % "
            f"(chance {100 * row['chance']:.1f} %)"
        )


def has_truth(root: Path) -> bool:
    return (root / TRUTH).is_file()


def compare_with_truth(
    predictor: Predictor, root: Path, *, videos: int = 100, kind: str | None = None
) -> dict[str, dict[str, float | int]]:
    """Returns the mean scores of each pairwise map over test clips, spread evenly.

    The keys are "MAP, correct" and "MAP, wrong", or "MAP, KIND" for all clips. A network without a
    pairwise map has none.

    Raises:
        ValueError: If the truth in the folder of the task is damaged.
    """
    known = read_truth(root / TRUTH)
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    if not recordable_blocks(predictor.model):
        return {}
    step = max(len(known.paths) // videos, 1)
    for path, query in list(zip(known.paths, known.queries.tolist(), strict=True))[::step][:videos]:
        clip = read_clip(predictor, root / "test" / path)
        frame, y, x = query
        position = clip.to_input(clip.pixel((frame, x, y)))
        with torch.no_grad(), record_attention(predictor.model, queries=[position]) as maps:
            label = int(predictor.model(clip.video).argmax())
        answer = "correct" if predictor.class_names[label] == path.split("/")[0] else "wrong"
        for name, found in maps.items():
            if isinstance(found, PairwiseMap):
                scored = _compare(found.weights[0, 0], known.masks(path))
                rows[f"{name}, {kind or answer}"].append(scored)
    return {
        key: {"clips": len(scores)}
        | {name: statistics.fmean(row[name] for row in scores) for name in scores[0]}
        for key, scores in sorted(rows.items())
    }


def field(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print the receptive field of each stage of a recipe's network, without its attention.

    A position of a stage with fewer frames than a task's gap cannot relate the two ends of the gap.
    """
    config = load(recipe, ["data.root=x", *(overrides or ())])
    plain = replace(config.model, attention=AttentionConfig(), weights=None)
    model = make_model(plain, num_classes=2)
    size = config.clip.num_frames, config.clip.height, config.clip.width
    for stage in info(model).stages:
        frames, height, width = receptive_field(model, size, stage)
        show(f"{stage}: {frames} of {size[0]} frames, {height} x {width} of {size[1]} x {size[2]}")


def _compare(row: Tensor, masks: Tensor) -> dict[str, float]:
    evidence, distractors = masks.double()
    frames, height, width = row.shape
    return {
        "mass": float(mass(row, evidence)),
        "area": float(evidence.mean()),
        "distractor_mass": float(mass(row, distractors)),
        "distractor_area": float(distractors.mean()),
        "pointing": float(pointing(row, evidence)),
        "chance": float(pointing_chance(evidence, (frames, height, width))),
    }
