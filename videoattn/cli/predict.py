"""`videoattn predict`: names the action in videos."""

import glob
import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from videoattn.cli.answers import Answer, AnswerFiles, csv_format, json_format
from videoattn.cli.arguments import Device, Run
from videoattn.data.lists.files import is_video, walk
from videoattn.engine.evaluate import VideoScores
from videoattn.engine.objective import top_classes
from videoattn.engine.parallel import Parallel, init_parallel
from videoattn.engine.progress import Clock, Display
from videoattn.errors import first_few
from videoattn.files import safe_file_name
from videoattn.recipe.console import console, show
from videoattn.recipe.run import Predictor, load
from videoattn.types import Failure


def command(
    run: Run,
    videos: Annotated[
        list[str],
        typer.Argument(
            help="Video files, folders of videos, patterns such as 'clips/*.mp4', or - to read "
            "them from standard input, one per line."
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="Number of classes per video.")] = 5,
    csv: Annotated[
        Path | None, typer.Option(help="Write a row per video to this file, as results come.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="The same as a list in JSON, one line per video.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the files of an interrupted command.")
    ] = False,
    why: Annotated[
        bool,
        typer.Option(
            "--why",
            help="Also draw the evidence for the most likely class, and the strongest attention.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the pictures of --why; RUN/pictures if not given."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Name the action in each video.

    Prints the most likely classes, or writes them to files. The exit status is 1 if a video cannot
    be decoded.
    """
    files = _answer_files(csv, json, top=top, resume=resume)
    if output is not None and not why:
        raise ValueError("output: it is the folder of the pictures; add --why")
    with init_parallel(device) as parallel:
        predictor = load(run, parallel.device)
        found = parallel.from_main(lambda: find_videos(videos))
        todo = parallel.from_main(lambda: files.start(found, resume=resume))
        folder = (output or predictor.folder / "pictures") if why else None
        failures = _score(predictor, todo, len(found), top, files, folder, parallel)
        if parallel.is_main:
            _end(files, failures, len(todo))
    if failures:
        raise typer.Exit(1)


def _answer_files(csv: Path | None, json: Path | None, *, top: int, resume: bool) -> AnswerFiles:
    if csv is not None and csv == json:
        raise ValueError(f"csv and json: both are {csv}; choose two files")
    formats = {csv: csv_format(top), json: json_format()}
    files = AnswerFiles({path: form for path, form in formats.items() if path is not None})
    if resume and not files.formats:
        raise ValueError("resume: there is no file to continue; add --csv FILE or --json FILE")
    return files


def _end(files: AnswerFiles, failures: Sequence[Failure], num_videos: int) -> None:
    files.end()
    for failure in failures:
        show(f"failed: {failure.path}: {failure.reason}")
    if files.formats:
        names = ", ".join(str(path) for path in files.formats)
        show(f"{num_videos:,} videos, {len(failures):,} failed: {names}")


def find_videos(words: Sequence[str | Path]) -> list[str]:
    """Returns the videos of files, folders and patterns, each once. "-" reads standard input."""
    found: list[str] = []
    for word in map(str, words):
        lines = [line.rstrip("\n") for line in sys.stdin] if word == "-" else [word]
        for line in filter(None, lines):
            found += _videos_of(line)
    if not found:
        raise ValueError(
            "no video is given; need paths, or - and a path per line on standard input"
        )
    return list(dict.fromkeys(found))


def _videos_of(word: str) -> list[str]:
    matches = [os.path.expanduser(word)]  # if it does not exist, it is counted as failed
    if not os.path.lexists(matches[0]):
        if re.match(r"\w[\w+.-]*://", word):
            raise ValueError(
                f"{word} is an address; need a file: save some seconds first, with "
                f"ffmpeg -i {word} -t 10 clip.mp4"
            )
        if glob.has_magic(matches[0]):
            matches = sorted(glob.glob(matches[0], recursive=True))
            if not matches:
                raise ValueError(f"{word}: no file has a name like this")
    videos = (_inside(match) if os.path.isdir(match) else [match] for match in matches)
    return [video for some in videos for video in some]


def _inside(folder: str) -> list[str]:
    names = list(walk(folder))
    videos = sorted(name for name in names if is_video(name))
    if not videos:
        raise ValueError(f"{folder}: no videos in this folder; its files are {first_few(names)}")
    return [os.path.join(folder, name) for name in videos]


def unique_stems(videos: Sequence[str]) -> list[str]:
    """Returns unique file names without suffix, from the paths relative to the common folder."""
    folders = [os.path.dirname(os.path.abspath(video)) for video in videos]
    common = os.path.commonpath(folders)
    names = [os.path.splitext(os.path.relpath(os.path.abspath(v), common))[0] for v in videos]
    stems = [safe_file_name(name) for name in names]
    count = Counter(stems)
    return [
        stem
        if count[stem] == 1
        else f"{stem[:80]}_{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
        for stem, name in zip(stems, names, strict=True)
    ]


def _score(
    predictor: Predictor,
    videos: Sequence[str],
    num_videos: int,
    top: int,
    files: AnswerFiles,
    folder: Path | None,
    parallel: Parallel,
) -> list[Failure]:
    """Scores the remaining `videos` of `num_videos`, and writes or prints the answers as they come;
    with a folder, also draws the reasons. Returns the failures."""
    failures: list[Failure] = []
    if not videos:
        return failures
    clock = Clock(steps_left=len(videos))
    stems = [folder / stem for stem in unique_stems(videos)] if folder is not None else []
    # A bar would be drawn over answers on the terminal.
    live = parallel.is_main and (bool(files.formats) or not console.is_terminal)
    with Display(enabled=live) as display:
        samples = predictor.samples(videos)
        for scored in predictor.score_samples(samples, parallel, num_videos):
            failures += [video.failure for video in scored if video.failure is not None]
            answers = [_answer(video, videos, predictor.class_names, top) for video in scored]
            pictures = _draw(predictor, scored, videos, stems, parallel) if stems else {}
            if parallel.is_main:
                files.write(answers)
                if not files.formats:
                    _show(answers, pictures)
            for _ in scored:
                clock.step(clips=1)
            display.update(
                f"predicting  {clock.steps:,}/{len(videos):,}  "
                f"{clock.clips_per_second:.1f} videos/s  left {clock.time_left}",
                done=clock.steps,
                total=len(videos),
            )
    return failures


def _answer(video: VideoScores, videos: Sequence[str], names: Sequence[str], top: int) -> Answer:
    path = videos[video.index]
    if video.failure is not None:
        return Answer(path, error=video.failure.reason)
    assert video.probabilities is not None
    labels = top_classes(video.probabilities[None], top)[0].tolist()
    return Answer(path, [(names[k], float(video.probabilities[k])) for k in labels])


def _draw(
    predictor: Predictor,
    scored: Sequence[VideoScores],
    videos: Sequence[str],
    stems: Sequence[Path],
    parallel: Parallel,
) -> dict[str, list[Path]]:
    """Draws the reasons for answers, a part on each rank; returns the pictures of each video."""
    from videoattn.cli.why import draw_reasons  # loads the drawing code

    own = {}
    for video in scored[parallel.rank :: parallel.world_size]:
        if video.probabilities is not None:
            path, label = videos[video.index], int(video.probabilities.argmax())
            own[path] = draw_reasons(predictor, Path(path), label, stems[video.index])
    return {path: drawn for part in parallel.gather(own) for path, drawn in part.items()}


def _show(answers: Sequence[Answer], pictures: dict[str, list[Path]]) -> None:
    for answer in answers:
        if answer.error:
            continue  # failures are listed at the end
        show(answer.video)
        for name, share in answer.classes:
            show(f"  {100 * share:5.1f} %  {name}")
        for path in pictures.get(answer.video, ()):
            show(f"  {path}")
