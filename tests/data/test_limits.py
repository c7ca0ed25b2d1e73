"""Small files that would take much memory or never end are refused in one line."""

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.data.conftest import MakeClip
from tests.data.test_index import indexed
from videoattn.data.decode import DecodeError, count_frames, decode
from videoattn.data.decode.source import FrameFolder, VideoBytes
from videoattn.data.lists import Samples
from videoattn.data.lists.files import all_videos
from videoattn.data.prepare.index import INDEX_NAME, read_index, write_index
from videoattn.data.prepare.reencode import Reencode, reencode, unfinished_name
from videoattn.data.prepare.verify import Journal, verify_folder
from videoattn.data.shards import open_shards
from videoattn.data.shards import write as write_module
from videoattn.data.shards.table import MAX_FILE_BYTES, TABLE
from videoattn.data.shards.write import write_shards

pytestmark = pytest.mark.usefixtures("limits")


def table(folder: Path, content: str | dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / TABLE).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def sizes(*counts: Any) -> dict[str, Any]:
    names = [f"{number:06d}.tar" for number in range(len(counts))]
    shards = [{"name": n, "num_samples": c} for n, c in zip(names, counts, strict=True)]
    return {"class_names": ["a"], "shards": shards}


@pytest.mark.parametrize("counts", [(10**12,), (10**7, 1), (5, 2**62, 2**62), (10**40,)])
def test_shards_of_more_samples_than_the_limit(counts: tuple[int, ...], tmp_path: Path) -> None:
    table(tmp_path, sizes(*counts))
    with pytest.raises(ValueError, match=r"shards\.json lists [\d,]+ samples; the limit is 10,000"):
        open_shards(str(tmp_path), ".")


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        json.dumps(sizes(1e300)).replace("1e+300", "1e999"),
        json.dumps(sizes("x")),
        '{"class_names": 7, "shards": []}',
    ],
)
def test_tables_that_are_not_lists_of_shards(content: str, tmp_path: Path) -> None:
    table(tmp_path, content)
    with pytest.raises(ValueError, match=r"shards\.json is not a list of shards \(") as raised:
        open_shards(str(tmp_path), ".")
    assert "\n" not in str(raised.value)


def test_a_table_larger_than_the_limit(tmp_path: Path) -> None:
    table(tmp_path, sizes(1))
    with (tmp_path / TABLE).open("ab") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError, match=r"is larger than the limit of 67,108,864 bytes"):
        open_shards(str(tmp_path), ".")


@pytest.mark.parametrize(
    "split",
    [
        "{000000000..999999999}.tar",
        "{0..999}/{0..999}.tar",
        "{9999999..0}.tar",
        "{a,b}/" * 17 + "{0..1}.tar",
        "pipe:cat {0..9}{0..9}{0..9}{0..9}{0..9}{0..9}.tar",
    ],
)
def test_patterns_of_more_shards_than_the_limit(split: str, tmp_path: Path) -> None:
    table(tmp_path, sizes(1))
    with pytest.raises(ValueError, match=r"names more shards than the limit of 100,000"):
        open_shards(str(tmp_path), split)


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(video: bytes = b"video", about: Any = None) -> dict[str, bytes]:
    about = {"path": "a.mp4", "num_frames": 3, "fps": 25.0} if about is None else about
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return {"00000000.mp4": video, "00000000.cls": b"0", "00000000.json": text}


def first_of(folder: Path) -> Any:
    return next(open_shards(str(folder), ".").read([0]))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_shard_is_refused(mode: str, tmp_path: Path) -> None:
    folder = table(tmp_path / "shards", sizes(1))
    tar_of(folder / "000000.tar", sample())
    assert isinstance(first_of(folder), VideoBytes)
    tar_of(folder / "000000.tar", sample(bytes(20_000_000)), mode)
    assert (folder / "000000.tar").stat().st_size < 100_000
    assert "gives 0 of its 1 samples" in first_of(folder).reason


