"""`videoattn tasks`: writes diagnostic tasks, and compares the maps of a network with the truth."""

import json
import os
import re
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
from videoattn.cli.clip import map_owners, read_clip
from videoattn.cli.comparison import TRUTH_COLUMNS, truth_cells
from videoattn.data.tasks.clips import COLORS, GAPS, TASKS, task_classes
from videoattn.data.tasks.files import read_truth, write_task
from videoattn.engine.parallel import resolve_device
from videoattn.engine.progress import Display
from videoattn.errors import one_of
from videoattn.explain.faithful.knockout import answers_without
from videoattn.explain.truth import mass, pointing, pointing_chance
from videoattn.files import require_empty, write_text
from videoattn.models import info
from videoattn.models.extent import receptive_field
from videoattn.recipe.config import AttentionConfig
from videoattn.recipe.console import markdown_table, show
from videoattn.recipe.load import load
from videoattn.recipe.memory import remembered_data
from videoattn.recipe.model import make_model
from videoattn.recipe.run import Predictor
from videoattn.recipe.run import load as load_run

OPTIONS = {
    "identities": ("match", "match_unmarked", "cue"),
    "dots": ("track",),
    "gap": tuple(GAPS),
}
"""Option that makes a task harder -> the tasks that have it."""
TRUTH_FILE = "test.npz"


Identities = Annotated[
    int | None,
    typer.Option(help="match, cue: the number of different glyphs, 4 to 48; 8 if unset."),
]
Dots = Annotated[int | None, typer.Option(help="track: the number of dots, 2, 4 or 8; 4 if unset.")]
Gap = Annotated[
    int | None,
    typer.Option(
        metavar="FRAMES",
        help="match: the number of frames between the cue and the candidates, 1 to 42; 10 if "
        "unset; a clip has 6 frames more. track: between the mark and the colors, 1 to 12; 12 if "
        "unset; a clip has 4 frames more.",
    ),
]


def write(
    name: Annotated[str, typer.Argument(help=f"The task: {', '.join(TASKS)}.")],
    folder: Annotated[Path, typer.Argument(help="A new folder for the clips and their truth.")],
    identities: Identities = None,
    dots: Dots = None,
    gap: Gap = None,
    train: Annotated[int, typer.Option(help="Number of training clips.")] = 2000,
    test: Annotated[int, typer.Option(help="Number of test clips.")] = 500,
    seed: Annotated[int, typer.Option(help="Another seed draws other clips.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Number of threads.")] = os.cpu_count() or 1,
) -> None:
    """Write the clips of a task, and masks of what a network has to find.

    FOLDER/train and FOLDER/test have a folder of H.264 clips per class; FOLDER/train.npz and
    FOLDER/test.npz have the masks of the evidence and of the distractors, and the pixels to ask
    from. The recipes configs/task_NAME.yaml read such a folder (data.root=FOLDER).
    """
    one_of("NAME", name, TASKS)
    given = {"identities": identities, "dots": dots, "gap": gap}
    options = {key: value for key, value in given.items() if value is not None}
    for option in options:
        if name not in OPTIONS[option]:
            users = ", ".join(OPTIONS[option])
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
    num_classes = len(task_classes(name, identities or COLORS))
    show(f"{folder}: {train:,} training clips and {test:,} test clips of {num_classes} classes")


