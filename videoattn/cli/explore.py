"""`videoattn explore`: writes a page that shows where a network looks from a clicked pixel.

Also writes the page of a run's errors, for `videoattn test --errors`.
"""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from videoattn.attention.archive import MapArchive
from videoattn.cli.arguments import Costs, Device
from videoattn.cli.clip import Clip, read_clip, record_clip
from videoattn.cli.why import CAM, score_map
from videoattn.data.decode import DecodeError
from videoattn.data.decode.source import FrameFolder
from videoattn.data.lists import Samples
from videoattn.engine.evaluate import Evaluation
from videoattn.explain.explorer import pack
from videoattn.explain.explorer.errors import Answer, write_errors
from videoattn.explain.faithful.score import cost_of
from videoattn.files import output_folder, require_suffix, safe_file_name
from videoattn.recipe.console import show
from videoattn.recipe.folder import RUNS
from videoattn.recipe.run import Predictor, load
from videoattn.types import Frames

EXPLORER = "explorer.html"
ERRORS = "errors.html"
NUM_CLASSES = 5
"""The number of most probable classes with a CAM; the true class also has one."""
NUM_STRIPS = 500
"""The number of videos whose frames are in the page of errors. Each is decoded a second time."""


def command(
    run: Annotated[
        Path,
        typer.Argument(
            help="The folder of a run, its name in runs, a shared folder, a checkpoint file in "
            "one, or the name of a public model (see `videoattn list weights`)."
        ),
    ],
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Video files.")],
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Another run on the same videos, in the same page. Repeatable."
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Maps whose names start with this are packed first.")
    ] = None,
    budget: Annotated[
        float, typer.Option(metavar="MB", help="Size of the maps and frames in the file.")
    ] = pack.BUDGET,
    compact: Annotated[
        bool, typer.Option("--compact", help="Store maps in 8 bits: smaller, and less exact.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--out", help=f"The file; RUN/{EXPLORER} if not given.")
    ] = None,
    score: Costs = False,
    device: Device = "auto",
) -> Path:
    """Write a page that shows where a network looks from a pixel.

    The page is one HTML file that opens from disk and needs no network.
    """
    require_suffix(output, ".html")
    runs = [run, *(compare or ())]
    named = [RUNS / one if (RUNS / one).exists() and not one.exists() else one for one in runs]
    loaded = [load(one, device) for one in named]
    if budget > pack.SLOW_BUDGET:
        seconds = budget * pack.SECONDS_PER_MEGABYTE
        show(f"note: a page of {budget:g} MB takes {seconds:.0f} seconds to open")
    if output is None:
        output = output_folder(loaded[0].folder) / EXPLORER
    limits = pack.Budget(budget, len(loaded) * len(videos), layer or "", compact)
    for note in pack.write_explorer(output, _archives(loaded, videos, score), limits):
        show(f"left out: {note}")
    show(output)
    return output


def _archives(
    loaded: Sequence[Predictor], videos: Sequence[Path], costs: bool
) -> Iterator[MapArchive]:
    """Yields the maps of each video and run. A folder named as a class is the true class."""
    for video in videos:
        folder = video.absolute().parent.name
        for predictor in loaded:
            truth = folder if folder in predictor.class_names else None
            clip = read_clip(predictor, video)
            yield make_archive(predictor, clip, truth, costs=costs)


def make_archive(
    loaded: Predictor, clip: Clip, truth: str | None = None, *, costs: bool = False
) -> MapArchive:
    """Returns the maps of every block, CAMs of the last stage for the most probable classes and the
    true one, the frames, and facts about the clip.

    Args:
        truth: The true class, if it is known.
        costs: Also measure what hiding the top tenth of each map costs the predicted class, in 12
            forward passes for each map.
    """
    maps, logits, chosen = record_clip(loaded, clip)
    probabilities = loaded.scores(logits[None])[0]
    best = logits.argsort(descending=True, stable=True).tolist()
    shown = best[:NUM_CLASSES]
    if truth is not None and loaded.class_names.index(truth) not in shown:
        shown.append(loaded.class_names.index(truth))
    cams = {k: score_map(loaded, clip, k) for k in shown}
    about = {
        "video": clip.name,
        "run": loaded.config.name,
        "network": loaded.config.model.name,
        "numbers": clip.numbers,
        "fps": clip.fps,
        "input": list(clip.grid),
        "classes": [(loaded.class_names[k], float(probabilities[k])) for k in shown],
        "truth": truth,
        "queries": [(*one.query, one.title, one.reason) for one in chosen],
    }
    if costs:
        about["costs"] = {
            name: cost_of(loaded.model, clip.video, found, best[0], loaded.scores)
            for name, found in {**maps, CAM: cams[best[0]]}.items()
        }
    named = {f"{CAM}/{loaded.class_names[k]}": found for k, found in cams.items()}
    return MapArchive({**maps, **named}, clip.frames, about)


def write_errors_page(
    run: Path,
    predictor: Predictor,
    evaluation: Evaluation,
    samples: Samples,
    folder: Path,
    explorers: int,
) -> Path:
    """Writes errors.html to `folder`, and explorer pages of the `explorers` most wrong videos."""
    best, guesses = evaluation.probabilities.max(dim=1)
    answers: list[tuple[int, Answer]] = []  # with the index of the video in the dataset
    for row, label in enumerate(evaluation.labels.tolist()):
        if label >= 0:
            own = float(evaluation.probabilities[row, label])
            answer = Answer("", label, int(guesses[row]), own, float(best[row]))
            answers.append((int(evaluation.indices[row]), answer))
    answers.sort(key=lambda item: item[1].wrongness, reverse=True)
    if not answers:
        raise ValueError("errors: no test video has a label, so none can be wrong")
    right = sum(answer.label == answer.guess for _, answer in answers)
    views = evaluation.num_views
    about = (
        f"{right} of {len(answers)} test videos are right ({100 * right / len(answers):.1f} %), by "
        f"{'one view' if views == 1 else f'the mean of {views} views'} each. The frames are those "
        "of the middle clip."
    )

    def completed() -> Iterator[Answer]:
        for rank, (index, answer) in enumerate(answers):
            video = Path(samples.path(index))
            command = shlex.join(["videoattn", "explore", str(run), str(video)])
            if samples.frame_template is not None:
                command = ""  # explore takes files
            answer = answer._replace(name=video.name, command=command)
            if rank < max(NUM_STRIPS, explorers):
                name = f"explorers/{rank + 1:03d}_{safe_file_name(video.stem)}.html"
                page = folder / name if rank < explorers else None
                source = samples.source(index)
                frames = _write_frames(predictor, source, answer.label, page, note=rank == 0)
                answer = answer._replace(
                    frames=frames, explorer=name if page and frames is not None else ""
                )
            yield answer

    path, names = folder / ERRORS, predictor.class_names
    write_errors(path, completed(), run=predictor.config.name, about=about, class_names=names)
    return path


def _write_frames(
    predictor: Predictor, source: Path | FrameFolder, label: int, page: Path | None, *, note: bool
) -> Frames | None:
    """Returns a clip's frames, or None if it does not decode; writes its explorer to `page`."""
    try:
        clip = read_clip(predictor, source)
    except DecodeError as error:  # such as a file in a shard
        if note:
            show(f"note: {ERRORS} has no frames of {source}: {error}")
        return None
    if page is not None:
        archive = make_archive(predictor, clip, predictor.class_names[label])
        for left_out in pack.write_explorer(page, [archive], pack.Budget()):
            show(f"left out: {left_out}")
    return clip.frames