@pytest.mark.parametrize("size", [2**30 + 1, 2**40])
def test_a_file_of_a_shard_larger_than_the_limit(size: int, tmp_path: Path) -> None:
    folder = table(tmp_path / "shards", sizes(1))
    info = tarfile.TarInfo("00000000.mp4")
    info.size = size
    (folder / "000000.tar").write_bytes(info.tobuf() + bytes(10_240))
    reason = first_of(folder).reason
    assert f"00000000.mp4 has {size:,} bytes; the limit is 1,073,741,824" in reason


@pytest.mark.parametrize("size", [10**9, 2**35])
def test_a_sparse_file_of_a_shard(size: int, tmp_path: Path) -> None:
    """A header of 512 bytes stands for any number of zeros."""
    folder = table(tmp_path / "shards", sizes(1))
    info = tarfile.TarInfo("00000000.mp4")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:482] = bytes(96)
    header[483:495] = b"%011o\0" % size
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header[:512])
    (folder / "000000.tar").write_bytes(header + bytes(10_240))
    assert "00000000.mp4 is a sparse file" in first_of(folder).reason


@pytest.mark.parametrize(
    "about",
    [
        b"[" * 100_000,
        {"num_frames": 3, "fps": 25.0},
        [1, 2],
        {"path": "a", "num_frames": None, "fps": 1},
        {"path": "a", "num_frames": -1, "fps": 1},
        {"path": "a", "num_frames": 1, "fps": float("nan")},
        {"path": "a", "num_frames": float("inf"), "fps": 1},
    ],
    ids=str,
)
def test_a_damaged_description_is_a_failure(about: Any, tmp_path: Path) -> None:
    folder = table(tmp_path / "shards", sizes(1))
    tar_of(folder / "000000.tar", sample(about=about))
    reason = first_of(folder).reason
    assert "00000000.json" in reason
    assert "\n" not in reason


