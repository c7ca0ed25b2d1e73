"""Writes the page of a run's errors, for `videoattn test --errors`."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from videoattn.cli.clip import read_clip, record_clip
from videoattn.data.decode import DecodeError
from videoattn.data.decode.source import FrameFolder
from videoattn.data.lists import Samples
from videoattn.engine.evaluate import Evaluation
from videoattn.explain.explorer.errors import Answer, write_errors
from videoattn.explain.explorer.pack import Budget, write_explorer
from videoattn.files import safe_file_name
from videoattn.recipe.console import show
from videoattn.recipe.run import Predictor
from videoattn.types import Frames

ERRORS = "errors.html"
NUM_STRIPS = 500
"""Number of videos shown with frames. Each is decoded a second time."""


def check_labels(samples: Samples) -> None:
    """Checks that each video has one class.

    Raises:
        ValueError: If videos have several labels.
    """
    if samples.label_sets is not None:
        raise ValueError(
            "errors: got several labels for a video; the page needs one class for each"
        )


def write_errors_page(
    run: Path,
    predictor: Predictor,
    evaluation: Evaluation,
    samples: Samples,
    folder: Path,
    explorers: int,
) -> Path:
    """Writes errors.html, and explorer pages of the most wrong videos into `explorers` beside it.

    Raises:
        ValueError: If no test video has a label.
    """
    answers = sorted(_answers(evaluation), key=lambda item: item[1].wrongness, reverse=True)
    if not answers:
        raise ValueError("errors: no test video has a label, so none can be wrong")
    right = sum(answer.label == answer.guess for _, answer in answers)
    views = evaluation.num_views
    about = (
        f"{right} of {len(answers)} test videos are right ({100 * right / len(answers):.1f} %), by "
        f"{'one view' if views == 1 else f'the mean of {views} views'} each. The frames are those "
        "of the middle clip."
    )
    path = folder / ERRORS

    def completed() -> Iterator[Answer]:
        for rank, (index, answer) in enumerate(answers):
            video = Path(samples.path(index))
            command = shlex.join(["videoattn", "explore", str(run), str(video)])
            if samples.frame_template is not None:
                command = ""  # explore takes files
            answer = answer._replace(name=video.name, command=command)
            explorer = f"explorers/{rank + 1:03d}_{safe_file_name(video.stem)}.html"
            if rank < max(NUM_STRIPS, explorers):
                page = folder / explorer if rank < explorers else None
                source = samples.source(index)
                frames = _write_frames(predictor, source, answer.label, page, note=rank == 0)
                is_written = page is not None and frames is not None
                answer = answer._replace(frames=frames, explorer=explorer if is_written else "")
            yield answer

    write_errors(
        path, completed(), run=predictor.config.name, about=about, class_names=predictor.class_names
    )
    return path


def _answers(evaluation: Evaluation) -> Iterator[tuple[int, Answer]]:
    """Yields the index of each labeled video in the dataset, and the answer to it."""
    best, guesses = evaluation.probabilities.max(dim=1)
    for number, label in enumerate(evaluation.labels.tolist()):
        if label >= 0:
            own = float(evaluation.probabilities[number, label])
            answer = Answer("", label, int(guesses[number]), own, float(best[number]))
            yield int(evaluation.indices[number]), answer


def _write_frames(
    predictor: Predictor,
    source: Path | FrameFolder,
    label: int,
    page: Path | None,
    *,
    note: bool,
) -> Frames | None:
    """Returns frames of a video, or None with a note. Writes its explorer page, if it has one."""
    try:
        clip = read_clip(predictor, source)
    except DecodeError as error:  # such as a file in a shard
        if note:
            show(f"note: {ERRORS} has no frames of {source}: {error}")
        return None
    if page is not None:
        truth = predictor.class_names[label]
        archive = record_clip(predictor, Path(str(source)), clip, truth=truth, cams=True)
        for left_out in write_explorer(page, [archive], Budget()):
            show(f"left out: {left_out}")
    return clip.frames
