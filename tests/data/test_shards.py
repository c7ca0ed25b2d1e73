import json
import re
import tarfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.test_dataset import train_set
from tests.data.test_loader import same
from videoattn.data import shards as shards_module
from videoattn.data.decode import DecodeError, count_frames, decode
from videoattn.data.decode.source import VideoBytes
from videoattn.data.lists import Samples, read_folders
from videoattn.data.loader import ClipLoader
from videoattn.data.shards import BUFFER, ShardDataset, Shards, _ahead, open_shards
from videoattn.data.shards.table import TABLE, import_webdataset
from videoattn.data.shards.write import write_shards


def counted(samples: Samples) -> Samples:
    facts = [count_frames(samples.path(i)) for i in range(len(samples))]
    counts, rates = zip(*facts, strict=True)
    samples.num_frames, samples.fps = np.array(counts), np.array(rates)
    return samples


def written(samples: Samples, folder: Path, max_bytes: int = 20_480) -> Path:
    write_shards({"": counted(samples)}, folder, max_bytes=max_bytes)
    return folder


@pytest.fixture
def folder(thirteen: Path) -> Path:
    """Thirteen videos in about five shards."""
    return written(read_folders(thirteen), thirteen.parent / "shards")


def loader(folder: Path, split: str = ".", on_error: Any = "raise", **kwargs: Any) -> ClipLoader:
    shards = open_shards(str(folder), split)
    options = {"batch_size": 2, "shuffle": True, **kwargs}
    return ClipLoader(train_set(shards, make=ShardDataset, on_error=on_error), **options)


def test_written_files(thirteen: Path, folder: Path) -> None:
    samples = read_folders(thirteen)
    table = json.loads((folder / TABLE).read_text())
    assert table["class_names"] == ["left", "right"]
    assert table["num_samples"] == 13
    names = [shard["name"] for shard in table["shards"]]
    assert len(names) >= 4
    assert sorted(path.name for path in folder.iterdir()) == [*names, TABLE]
    assert not list(folder.parent.glob(".*"))
    keys, seen = [], []
    for shard in table["shards"]:
        assert (folder / shard["name"]).stat().st_size <= 20_480
        with tarfile.open(folder / shard["name"]) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        stems = sorted({name.partition(".")[0] for name in files})
        assert len(stems) == shard["num_samples"]
        keys += stems
        for stem in stems:
            about = json.loads(files[f"{stem}.json"])
            index = list(samples.paths).index(about["path"])
            assert int(files[f"{stem}.cls"]) == about["label"] == samples.label(index)
            assert about["class"] == samples.class_names[about["label"]]
            path = samples.path(index)
            assert files[stem + path.suffix] == path.read_bytes()
            assert (about["num_frames"], about["fps"]) == count_frames(path)
            seen.append(about["path"])
    assert keys == [f"{i:08d}" for i in range(13)]
    assert sorted(seen) == sorted(samples.paths)
    assert seen != sorted(seen)  # neighbours are of different classes
    again = written(samples, folder.parent / "again")
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_nothing_to_write(tmp_path: Path) -> None:
    none = Samples(tmp_path, paths=[], labels=[], class_names=["c"])
    with pytest.raises(ValueError, match=r"^samples: got none; need at least 1$"):
        write_shards({"": none}, tmp_path / "out", max_bytes=1)
    assert list(tmp_path.iterdir()) == []


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("names", [[""], ["train", "test"]])
@pytest.mark.parametrize("num_shards", [0, 1, 3, 6])
def test_an_interrupted_call_continues_after_its_complete_shards(
    names: list[str], num_shards: int, thirteen: Path, tmp_path: Path
) -> None:
    samples = counted(read_folders(thirteen))
    subsets = {name: samples.take(range(i, 13)) for i, name in enumerate(names)}
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    plans = write_shards(subsets, whole, max_bytes=10_240)
    assert sum(map(len, plans.values())) > 6
    num_written: list[int] = []

    def stop(done: int, total: int) -> None:
        if len(num_written) == num_shards:
            raise KeyboardInterrupt
        num_written.append(done)

    with pytest.raises(KeyboardInterrupt):
        write_shards(subsets, folder, max_bytes=10_240, wrote=stop)
    first = folder / names[0] / "000000.tar"
    before = first.stat().st_mtime_ns
    (first.parent / ".000001.tar.0123456789abcdef.partial").write_bytes(b"killed here")
    write_shards(subsets, folder, max_bytes=10_240)
    assert contents(folder) == contents(whole)
    assert first.stat().st_mtime_ns == before  # it was not written again
    with pytest.raises(ValueError, match=r"folder already exists; choose another name, or rem"):
        write_shards(subsets, folder, max_bytes=10_240)