@pytest.mark.parametrize("limit", [10, 1000])
def test_a_video_too_large_for_a_shard_is_not_written(
    limit: int, make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_clip("clips/a.mp4")
    samples = Samples(
        tmp_path / "clips", paths=["a.mp4"], labels=[0], class_names=("a",),
        num_frames=np.array([12]), fps=np.array([25.0]),
    )  # fmt: skip
    monkeypatch.setattr(write_module, "MAX_FILE_BYTES", limit)
    with pytest.raises(ValueError, match=rf"a\.mp4 has [\d,]+ bytes; the limit .* is {limit:,}; "):
        write_shards({"": samples}, tmp_path / "out", max_bytes=10**9)
    assert MAX_FILE_BYTES == 2**30


def npz(path: Path, arrays: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in arrays.items():
            archive.writestr(f"{name}.npy", data)


def npy(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """Returns an array as bytes, with another shape in the header."""
    file = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape or array.shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def columns(root: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(indexed(root, {"a.mp4": 3, "b.mp4": 4}) / INDEX_NAME) as archive:
        return {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("name", ["paths", "num_frames", "fps"])
def test_an_index_larger_than_the_limit_when_unpacked(name: str, tmp_path: Path) -> None:
    arrays = columns(tmp_path)
    npz(tmp_path / INDEX_NAME, arrays)
    assert read_index(tmp_path) is not None
    with zipfile.ZipFile(tmp_path / INDEX_NAME, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, data in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                member.write(data)
                for _ in range(33 if key == name else 0):
                    member.write(bytes(2**24))
    assert (tmp_path / INDEX_NAME).stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"it holds [\d,]+ bytes; the limit is 536,870,912"):
        read_index(tmp_path)


@pytest.mark.parametrize("shape", [(10**13,), (2**62,), (10**6, 10**6), (2**70,), (-1,)])
@pytest.mark.parametrize("name", ["paths", "fps"])
def test_an_index_whose_header_states_other_sizes(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    arrays = columns(tmp_path)
    arrays[name] = npy(np.zeros(4), shape)
    npz(tmp_path / INDEX_NAME, arrays)
    with pytest.raises(ValueError, match=r"is damaged or not an index|its arrays disagree"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("paths", np.uint8(3)),
        ("paths", np.zeros((2, 5), np.uint8)),
        ("ends", np.int64(4)),
        ("ends", np.array([-3, 10])),
        ("ends", np.array([11, 10])),
        ("fps", np.array([[1.0, 2.0]])),
    ],
)
def test_an_index_of_other_shapes(name: str, array: Any, tmp_path: Path) -> None:
    arrays = columns(tmp_path)
    npz(tmp_path / INDEX_NAME, {**arrays, name: npy(np.asarray(array))})
    with pytest.raises(ValueError, match=r"is damaged"):
        read_index(tmp_path)


def test_group_starts_of_other_shapes(tmp_path: Path) -> None:
    arrays = columns(tmp_path)
    one = npy(np.array([1]))
    for ends in (np.array([-1, 1]), np.int64(1), np.array([1, 0])):
        damaged = {"start_ends": npy(np.asarray(ends)), "start_packets": one, "start_frames": one}
        npz(tmp_path / INDEX_NAME, {**arrays, **damaged})
        with pytest.raises(ValueError, match=r"its arrays disagree"):
            read_index(tmp_path)


@pytest.mark.parametrize(
    "row",
    ["../secret.mp4", "a/../../secret.mp4", "/etc/secret.mp4", "a/./../../b.mp4", "..//b.mp4"],
)
def test_rows_of_an_index_that_leave_the_root(row: str, tmp_path: Path) -> None:
    indexed(tmp_path, {row: 3, "a/inside.mp4": 4})
    assert all_videos(tmp_path).paths == ["a/inside.mp4"]


@pytest.mark.parametrize("name", ["index", "unfinished", "journal"])
def test_no_link_of_a_dataset_is_written_through(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    root = tmp_path / "root"
    root.mkdir()
    link = {
        "index": root / INDEX_NAME,
        "unfinished": root / "videoattn_index.unfinished.npz",
        "journal": root / "videoattn_index.jsonl",
    }[name]
    link.symlink_to(victim)
    if name == "journal":
        for about in ({"indexed": 1}, {}):
            with pytest.raises(ValueError, match=r"videoattn_index\.jsonl is a link; remove it"):
                Journal(link, about)
    else:
        indexed(root, {"a.mp4": 3})
        assert not (root / INDEX_NAME).is_symlink()
        found = read_index(root)
        assert found is not None
        assert write_index(root, [{"path": "a.mp4"}]) == root / INDEX_NAME
    assert victim.read_text() == "mine\n"


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"path":' * 50_000, "7\n8\n", '{"a": 1}\n[]\n']
)
def test_a_damaged_journal(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(content + "\n")
    with pytest.raises(ValueError, match=r"x\.jsonl (is damaged|was begun with)"):
        Journal(tmp_path / "x.jsonl", {"indexed": 1})


@pytest.mark.parametrize(
    "values",
    [
        {"path": 7},
        {"path": "a", "num_frames": "many"},
        {"path": "a", "num_frames": -1},
        {"path": "a", "height": 10**30},
        {"path": "a", "fps": float("nan")},
        {"path": "a", "fps": float("inf")},
        {"path": "a", "error": 7},
        {"path": "a", "starts": {"a": 1}},
        {"path": "a", "starts": [1, 2, 3]},
        {"path": "a", "starts": [[1, 2], [3]]},
        {"path": "a", "starts": [[1, 10**40]]},
        {"path": "a", "starts": [["x", "y"]]},
    ],
    ids=str,
)
def test_records_of_a_journal_have_the_types_that_are_written(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """A journal may have come with the dataset."""
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"indexed": 1}}\n{{"path": "b", "num_frames": 3}}\n{json.dumps(values)}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl is damaged \(") as raised:
        Journal(path, {"indexed": 1})
    assert "\n" not in str(raised.value)
    path.write_text('{"indexed": 1}\n{"path": "b", "num_frames": 3, "starts": [[4, 4]]}\n')
    journal = Journal(path, {"indexed": 1})
    journal.close()
    assert journal.records["b"]["num_frames"] == 3


def test_copies_and_shards_do_not_follow_links_of_unfinished_files(
    make_clip: MakeClip, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    clip, out = make_clip("clips/a.mp4"), tmp_path / "out/a.mp4"
    out.parent.mkdir()
    unfinished_name(out).symlink_to(victim)
    assert reencode(Reencode(clip, out, 32, 4))["num_frames"] == 12
    assert not out.is_symlink()
    (tmp_path / "kept").mkdir()
    (tmp_path / "shards").symlink_to(tmp_path / "kept")
    samples = Samples(
        clip.parent, paths=["a.mp4"], labels=[0], class_names=("a",),
        num_frames=np.array([12]), fps=np.array([25.0]),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"shards is a link"):
        write_shards({"": samples}, tmp_path / "shards", max_bytes=10**9)
    (tmp_path / "kept/file").write_text("mine")
    with pytest.raises(ValueError, match=r"shards already exists"):
        write_shards({"": samples}, tmp_path / "shards", max_bytes=10**9)
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert victim.read_text() == (tmp_path / "kept/file").read_text() == "mine"


def png(width: int, height: int) -> bytes:
    """Returns the header of a picture, with one row of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )


def bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


@pytest.mark.parametrize("picture", [png, bmp])
@pytest.mark.parametrize(
    "size", [(100_000, 100_000), (13_000, 13_000), (10_000, 10_000), (8192, 8193)]
)
def test_a_picture_larger_than_the_limit(
    picture: Callable[[int, int], bytes], size: tuple[int, int], tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    (tmp_path / "1.png").write_bytes(picture(*size))
    with pytest.raises(DecodeError, match=r"1\.png.*limit (is|of) 67,108,864"):
        decode(FrameFolder(tmp_path, "{}.png"), [0])
    assert "67,108,864" in verify_folder((FrameFolder(tmp_path, "{}.png"), 1))["error"]
    assert not recwarn.list


def test_a_picture_of_8k(tmp_path: Path) -> None:
    PIL.Image.new("L", (7680, 4320)).save(tmp_path / "1.png")
    assert decode(FrameFolder(tmp_path, "{}.png"), [0]).shape == (1, 3, 4320, 7680)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) show\n%%EOF\n"


@pytest.mark.parametrize(
    "content", [EPS, b"P7\n" * 9, png(9, 9)[:40], b"GIF89a", b"II*\0" + b"\xff" * 40], ids=repr
)
def test_pictures_in_other_formats_or_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(content)
    with pytest.raises(DecodeError, match=r"1\.jpg is damaged: ") as raised:
        decode(FrameFolder(tmp_path, "{}.jpg"), [0])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "ppm", "gif"])
def test_pictures_in_the_usual_formats(suffix: str, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (9, 7), (80, 80, 80)).save(tmp_path / f"1.{suffix}")
    folder = FrameFolder(tmp_path, f"{{}}.{suffix}")
    assert count_frames(folder) == (1, 0.0)
    assert abs(float(decode(folder, [0]).float().mean()) - 80) < 3


@pytest.mark.parametrize("count", [12, 30])
def test_folders_that_link_to_each_other(count: int, tmp_path: Path) -> None:
    """There are more paths than anybody could list."""
    for i in range(count):
        (tmp_path / f"d{i}").mkdir()
        for j in range(count):
            (tmp_path / f"d{i}" / f"to{j}").symlink_to(tmp_path / f"d{j}")
    with (
        pytest.warns(UserWarning, match=r"links to a folder above it"),
        pytest.raises(ValueError, match=r"links lead to it in more than 100 ways; remove "),
    ):
        all_videos(tmp_path)


@pytest.mark.parametrize("count", [2, 50])
def test_several_links_to_one_folder(count: int, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mp4").touch()
    for i in range(count):
        (tmp_path / f"link{i}").symlink_to("real")
    assert len(all_videos(tmp_path).paths) == count + 1


@pytest.mark.parametrize("name", ["a\x1b]52;c;aGk=\x07", "b\x1b[2J"])
def test_control_characters_in_a_warning_are_visible(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(".")
    with pytest.warns(UserWarning, match=r"\\x1b") as caught:
        all_videos(tmp_path)
    assert "\x1b" not in str(caught[0].message)
