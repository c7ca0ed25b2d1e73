"""Writes the page of a run's errors, for `videoattn test --errors`."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from videoattn.cli.clip import read_clip
from videoattn.cli.recording import record_clip
from videoattn.data.decode import DecodeError
from videoattn.data.lists import Samples
from videoattn.engine.evaluate import Evaluation
from videoattn.explain.explorer.errors import Answer, write_errors
from videoattn.explain.explorer.pack import Budget, write_explorer
from videoattn.files import safe_file_name
from videoattn.recipe.console import show
from videoattn.recipe.run import Predictor

ERRORS = "errors.html"
NUM_STRIPS = 500
"""Number of videos shown with frames. Each is decoded a second time."""


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
        ValueError: If no test video has a label, or videos have several.
    """
    if evaluation.labels.ndim > 1:
        raise ValueError(
            "errors: got several labels for a video; the page needs one class for each"
        )
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
            yield _complete(run, predictor, samples, index, answer, folder, rank, explorers)

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


def _complete(
    run: Path,
    predictor: Predictor,
    samples: Samples,
    index: int,
    answer: Answer,
    folder: Path,
    rank: int,
    explorers: int,
) -> Answer:
    """Returns the answer with frames, and with an explorer page for the most wrong videos."""
    path = Path(samples.path(index))
    words = ["videoattn", "explore", str(run), str(path)]
    answer = answer._replace(name=path.name, command=shlex.join(words))
    if rank >= max(NUM_STRIPS, explorers):
        return answer
    try:
        clip = read_clip(predictor, path)
    except DecodeError as error:  # such as a frame folder, or a file in a shard
        if rank == 0:
            show(f"note: {ERRORS} has no frames of {path}: {error}")
        return answer
    answer = answer._replace(frames=clip.frames)
    if rank >= explorers:
        return answer
    page = folder / "explorers" / f"{rank + 1:03d}_{safe_file_name(path.stem)}.html"
    truth = predictor.class_names[answer.label]
    archive = record_clip(predictor, path, clip, truth=truth, cams=True)
    for note in write_explorer(page, [archive], Budget()):
        show(f"left out: {note}")
    return answer._replace(explorer=f"explorers/{page.name}")
