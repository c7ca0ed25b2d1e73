"""`videoattn prepare`: checks, indexes, re-encodes or packs the videos of a dataset."""

import os
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import Annotated

import typer

from videoattn.cli.arguments import Overrides
from videoattn.cli.prepare_files import (
    count_frames,
    examine_all,
    inside,
    read_source,
    show_broken,
    to_line,
    to_task,
    write_lines,
)
from videoattn.data.lists import existing_root, read_folders
from videoattn.data.lists.files import outside, walk
from videoattn.data.prepare import verify as files
from videoattn.data.prepare.index import INDEX_NAME, write_index
from videoattn.data.prepare.reencode import Reencode, check_settings, unfinished_name
from videoattn.data.prepare.reencode import reencode as reencode_video
from videoattn.data.shards.write import check_output, write_shards
from videoattn.engine.progress import Display
from videoattn.errors import first_few
from videoattn.files import output_folder, write_whole
from videoattn.recipe.console import show
from videoattn.recipe.folder import RUNS
from videoattn.recipe.load import load

What = Annotated[
    Path, typer.Argument(metavar="RECIPE_OR_FOLDER", help="A recipe (YAML), or a folder of videos.")
]
Workers = Annotated[int, typer.Option(min=1, help="Number of processes.")]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Also copy files outside that links lead to.")
]
Seconds = Annotated[float, typer.Option(help="Time limit per file, in seconds.")]

CORES = os.cpu_count() or 1
LIST_SUFFIXES = (".csv", ".json", ".txt")


def verify(
    what: What,
    overrides: Overrides = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for lists; runs/verify-NAME if not given.")
    ] = None,
    workers: Workers = CORES,
    seconds: Seconds = 60.0,
) -> None:
    """Find the broken files of a dataset.

    Decodes every frame of every file, and lists the clean and the broken files. An interrupted
    check continues where it stopped. A repeated one decodes only new and changed files. The exit
    status is 1 if a file is broken.
    """
    name, subsets = read_source(what, overrides or ())
    root = next(iter(subsets.values())).root
    folder = output_folder(folder or RUNS / f"verify-{name}")
    items = {s.paths[i]: to_task(s, i) for s in subsets.values() for i in range(len(s))}
    of_images = any(samples.frame_template for samples in subsets.values())
    task = files.verify_folder if of_images else files.verify
    journal = files.Journal(folder / "checked.jsonl", {"verified": str(root.resolve())})
    _, broken = examine_all("verified", task, root, items, journal, workers, seconds)
    partly = sum("num_frames" in record for record in broken.values())
    note = f" ({partly:,} of these give some frames)" if partly else ""
    show(
        f"{len(items):,} files: {len(items) - len(broken):,} clean, {len(broken):,} broken{note}; "
        f"{folder}/ lists them"
    )
    for subset, samples in subsets.items():
        clean = (i for i in range(len(samples)) if samples.paths[i] not in broken)
        lines = (to_line(samples, i) for i in clean)
        write_lines(folder / (f"clean_{subset}.txt" if subset else "clean.txt"), lines)
        write_lines(folder / "classes.txt", samples.class_names)
    show_broken(broken, folder)
    if broken:
        raise typer.Exit(1)


def index(
    folder: Annotated[Path, typer.Argument(help="The dataset's root. The index is written there.")],
    workers: Workers = CORES,
    seconds: Seconds = 60.0,
) -> None:
    """Write an index, so that training starts sooner.

    It holds the number of frames, frame rate, size and key frames of each video, which training
    otherwise reads from the files. Run it again after files have changed: it reads only changed
    files.
    """
    root = existing_root(folder)
    items = {path: root / path for path in files.videos_in(root)}
    journal = files.Journal(root / f"{INDEX_NAME.removesuffix('.npz')}.jsonl", {"indexed": 1})
    for name, record in list(journal.records.items()):
        if "error" not in record and "starts" not in record:
            del journal.records[name]  # of an earlier version
    records, broken = examine_all("indexed", files.describe, root, items, journal, workers, seconds)
    path = write_index(root, [records[name] for name in items])
    num_frames = sum(record.get("num_frames", 0) for record in records.values())
    note = f"; {len(broken):,} that do not decode have none" if broken else ""
    show(f"{path}: {len(records):,} videos, {num_frames:,} frames{note}")
    show_broken(broken)


