"""Inspects every video of a dataset in worker processes, and caches the results.

If a decoder crashes or hangs, only its file counts as broken. The results are kept in a file of
JSON lines, so that an interrupted run continues, and a later run inspects only new and changed
files.
"""

import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videoattn.data.decode.container import count_folder, read_folder
from videoattn.data.decode.pyav import Video
from videoattn.data.decode.rgb import quarter_turns
from videoattn.data.decode.source import DecodeError, FrameFolder, VideoSource, reason
from videoattn.data.lists.files import is_video, walk
from videoattn.data.prepare.index import find_group_starts
from videoattn.data.workers import Crash, Task, in_processes
from videoattn.files import named_in_errors

Record = dict[str, Any]
"""The results for one file: `path`, `bytes` and `mtime_ns`; `error` if something is wrong with it,
and `crashed` if it ended or stalled a process; and further values."""


class Facts(NamedTuple):
    """The facts about a video in the index and in shards. Sizes are in pixels, after rotation."""

    num_frames: int
    fps: float
    height: int
    width: int
    key_frames: int


_TYPES: dict[str, Any] = {
    **dict.fromkeys(("bytes", "mtime_ns", "out_bytes", *Facts._fields), int),
    "fps": int | float,
    "path": str,
    "error": str,
    "crashed": bool,
    "starts": list,
}
"""The types of a record's values."""


