"""Lists of videos with several labels: lines of our own lists, and Charades."""

import inspect
from pathlib import Path

import pytest
import torch

from tests.data.conftest import MakeClip
from tests.data.test_annotations import touch
from tests.data.test_loader import dataset
from videoattn.data.classes import class_notes, class_sizes
from videoattn.data.lists import (
    LabelSets,
    ListError,
    Samples,
    parse_list,
    read_charades,
    read_frames,
    read_list,
)
from videoattn.data.loader import ClipLoader
from videoattn.data.shards.write import write_shards
from videoattn.data.transforms.augment import Mix
from videoattn.data.transforms.mirror import Mirror

Sets = list[tuple[int, ...]]


def sets(samples: Samples) -> Sets:
    assert samples.label_sets is not None
    assert (samples.labels == -1).all()
    return list(samples.label_sets)


@pytest.mark.parametrize(
    ("separator", "text", "expected"),
    [
        (" ", "a.mp4 0;2\nb.mp4 1\n", [(0, 2), (1,)]),
        (" ", "a.mp4 2; 0;0\nb.mp4\n", [(0, 2), ()]),
        (" ", "a.mp4 0,2\nb.mp4 1, 2\n", [(0, 2), (1, 2)]),
        (" ", "a.mp4\t0 2\nb.mp4  1\n", [(0, 2), (1,)]),
        (",", "a.mp4,0,2\nb.mp4,1;2\n", [(0, 2), (1, 2)]),
        ("|", "a.mp4|0;2\nb.mp4 | 1|2\n", [(0, 2), (1, 2)]),
        (" ", "take 2.mp4 0;1\nb.mp4 1\n", [(0, 1), (1,)]),
    ],
)
def test_numbers(separator: str, text: str, expected: Sets, tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "take 2.mp4")
    (tmp_path / "list").write_text(text)
    samples = read_list(tmp_path / "list", tmp_path, columns="path labels", separator=separator)
    assert sets(samples) == expected
    assert samples.class_names == tuple(map(str, range(max(map(max, filter(None, expected))) + 1)))
    assert sets(samples.take([1])) == expected[1:]
    assert samples.label(0) == expected[0]


