"""`videoattn prepare reencode` and `shards`: copies of a data set that load faster, or stream."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from videoattn.cli.prepare import examined, name_broken, parts_of
from videoattn.data.dataset import ClipDataset
from videoattn.data.lists import Samples, existing_root, read_folders
from videoattn.data.prepare.reencode import Reencode, check_settings, reencode, unfinished_name
from videoattn.data.prepare.shards import write_shards
from videoattn.data.prepare.verify import Record, describe, files_in, videos_in
from videoattn.data.sampling import train_sampler
from videoattn.data.transforms.augment import AreaCrop, TrainTransform
from videoattn.data.workers import Crash, in_processes
from videoattn.engine.progress import Display
from videoattn.recipe.console import console as out
from videoattn.recipe.load import load
from videoattn.recipe.run import require_empty

_LISTS = (".csv", ".json", ".txt")


def run_reencode(
    source: Path, folder: Path, *, short_side: int, key_frame_interval: int, num_workers: int,
    seconds: float, speed_videos: int = 16,
) -> int:  # fmt: skip
    """Writes a smaller copy of every video of `source` to `folder`, and its lists beside them.

    A run that was stopped goes on where it was. Returns how many videos could not be copied.

    Raises:
        ValueError: wrong settings, or other ones than the folder was begun with; two videos that
            would have one name.
    """
    check_settings(short_side, key_frame_interval)
    source = existing_root(source)
    if folder.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{folder} is inside of {source}; choose another folder")
    outs = {path: str(Path(path).with_suffix(".mp4")) for path in videos_in(source)}
    _check_names(outs)
    items = {
        path: Reencode(source / path, folder / name, short_side, key_frame_interval)
        for path, name in outs.items()
    }
    about = {"short_side": short_side, "key_frame_interval": key_frame_interval}
    journal = folder / "reencoded.jsonl"
    records = examined(
        "re-encoded", reencode, source, items, journal, about, num_workers, seconds,
        is_complete=lambda record: (folder / outs[record["path"]]).is_file(),
    )  # fmt: skip
    broken = {path: record for path, record in records.items() if "error" in record}
    for path in broken:
        unfinished_name(folder / outs[path]).unlink(missing_ok=True)  # of one that crashed
    lists = [path for path in files_in(source) if path.endswith(_LISTS)]
    for path in lists:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, folder / path)
    _tell_sizes(folder, records, outs, len(lists))
    whole = [path for path in records if path not in broken]
    if whole and speed_videos:
        chosen = whole[:: max(len(whole) // speed_videos, 1)][:speed_videos]
        before, after = _speeds(source, chosen, folder, [outs[path] for path in chosen], short_side)
        out.print(
            f"8 frames, 8 apart, of {len(chosen)} of them: {before:.1f} clips/s before, "
            f"{after:.1f} after ({after / before:.1f} times)"
        )
    name_broken(broken, folder)
    return len(broken)


def run_shards(
    what: Path, folder: Path, overrides: Sequence[str] = (), *, max_mb: float, num_workers: int,
    seconds: float,
) -> None:  # fmt: skip
    """Writes `folder/train` and `folder/test` from a recipe, or from a folder of class folders the
    shards of all of it to `folder`.

    Raises:
        ValueError: a folder that is there; a video that does not decode, unless the recipe says
            data.on_error=skip.
    """
    if max_mb <= 0:
        raise ValueError(f"max_mb: got {max_mb:g}; need more than 0")
    require_empty(folder)
    skip = not what.is_dir() and load(what, overrides).data.on_error == "skip"
    parts = {"": read_folders(what)} if what.is_dir() else parts_of(what, overrides, "drop")
    for part, samples in parts.items():
        if samples.frame_template is not None:
            raise ValueError("shards are made of videos, and these are folders of pictures")
        kept, broken = _counted(samples, num_workers, seconds)
        if broken and not skip:
            first = next(iter(broken))
            raise ValueError(
                f"{len(broken)} of {len(samples)} videos do not decode; the first: {first}: "
                f"{broken[first]['error']}; take them out, or leave them out by data.on_error=skip"
            )
        target = folder / part if part else folder
        with Display() as display:
            shards = write_shards(
                kept,
                target,
                max_bytes=int(max_mb * 1e6),
                wrote=lambda done, total: display.update(
                    f"written {done:,}/{total:,}", done=done, total=total
                ),
            )
        out.print(
            f"{target}: {len(kept):,} videos of {len(samples.class_names)} classes in "
            f"{len(shards)} shards, {sum(shard.num_bytes for shard in shards) / 1e6:,.1f} MB"
            + f"; {len(broken):,} broken ones left out"
            * bool(broken),
            markup=False,
        )
        name_broken(broken)
    split = {"": "data.train_split=. data.test_split=."}.get(next(iter(parts)), "")
    out.print(f"to train on them: data.layout=shards data.root={folder} {split}".rstrip())


def _check_names(outs: Mapping[str, str]) -> None:
    sources: dict[str, str] = {}
    for path, name in outs.items():
        if name in sources:
            raise ValueError(f"{sources[name]} and {path} would both become {name}; rename one")
        sources[name] = path


def _tell_sizes(
    folder: Path, records: Mapping[str, Record], outs: Mapping[str, str], num_lists: int
) -> None:
    whole = [record for record in records.values() if "error" not in record]
    before = sum(record["bytes"] for record in whole) / 1e6
    after = sum(record["out_bytes"] for record in whole) / 1e6
    renamed = sum(path != outs[path] for path in records)
    out.print(
        f"{folder}: {len(whole):,} videos, {before:,.1f} MB before, {after:,.1f} MB after"
        + f"; {num_lists:,} lists copied" * bool(num_lists)
        + f"; {len(records) - len(whole):,} broken ones left out" * (len(whole) < len(records)),
        markup=False,
    )
    if renamed:
        out.print(
            f"note: {renamed:,} names end in .mp4 now; layouts list and shards take names as they "
            "are written, so lists must say so too"
        )


def _speeds(
    source: Path, paths: Sequence[str], folder: Path, names: Sequence[str], short_side: int
) -> tuple[float, float]:
    """Clips per second of both, file by file in turn, after a first pass that counts."""
    size = max(short_side * 7 // 8, 1)
    sides = [
        ClipDataset(
            Samples(root, paths=files, labels=[0] * len(files), class_names=["any"]),
            sample_frames=train_sampler("dense", num_frames=8, frame_stride=8),
            transform=TrainTransform(AreaCrop((size, size))),
        )
        for root, files in ((source, paths), (folder, names))
    ]
    spent = [0.0, 0.0]
    for epoch in range(3):
        for index in range(len(paths)):
            for side, dataset in enumerate(sides):
                started = time.perf_counter()
                dataset.fetch((epoch, index))
                spent[side] += (time.perf_counter() - started) * bool(epoch)
    return 2 * len(paths) / spent[0], 2 * len(paths) / spent[1]


def _counted(
    samples: Samples, num_workers: int, seconds: float
) -> tuple[Samples, dict[str, Record]]:
    """Those that decode, with frames and rates; what is wrong with the others."""
    counts = np.zeros(len(samples), np.int64)
    rates = np.zeros(len(samples), np.float64)
    if samples.num_frames is not None and samples.fps is not None:
        counts += samples.num_frames
        rates += samples.fps
    unknown = {samples.path(int(i)): int(i) for i in np.flatnonzero(counts == 0)}
    broken: dict[str, Record] = {}
    with Display() as display:
        found = in_processes(describe, list(unknown), num_workers=num_workers, seconds=seconds)
        for done, (path, record) in enumerate(found, start=1):
            if isinstance(record, Crash):
                record = {"error": record.reason}
            if "error" in record:
                broken[samples.paths[unknown[path]]] = record
            else:
                counts[unknown[path]] = record["num_frames"]
                rates[unknown[path]] = record["fps"]
            display.update(f"counted {done:,}/{len(unknown):,}", done=done, total=len(unknown))
    rows = np.flatnonzero(counts)
    kept = Samples(
        samples.root,
        paths=samples.paths.take(rows),
        labels=samples.labels[rows],
        class_names=samples.class_names,
        num_frames=counts[rows],
        fps=rates[rows],
    )
    return kept, broken