def stopped(samples: Samples, folder: Path) -> None:
    """Leaves two shards in the folder."""

    def stop(done: int, total: int) -> None:
        if (folder / "000001.tar").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards({"": samples}, folder, max_bytes=10_240, wrote=stop)


@pytest.mark.parametrize("change", ["video", "size", "label", "count", "missing"])
def test_unfinished_shards_of_other_videos_are_refused(
    change: str, thirteen: Path, tmp_path: Path
) -> None:
    samples, folder = counted(read_folders(thirteen)), tmp_path / "folder"
    stopped(samples, folder)
    before = contents(folder)
    if change == "video":
        samples.path(3).write_bytes(samples.path(3).read_bytes())
    if change == "label":
        samples.labels[3] = 1 - samples.labels[3]
    if change == "count":
        samples.num_frames[3] += 1
    if change == "missing":
        samples = samples.take(range(12))
    message = r"folder holds unfinished shards of other videos, or of another size; choose another"
    with pytest.raises(ValueError, match=message):
        write_shards({"": samples}, folder, max_bytes=8_192 if change == "size" else 10_240)
    assert contents(folder) == before


def test_a_video_that_changes_while_it_is_written(
    thirteen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, read = counted(read_folders(thirteen)), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"x" * 20_000)
    with pytest.raises(ValueError, match=r"^a video of 000000\.tar changed while it was written; "):
        write_shards({"": samples}, tmp_path / "a", max_bytes=10_240)
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path / "gone"))
    with pytest.raises(ValueError, match=r"\.mp4 cannot be read: Not a directory$"):
        write_shards({"": samples}, tmp_path / "b", max_bytes=10_240)
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_video_in_memory_decodes_as_its_file(decoder: Any, thirteen: Path) -> None:
    for name in ("left/01.mp4", "left/03.mkv"):
        video = VideoBytes("name", (thirteen / name).read_bytes())
        assert count_frames(video) == count_frames(thirteen / name)
        wanted = decode(thirteen / name, [7, 2, 2], decoder=decoder)
        assert torch.equal(decode(video, [7, 2, 2], decoder=decoder), wanted)
    with pytest.raises(DecodeError, match=r"^name: the file is empty \(0 bytes\)$"):
        decode(VideoBytes("name", b""), [0])
    with pytest.raises(DecodeError, match=r"^name: cannot be opened as a video: "):
        decode(VideoBytes("name", b"no video"), [0])


def test_shards_give_the_samples_of_their_files(thirteen: Path, folder: Path) -> None:
    """A sample has the pixels of its file, as loaded from a list in the order of the shards."""
    streamed = loader(folder, shuffle=False, batch_size=13)
    (batch,) = streamed.epoch(0)
    paths = [json.loads(text)["path"] for text in texts(folder)]
    samples = read_folders(thirteen)
    places = [list(samples.paths).index(path) for path in paths]
    listed = train_set(
        Samples(
            thirteen, paths=paths, labels=samples.labels[places], class_names=samples.class_names
        )
    )
    assert torch.equal(batch.frames, torch.stack([listed[0, i].frames for i in range(13)]))
    assert batch.labels.tolist() == samples.labels[places].tolist()
    assert batch.indices.tolist() == list(range(13))
    assert torch.equal(streamed.dataset[0, 7].frames, batch.frames[7])
    assert str(streamed.dataset.samples.path(0)) == "000000.tar/00000000"


def texts(folder: Path) -> list[bytes]:
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [tar.extractfile(m).read() for m in tar if m.name.endswith("json")]  # type: ignore[union-attr]
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # on fewer cores
def test_resumed_inside_an_epoch_to_the_bit_with_0_and_3_workers(folder: Path) -> None:
    alone, three = loader(folder), loader(folder, num_workers=3)
    for epoch in (0, 1):
        whole = list(alone.epoch(epoch))
        assert sorted(torch.cat([b.indices for b in whole]).tolist()) == list(range(13))
        assert same(iter(whole), three.epoch(epoch))
    for skip in (1, 4, 7):
        assert len(whole[skip:]) == 7 - skip
        assert same(iter(whole[skip:]), loader(folder).epoch(1, skip_batches=skip))
        assert same(iter(whole[skip:]), three.epoch(1, skip_batches=skip))
    next(three.epoch(0))  # and left
    assert same(iter(whole), three.epoch(1))


def test_shards_that_were_consumed_are_not_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "BUFFER", 1)
    opened: list[str] = []
    read = shards_module.table.read_shard

    def noting(url: str, first: int, num_classes: int) -> Iterator[VideoBytes]:
        opened.append(Path(url).name)
        return read(url, first, num_classes)

    monkeypatch.setattr(shards_module.table, "read_shard", noting)
    list(loader(folder).epoch(0))
    names, opened[:] = opened.copy(), []
    assert sorted(names) == sorted(path.name for path in folder.glob("*.tar"))
    list(loader(folder).epoch(0, skip_batches=5))
    assert opened == names[-len(opened) :]
    assert len(opened) < len(names)
    assert names != sorted(names)  # their order is drawn