def truth(
    run: Run,
    data: Annotated[
        Path | None, typer.Option(help="The folder of the task; the run's own if not given.")
    ] = None,
    videos: Annotated[int, typer.Option(min=1, help="Number of test clips, spread evenly.")] = 100,
    device: Device = "auto",
) -> None:
    """Compare the pairwise maps of a network with the ground truth of a task.

    For the query of each test clip: the weight of its row on the evidence and on the distractors,
    beside their shares of the clip, and how often the highest cell meets the evidence, beside
    chance. Two controls: the weight on the evidence from wrong queries, such as the glyphs that do
    not equal the cue, and how many answers are right if the identity replaces the block. Correctly
    and wrongly classified clips are separate rows. Also writes RUN/truth.json, or
    RUN/truth-epoch-NNNN.json for a checkpoint that train.keep_epochs kept.
    """
    predictor = load_run(run, resolve_device(device), data=remembered_data(run))
    if data is None and not predictor.config.data.root:
        raise ValueError(f"{run}: the folder of its task is unknown; pass it as --data")
    root = data or Path(predictor.config.data.root)
    if not has_truth(root):
        raise ValueError(f"{root} has no {TRUTH_FILE}; need a folder of `videoattn tasks write`")
    table = compare_with_truth(predictor, root, videos=videos)
    if not table:
        raise ValueError(
            f"{run} has no pairwise map, and the truth is about queries; choose a run with "
            "non_local, cross_layer, sagan, similarity or stand_alone"
        )
    kept = re.fullmatch(r"checkpoint(-epoch-\d+)\.pt", predictor.checkpoint.name)
    path = predictor.folder / f"truth{kept[1] if kept else ''}.json"
    write_text(path, json.dumps(table, indent=1))
    cells = [(key, row["clips"], *truth_cells([row])) for key, row in table.items()]
    columns = ("block, answer", "clips", *TRUTH_COLUMNS.values())
    for line in markdown_table(columns, cells).splitlines():
        show(line)
    if read_truth(root / TRUTH_FILE).wrong_queries is None:
        show(
            f"note: {root / TRUTH_FILE} lacks wrong queries (an earlier version wrote it); "
            "write the task again to score them"
        )


def has_truth(root: Path) -> bool:
    return (root / TRUTH_FILE).is_file()


def compare_with_truth(
    predictor: Predictor, root: Path, *, videos: int = 100, kind: str | None = None
) -> dict[str, dict[str, float | int]]:
    """Returns the mean scores of each pairwise map over test clips, spread evenly.

    The keys are "MAP, correct" and "MAP, wrong", or "MAP, KIND" for all clips. A network without a
    pairwise map has none.

    Raises:
        ValueError: If the truth in the folder of the task is damaged.
    """
    known = read_truth(root / TRUTH_FILE)
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    if not recordable_blocks(predictor.model):
        return {}
    for index in range(len(known.paths))[:: max(len(known.paths) // videos, 1)][:videos]:
        path, queries = known.paths[index], [known.queries[index].tolist()]
        if known.wrong_queries is not None:
            queries += known.wrong_queries[index].tolist()
        clip = read_clip(predictor, root / "test" / path)
        positions = [clip.to_input(clip.pixel((frame, x, y))) for frame, y, x in queries]
        with torch.no_grad(), record_attention(predictor.model, queries=positions) as maps:
            label = int(predictor.model(clip.video).argmax())
        right, named = path.split("/")[0], predictor.class_names
        answer = "correct" if named[label] == right else "wrong"
        without = answers_without(predictor.model, clip.video)
        for name, block in map_owners(maps, list(recordable_blocks(predictor.model))).items():
            if isinstance(found := maps[name], PairwiseMap):
                scored = _compare(found.weights[0], known.masks(path))
                if block in without:
                    scored["right_off"] = float(named[without[block]] == right)
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


def _compare(rows: Tensor, masks: Tensor) -> dict[str, float]:
    """Scores rows (1 + K, T', H', W') of the query and of K wrong queries; masks: (2, T, H, W)."""
    evidence, distractors = masks.double()
    row, wrong = rows[0], rows[1:]
    frames, height, width = row.shape
    return {
        "mass": float(mass(row, evidence)),
        "area": float(evidence.mean()),
        **({"wrong_mass": float(mass(wrong, evidence).mean())} if len(wrong) else {}),
        "distractor_mass": float(mass(row, distractors)),
        "distractor_area": float(distractors.mean()),
        "pointing": float(pointing(row, evidence)),
        "chance": float(pointing_chance(evidence, (frames, height, width))),
    }