class Journal:
    """A file of JSON lines: a description of the run, then a record for each file.

    Each line is appended with one write, so that an interrupted run loses only the files that it
    was inspecting. An incomplete last line is ignored.

    Raises:
        ValueError: If the journal belongs to a run with another description, or is a link.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        if path.is_symlink():  # it came with the folder, and may lead anywhere
            raise ValueError(f"{path} is a link; remove it")
        whole = self._read(about) if path.is_file() else b""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        os.ftruncate(self._file, len(whole))
        if not whole:
            self._append(dict(about))

    def add(self, record: Record) -> None:
        self._append(record)
        self.records[record["path"]] = record

    def close(self) -> None:
        os.close(self._file)

    def _append(self, values: Mapping[str, Any]) -> None:
        with named_in_errors(self.path):
            os.write(self._file, (json.dumps(values) + "\n").encode())

    def _read(self, about: Mapping[str, Any]) -> bytes:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            first, *lines = [json.loads(line) for line in whole.splitlines()] or [dict(about)]
            self.records = {line["path"]: line for line in map(_checked, lines)}
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{self.path} is damaged ({error}); remove it to start again"
            ) from error
        if first != about:
            raise ValueError(
                f"{self.path} belongs to a run with {str(first)[:200]}, and this run has "
                f"{dict(about)}; choose another folder, or remove it to start again"
            )
        return whole


def examine(
    task: Task, root: Path, items: Mapping[str, Any], journal: Journal | None, *,
    num_workers: int, seconds: float,
) -> Iterator[Record]:  # fmt: skip
    """Yields a record for each file: the journal's if the file has not changed, else a new one.

    Files that crashed the decoder or took too long are tried again.

    Args:
        items: The argument of the task by path, which is relative to `root` or absolute.
        journal: Keeps the records for the next run.
        seconds: The time limit for one file.
    """
    states = {path: _state(root / path) for path in items}
    known = journal.records if journal else {}
    jobs = []
    for path in sorted(items):
        record, state = known.get(path, {}), states[path]
        if state["mtime_ns"] and record.items() >= state.items() and not record.get("crashed"):
            yield record
        else:
            jobs.append((path, items[path]))
    for (path, _), found in in_processes(
        partial(_second, task), jobs, num_workers=num_workers, seconds=seconds
    ):
        if isinstance(found, Crash):
            found = {"error": found.reason, "crashed": True}
        record = {"path": path, **states[path], **found}
        if journal:
            journal.add(record)
        yield record


def videos_in(root: Path) -> list[str]:
    """Returns the videos in a folder and below, sorted.

    Raises:
        ValueError: If there are none.
    """
    paths = sorted(filter(is_video, walk(root)))
    if not paths:
        raise ValueError(f"{root} holds no video")
    return paths


def probe(source: VideoSource) -> Facts:
    """Returns the facts about a video. Decodes every frame, so that the count is always exact.

    Raises:
        DecodeError: If the file cannot be read or no frame decodes.
    """
    return _look(source, thorough=True)[0]


def verify(path: Path) -> Record:
    """Decodes a whole file and returns its facts, with an `error` if it is damaged."""
    try:
        facts, listed, problem = _look(path, thorough=True)
    except DecodeError as error:
        return {"error": error.reason}
    if listed is not None and facts.num_frames != listed:
        problem = f"{facts.num_frames} of {listed} frames decode" + f" ({problem})" * bool(problem)
    if problem:
        return {"error": f"damaged: {problem}", **facts._asdict()}
    return facts._asdict()


def verify_folder(job: tuple[FrameFolder, int]) -> Record:
    """Reads all images of a folder; `job` is the folder and the number of images in its list."""
    folder, listed = job
    size: dict[str, int] = {}
    try:
        count = count_folder(folder)
        for _, image in read_folder(folder, np.arange(count)):
            size = {"height": image.shape[0], "width": image.shape[1]}
    except DecodeError as error:
        return {"error": error.reason}
    problem = {"error": f"damaged: {count} of {listed} images exist"} if count < listed else {}
    return {"num_frames": count, **size, **problem}


def describe(path: Path, *, with_starts: bool = True) -> Record:
    """Returns the index's facts about a video, from its packets and one decoded frame if possible.

    The number of frames and their rate are those of `count_frames`. Only videos whose container
    does not list the frames need `starts`, their group starts, for which they are decoded again.
    """
    try:
        facts, listed, _ = _look(path, thorough=False)
        starts = find_group_starts(path) if with_starts and listed is None else []
    except DecodeError as error:
        return {"error": error.reason}
    return {**facts._asdict(), "num_frames": listed or facts.num_frames, "starts": starts}


def _look(source: VideoSource, *, thorough: bool) -> tuple[Facts, int | None, str]:
    """Returns the facts, the number of listed frames (None without a list), and any problem.

    Without `thorough`, only one frame is decoded if the container lists them.
    """
    with Video(source) as video:
        index = video.packet_index
        height, width, count, keys, corrupt = 0, 0, 0, 0, 0
        for frame in video.frames():
            if count == 0:
                height, width = frame.height, frame.width
                if quarter_turns(frame) % 2:
                    height, width = width, height
            count += 1
            keys += frame.key_frame
            corrupt += frame.is_corrupt
            if index is not None and not thorough:
                break
        if count == 0:
            raise video.no_frame()
        problem = f"{corrupt} frames are corrupt" if corrupt else ""
        problem = reason(video.last_error) if video.last_error else problem
        listed = None if index is None else len(index.times)
        keys = keys if index is None else len(index.keys)
        return Facts(count, video.fps, height, width, keys), listed, problem


def _checked(record: object) -> Record:
    """Returns a record of a journal, which may have come with the folder.

    Raises:
        ValueError: If a value has another type than this package writes, or exceeds 64 bits.
    """
    if not isinstance(record, dict) or "path" not in record:
        raise ValueError(f"{str(record)[:40]!r} is not a record")
    for key, value in record.items():
        kind = _TYPES.get(key, object)
        number = isinstance(value, int | float) and kind is not object
        if not isinstance(value, kind) or (number and not 0 <= value < 2**63):
            raise ValueError(f"{key} is {str(value)[:40]!r}")
    starts = record.get("starts")
    if starts and np.array(starts, np.int64).shape != (len(starts), 2):
        raise ValueError("starts are not pairs of numbers")
    return record


def _second(task: Task, job: tuple[str, Any]) -> Record:
    return task(job[1])


def _state(path: Path) -> dict[str, int]:
    try:
        found = path.stat()
    except OSError:
        return {"bytes": 0, "mtime_ns": 0}
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