def table(*counts: int) -> Shards:
    first = np.cumsum([0, *counts])[:-1]
    return Shards(
        tuple(f"{i:06d}.tar" for i in range(len(counts))), np.array(counts), first, ("c",)
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_order(world_size: int) -> None:
    shards = table(300, 1, 250, 400, 349)
    drawn = [shards.order(torch.Generator().manual_seed(s), world_size) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(drawn[2]) == list(range(1300))
    listed = shards.order(None, world_size)
    parts = [listed[rank::world_size] for rank in range(world_size)]
    assert [*chain(*parts)] == list(range(1300))  # stretches, one after the other
    which = torch.randperm(5, generator=torch.Generator().manual_seed(1)).tolist()
    stream = np.concatenate([shards.firsts[s] + np.arange(shards.counts[s]) for s in which])
    for rank, part in enumerate(np.array_split(stream, world_size)):
        mine = drawn[2][rank::world_size]
        assert sorted(mine) == sorted(part)
        place = {index: i for i, index in enumerate(part.tolist())}
        late = [i - place[index] for i, index in enumerate(mine)]
        assert 100 < max(late) <= BUFFER


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_samples_exactly(world_size: int, folder: Path) -> None:
    def of_rank(rank: int, **kwargs: Any) -> ClipLoader:
        return loader(folder, rank=rank, world_size=world_size, **kwargs)

    tested = [of_rank(rank, shuffle=False) for rank in range(world_size)]
    seen = [torch.cat([b.indices for b in one.epoch(0)]).tolist() for one in tested]
    assert sorted([*chain(*seen)]) == list(range(13))
    assert max(map(len, seen)) - min(map(len, seen)) <= 1
    trained = [of_rank(rank) for rank in range(world_size)]
    assert len({len(one) for one in trained}) == 1
    for epoch in (0, 1):
        seen = [torch.cat([b.indices for b in one.epoch(epoch)]).tolist() for one in trained]
        together = [*chain(*seen)]
        assert len(set(together)) == len(together) > 13 - world_size


def test_patterns_pipes_and_urls(folder: Path) -> None:
    last = sorted(folder.glob("*.tar"))[-1].stem
    whole = list(loader(folder).epoch(0))
    pattern = f"{{000000..{last}}}.tar"
    for root, split in (
        (folder.parent, "shards"),
        (folder, pattern),
        ("anywhere", f"{folder}/{pattern}"),
        ("anywhere", f"pipe:cat {folder}/{pattern}"),
        ("anywhere", f"file:{folder}/{pattern}"),
        (f"file:{folder.parent}", "shards"),
    ):
        assert same(iter(whole), loader(root, split).epoch(0)), split  # type: ignore[arg-type]
    some = open_shards(str(folder), f"{{000001..{last}}}.tar")
    assert len(some) == 13 - int(open_shards(str(folder), ".").counts[0])
    (first, *_) = some.read([0])
    assert isinstance(first, VideoBytes)
    assert first.name.startswith(f"000001.tar/{some.names[0]:08d} (")


def cut(folder: Path, share: float) -> tuple[str, int]:
    """Truncates the second shard; returns its name and its number of samples."""
    path = folder / "000001.tar"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return str(path), int(open_shards(str(folder), ".").counts[1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_cut_short(num_workers: int, folder: Path) -> None:
    whole = list(loader(folder, shuffle=False).epoch(0))
    path, count = cut(folder, 0.55)
    with pytest.raises(
        DecodeError,
        match=rf"^{re.escape(path)}: the shard gives (\d) of its {count} samples \(.+\); "
        rf"the last good one: 000001\.tar/\d{{8}} \(.+\); on_error=skip continues without it$",
    ):
        list(loader(folder, shuffle=False, num_workers=num_workers).epoch(0))
    batches = list(loader(folder, shuffle=False, on_error="skip", num_workers=num_workers).epoch(0))
    failures = [failure for batch in batches for failure in batch.failures]
    seen = torch.cat([batch.indices for batch in batches]).tolist()
    assert 0 < len(failures) < count
    assert sorted([*seen, *(failure.index for failure in failures)]) == list(range(13))
    assert {failure.path for failure in failures} == {path}
    frames = torch.cat([batch.frames for batch in whole])
    assert torch.equal(torch.cat([batch.frames for batch in batches]), frames[seen])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.unlink(), r"\(No such file or directory\); the last good one: none$"),
        (lambda path: path.write_bytes(b""), r"gives 0 of its \d samples \(empty file\)"),
        (lambda path: path.write_bytes(b"x" * 2000), r"gives 0 of its \d samples \(.+\)"),
        (
            lambda path: path.write_bytes((path.parent / "000000.tar").read_bytes()),
            r"\(got sample 00000000 with cls, json, mp4; need 0000000\d with a video, cls ",
        ),
        (lambda path: relabel(path, b"2"), r"\(0000000\d: got label 2; need 0 to 1\)"),
        (lambda path: relabel(path, b"x"), r"\(invalid literal for int"),
        (lambda path: relabel(path, None), r"\(got sample 0000000\d with json, mp4; need"),
    ],
)
def test_other_damage(damage: Any, problem: str, folder: Path) -> None:
    damage(folder / "000001.tar")
    shards = open_shards(str(folder), ".")
    wanted = range(int(shards.firsts[1]), int(shards.firsts[2]))
    for found in shards.read(list(wanted)):
        assert not isinstance(found, VideoBytes)
        assert found.path.endswith("/000001.tar")
        assert re.search(problem, found.reason)
    (after,) = shards.read([int(shards.firsts[2])])
    assert isinstance(after, VideoBytes)


def relabel(path: Path, label: bytes | None) -> None:
    """Writes the shard again with another label, or none."""
    with tarfile.open(path) as tar:
        files = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    writer = import_webdataset().TarWriter(str(path), encoder=False)
    grouped: dict[str, dict[str, Any]] = {}
    for name, data in files:
        stem, _, suffix = name.partition(".")
        grouped.setdefault(stem, {"__key__": stem})[suffix] = data
    for sample in grouped.values():
        writer.write({**{k: v for k, v in sample.items() if k != "cls"}, **(
            {"cls": label} if label is not None else {})})  # fmt: skip
    writer.close()


def test_a_pipe_that_fails(folder: Path) -> None:
    size = folder / "size"
    size.write_text("1000000")
    command = f"pipe:test -s {size} && cat {folder}/000000.tar | head -c $(cat {size})"
    shards = open_shards("", command)
    assert all(isinstance(video, VideoBytes) for video in shards.read(range(len(shards))))
    for text, problem in (("3000", "unexpected end of data"), ("", "empty file|exit code 1")):
        size.write_text(text)
        *_, last = shards.read(range(len(shards)))
        assert not isinstance(last, VideoBytes)
        assert re.search(rf"gives 0 of its \d samples \(.*({problem})\)", last.reason)
    ended = r"none/shards\.json cannot be read \(the command that reads it ended with exit code 1\)"
    with pytest.raises(ValueError, match=ended):
        open_shards("", f"pipe:cat {folder}/none/000000.tar")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_command_of_an_abandoned_epoch_ends(
    num_workers: int, thirteen: Path, tmp_path: Path
) -> None:
    """It has more to write than a pipe holds, and ends when nobody reads."""
    one = written(read_folders(thirteen), tmp_path / "one", max_bytes=10**7) / "000000.tar"
    noted = tmp_path / "process"
    command = f"pipe:echo $$ > {noted}; exec cat {one} /dev/zero"
    shards = Shards((command,), np.array([13]), np.array([0]), ("left", "right"))
    dataset = train_set(shards, make=ShardDataset)
    batches = ClipLoader(dataset, batch_size=1, shuffle=False, num_workers=num_workers)
    epoch = batches.epoch(0)
    next(epoch)
    process = Path(f"/proc/{noted.read_text().strip()}")
    assert process.exists()
    epoch.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 20
    while process.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not process.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"shards.json cannot be read \(No such file or directory\); copy it together"),
        ("[]", r"shards.json is not a list of shards \("),
        ('{"class_names": ["a"]}', r"shards.json is not a list of shards \('shards'\)$"),
        ('{"class_names": ["a"], "shards": []}', "lists no class, no shard, or an empty shard"),
        (
            '{"class_names": ["a"], "shards": [{"name": "000001.tar", "num_samples": 2}]}',
            r"shards\.json does not list 000000\.tar; it lists 1 shards, 000001\.tar to 000001",
        ),
    ],
)
def test_tables(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / TABLE).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_shards(str(tmp_path), "000000.tar")


def test_without_webdataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    import_webdataset.cache_clear()
    with pytest.raises(ImportError, match=r"webdataset; install the extra: pip install 'videoattn"):
        open_shards("a", "b")
    import_webdataset.cache_clear()


def test_reading_ahead() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    items = _ahead(numbers(), 3)
    assert [next(items), next(items)] == [0, 1]
    items.close()  # type: ignore[attr-defined]
    assert len(made) <= 2 + 3 + 2

    def failing() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    items = _ahead(failing(), 3)
    assert next(items) == 1
    with pytest.raises(OSError, match=r"^gone$"):
        next(items)
    assert list(_ahead(iter(range(20)), 3)) == list(range(20))