@pytest.mark.parametrize(
    ("separator", "text"),
    [
        (" ", "a.mp4 run;jump\nb.mp4 sit\n"),
        (",", "a.mp4,run; jump\nb.mp4,sit\n"),
        ("\t", "a.mp4\tjump;run;jump\nb.mp4\tsit\n"),
    ],
)
def test_names(separator: str, text: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list").write_text(text)
    options = {"columns": "path labels", "separator": separator}
    samples = read_list(tmp_path / "list", tmp_path, **options)  # type: ignore[arg-type]
    assert samples.class_names == ("jump", "run", "sit")
    assert sets(samples) == [(0, 1), (2,)]
    names = ("sit", "fall", "run", "jump")
    samples = read_list(tmp_path / "list", tmp_path, class_names=names, **options)  # type: ignore[arg-type]
    assert samples.class_names == names
    assert sets(samples) == [(2, 3), (0,)]
    with pytest.raises(ListError, match=r"line 2: class 'sit' is not in the class list \(2 names"):
        parse_list(tmp_path / "list", ("run", "jump"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 0;3\n", r"list line 1: label 3 is out of range; allowed: 0 - 2$"),
        ("a.mp4 0\nb.mp4 -1;0\n", r"list line 2: label -1 is out of range; allowed: 0 - 2$"),
        ("a 0\nx\n", r"list line 2: got 'x'; expected 'path labels', e\.g\. 'a/b\.mp4 3;7'$"),
        ("a.mp4 0;1\n./a.mp4 2\n", r"list line 2: 'a\.mp4' was listed before, in line 1"),
        ("a.mp4 0;x\n", r"list line 1: class '0' is not in the class list"),
    ],
)
def test_errors(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(ListError, match=message):
        parse_list(tmp_path / "list", ("x", "y", "z"), columns="path labels")


@pytest.mark.parametrize("columns", ["path label", "path label ...", "path labels"])
def test_a_label_that_would_make_millions_of_classes(columns: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"a.mp4 0\nb.mp4 {10**17}\n")
    with pytest.raises(
        ListError, match=r"list line 2: label 1000+ is out of range; allowed: 0 - 99999$"
    ):
        parse_list(tmp_path / "list", columns=columns)  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", ["0;2", "0 2", "0,2"])
def test_folders_of_frames(labels: str, tmp_path: Path) -> None:
    touch(tmp_path, "my clips 7/a/img_00001.jpg", "b/img_00001.jpg")
    (tmp_path / "list").write_text(f"my clips 7/a 120 {labels}\nb 30 1\n")
    samples = read_frames(tmp_path / "list", tmp_path, columns="path frames labels")
    assert sets(samples) == [(0, 2), (1,)]
    assert samples.num_frames.tolist() == [120, 30]
    (tmp_path / "list").write_text("b 1\n")
    with pytest.raises(ListError, match=r"line 1: got 'b 1'; expected 'path frames labels', e\.g"):
        read_frames(tmp_path / "list", tmp_path, columns="path frames labels")


HEADER = "id,subject,scene,script,actions,length\n"


@pytest.fixture
def charades(tmp_path: Path) -> Path:
    touch(tmp_path, "Charades_v1_480/46GP8.mp4", "Charades_v1_480/N11GT.mp4",
          "Charades_v1_480/0IH69.mp4")  # fmt: skip
    (tmp_path / "Charades").mkdir()
    names = "".join(f"c{i:03d} Action number {i}\n" for i in range(157))
    (tmp_path / "Charades/Charades_v1_classes.txt").write_text(names)
    (tmp_path / "Charades/Charades_v1_train.csv").write_text(
        HEADER
        + '46GP8,HR43,Kitchen,"A person, cooks",c092 11.90 21.20;c147 0.00 12.60;c092 1.0 2.0,9\n'
        + "N11GT,0KZ7,Kitchen,Standing,c000 0.00 3.40,18\n"
        + "0IH69,6RE8,Bedroom,Nothing happens,,30\n"
    )
    return tmp_path


def test_charades(charades: Path) -> None:
    samples = read_charades(charades)
    assert list(samples.paths) == [f"Charades_v1_480/{n}.mp4" for n in ("46GP8", "N11GT", "0IH69")]
    assert sets(samples) == [(92, 147), (0,), ()]
    assert samples.class_names[92] == "Action number 92"
    assert len(samples.class_names) == 157


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,,,,c157 0.0 1.0,9", r"train\.csv line 2: label 157 is out of range; allowed: 0 - 156"),
        ("x,,,,92 0.0 1.0,9", r"line 2: got 'x,,,,92 0\.0 1\.0,9'; expected an id and actions, as"),
        (
            "x,,,,cook 0.0 1.0,9",
            r"line 2: got 'x,,,,cook .*; expected an id and actions, as in 'c0",
        ),
        ("x,,,c001 0.0 1.0", r"line 2: got 'x,,,c001 0\.0 1\.0'; expected an id"),
        (",,,,c001 0.0 1.0,9", r"line 2: got ',,,,c001 .*; expected an id"),
        ("x,,,,,9\nx,,,,,8", r"line 3: 'x' was listed before, in line 2; list each video once"),
    ],
)
def test_charades_errors(row: str, message: str, charades: Path) -> None:
    (charades / "Charades/Charades_v1_train.csv").write_text(f"{HEADER}{row}\n")
    with pytest.raises(ListError, match=message):
        read_charades(charades)


def test_files_of_charades_that_are_missing_or_others(charades: Path) -> None:
    with pytest.raises(ListError, match=r"^the Charades list of 'test' was not found; looked for "):
        read_charades(charades, "test")
    list_file = charades / "Charades/Charades_v1_train.csv"
    list_file.write_text("label,youtube_id\nrun,x\n")
    with pytest.raises(
        ListError, match=r"line 1: got 'label,youtube_id'; expected the columns id,"
    ):
        read_charades(charades)
    (charades / "Charades/Charades_v1_classes.txt").write_text("c000 a\nc002 b\n")
    with pytest.raises(ListError, match=r"line 2: got 'c002 b'; expected 'c001 Name of the class'"):
        read_charades(charades)
    (charades / "Charades/Charades_v1_classes.txt").unlink()
    with pytest.raises(ListError, match=r"^the Charades class list was not found; looked for "):
        read_charades(charades)