def reencode(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder of videos.")],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the copies.")],
    short_side: Annotated[int, typer.Option(help="Short side in pixels, an even number.")] = 128,
    key_frame_interval: Annotated[
        int, typer.Option(help="Frames between key frames, at most.")
    ] = 8,
    workers: Workers = CORES,
    seconds: Seconds = 600.0,
    follow_links: FollowLinks = False,
) -> None:
    """Copy videos so that they load faster.

    The copies are small H.264 files that are quick to seek in, with the same names (.mp4). Frames
    keep their times; sound is dropped. Lists (.txt, .csv, .json) are copied as they are. An
    interrupted copy continues where it stopped. The exit status is 1 if a video is broken.
    """
    check_settings(short_side, key_frame_interval)
    source = existing_root(source)
    if folder.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{folder} is inside of {source}; choose another folder")
    found = files.videos_in(source)
    copies = _copy_names([found[row] for row in inside(source, found, follow_links)])
    items = {
        path: Reencode(source / path, folder / copy, short_side, key_frame_interval)
        for path, copy in copies.items()
    }
    about = {"short_side": short_side, "key_frame_interval": key_frame_interval}
    journal = files.Journal(output_folder(folder) / "reencoded.jsonl", about)
    for path, record in list(journal.records.items()):
        if "error" not in record and not (path in copies and (folder / copies[path]).is_file()):
            del journal.records[path]  # the copy has been removed
    task = reencode_video
    records, broken = examine_all("re-encoded", task, source, items, journal, workers, seconds)
    for path in broken:
        unfinished_name(folder / copies[path]).unlink(missing_ok=True)  # left by a crash
    num_lists = _copy_lists(source, folder, follow_links)
    whole = [record for path, record in records.items() if path not in broken]
    before, after = (sum(r[key] for r in whole) / 1e6 for key in ("bytes", "out_bytes"))
    line = f"{folder}: {len(whole):,} videos, {before:,.1f} MB before, {after:,.1f} MB after"
    line += f"; {num_lists:,} lists copied" if num_lists else ""
    show(line + (f"; {len(broken):,} broken ones left out" if broken else ""))
    renamed = sum(path != copy for path, copy in copies.items())
    if renamed:
        show(f"note: {renamed:,} names end in .mp4 now; change them in the lists, too")
    show_broken(broken, folder)
    if broken:
        raise typer.Exit(1)


def shards(
    what: What,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    overrides: Overrides = None,
    max_mb: Annotated[float, typer.Option(help="Largest size of a shard, in MB.")] = 512.0,
    workers: Workers = CORES,
    seconds: Seconds = 60.0,
    follow_links: FollowLinks = False,
) -> None:
    """Pack videos into tar files for streaming.

    The tar files follow WebDataset; data.layout=shards streams them. A recipe's videos go to
    OUT/train and OUT/test. A folder of class folders goes to OUT. An interrupted call continues
    where it stopped.
    """
    if max_mb <= 0:
        raise ValueError(f"--max-mb: got {max_mb:g}; need more than 0")
    check_output(folder)
    if what.is_dir():
        subsets, skip = {"": read_folders(what)}, False
    else:
        subsets = read_source(what, overrides or (), missing="drop")[1]
        skip = load(what, overrides or ()).data.on_error == "skip"
    broken = {}
    for subset, samples in subsets.items():
        if samples.frame_template is not None:
            raise ValueError("data.layout: got folders of images; shards need videos")
        samples = samples.take(inside(samples.root, list(samples.paths), follow_links))
        subsets[subset], broken[subset] = count_frames(samples, workers, seconds, skip=skip)
    with Display() as display:
        written = write_shards(
            subsets,
            folder,
            max_bytes=int(max_mb * 1e6),
            wrote=lambda done, total: display.update(
                f"written {done:,}/{total:,}", done=done, total=total
            ),
        )
    for subset, samples in subsets.items():
        size = sum(shard.num_bytes for shard in written[subset])
        note = f"; {len(broken[subset]):,} broken ones left out" if broken[subset] else ""
        show(
            f"{folder / subset}: {len(samples):,} videos of {len(samples.class_names)} classes in "
            f"{len(written[subset])} shards, {size / 1e6:,.1f} MB{note}"
        )
        show_broken(broken[subset])
    splits = "" if "train" in subsets else " data.train_split=. data.test_split=."
    show(f"to train on them: data.layout=shards data.root={folder}{splits}")


def _copy_lists(source: Path, folder: Path, follow_links: bool) -> int:
    """Copies the lists of a dataset, and returns how many there are. Links to files outside of the
    dataset are not copied: the copy may be published."""
    lists = [path for path in sorted(walk(source)) if path.endswith(LIST_SUFFIXES)]
    left_out = set() if follow_links else outside(source, lists)
    if left_out:
        links = first_few(sorted(left_out))
        show(f"note: lists that are links to files outside of {source} are not copied: {links}")
    for path in set(lists) - left_out:
        with open(source / path, "rb") as file:
            write_whole(folder / path, partial(copyfileobj, file))
    return len(lists) - len(left_out)


def _copy_names(paths: list[str]) -> dict[str, str]:
    """Returns the name of the copy of each video; two videos with one name are an error."""
    copies = {path: str(Path(path).with_suffix(".mp4")) for path in paths}
    sources: dict[str, str] = {}
    for path, copy in copies.items():
        if (other := sources.setdefault(copy, path)) != path:
            raise ValueError(f"{other} and {path} would both become {copy}; rename one")
    return copies