def test_arrays_that_workers_share() -> None:
    labels: Sets = [(3, 1), (), (2,), ()]
    packed = LabelSets.of(labels)
    assert (len(packed), list(packed), packed[3]) == (4, labels, ())
    assert list(packed.take([2, 0])) == [(2,), (3, 1)]
    assert packed.values.dtype == packed.ends.dtype == "int64"


def test_batches_have_a_one_for_every_label(make_clip: MakeClip, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make_clip(f"{name}.mp4", 16)
    labels: Sets = [(0, 3), (), (1,)]
    samples = Samples(
        tmp_path, paths=["a.mp4", "b.mp4", "c.mp4"], labels=LabelSets.of(labels), class_names="wxyz"
    )
    for num_workers in (0, 2):
        loader = ClipLoader(
            dataset(tmp_path, samples=samples), batch_size=2, shuffle=False, num_workers=num_workers
        )
        batches = list(loader.epoch(0))
        assert torch.cat([batch.labels for batch in batches]).tolist() == [
            [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0],
        ]  # fmt: skip
    (tmp_path / "a.mp4").write_bytes(b"")
    loader = ClipLoader(
        dataset(tmp_path, samples=samples, on_error="skip"), batch_size=1, shuffle=False
    )
    empty = next(iter(loader.epoch(0)))
    assert empty.labels.shape == (0, 4)


def test_counts_and_notes() -> None:
    samples = Samples(
        Path(), paths=list("abc"), labels=LabelSets.of([(0, 2), (), (2,)]), class_names="xyz"
    )
    assert samples.class_counts().tolist() == [1, 0, 2]
    assert class_sizes(samples) == ["videos per class: z 2, x 1, y 0"]
    assert class_notes(samples) == [
        "classes without a training video: 1 of 3, y; the others have 1 to 2"
    ]


def test_many_classes_are_abbreviated() -> None:
    labels = [k for k in range(20) for _ in range(k + 1)]
    names = [f"c{k}" for k in range(20)]
    samples = Samples(Path(), paths=map(str, labels), labels=labels, class_names=names)
    assert class_sizes(samples) == [
        "videos per class: median 10.5; most: c19 20, c18 19, c17 18; least: c2 3, c1 2, c0 1"
    ]
    unknown = Samples(Path(), paths=["a"], labels=[-1], class_names=names)
    assert class_sizes(unknown) == []


def test_mirroring_exchanges_labels() -> None:
    mirror = Mirror(1.0, ("turn left", "turn right", "sit"), {"turn left": "turn right"})
    assert mirror.label((0, 2)) == (1, 2)
    assert mirror.label(()) == ()


def test_mixed_targets_are_blended() -> None:
    video, target = torch.rand(2, 3, 2, 8, 8), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    torch.manual_seed(0)
    mixed, shares = Mix(3, mixup=1.0)(video, target)
    share = float(shares[0, 0])
    torch.testing.assert_close(shares, share * target + (1 - share) * target.flip(0))
    torch.testing.assert_close(mixed, share * video + (1 - share) * video.flip(0))
    same, plain = Mix(3)(video, target)
    assert torch.equal(same, video)
    assert torch.equal(plain, target)


def test_a_shard_stores_one_label(tmp_path: Path) -> None:
    unknown = Samples(tmp_path, paths=["a.mp4"], labels=[-1], class_names=["x", "y"])
    with pytest.raises(ValueError, match=r"^samples: have unknown labels \(-1\); a shard stores"):
        write_shards({"": unknown}, tmp_path / "shards", max_bytes=10**6)
    samples = Samples(
        tmp_path, paths=["a.mp4"], labels=LabelSets.of([(0, 1)]), class_names=["x", "y"]
    )
    with pytest.raises(ValueError, match=r"^samples: have several labels each; a shard stores one"):
        write_shards({"": samples}, tmp_path / "out", max_bytes=10**6)


def test_unknown_columns_are_listed(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a.mp4 0\n")
    parse = inspect.unwrap(parse_list)
    with pytest.raises(
        ValueError, match=r"columns: got 'labels'; choose from .*path frames labels"
    ):
        parse(tmp_path / "list", columns="labels")
