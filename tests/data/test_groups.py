"""Group starts: with an index, an AVI is decoded from the nearest group of pictures."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.data.conftest import MakeClip, decode_all
from tests.data.test_dataset import train_set
from videoattn.data.decode import Video, decode
from videoattn.data.decode.packets import GroupStarts
from videoattn.data.lists import read_folders
from videoattn.data.prepare.index import (
    INDEX_NAME,
    find_group_starts,
    read_index,
    write_index,
)
from videoattn.data.prepare.verify import describe

NUM_FRAMES, GROUP = 36, 12
SIZE = (64, 96)
EMPTY_PICTURE = b"\0\0\1\xb6" + bytes([0b01010000, 0b01001111])  # MPEG-4: nothing is coded


def encoded(path: Path, **options: str) -> Path:
    """A moving texture: no frame can be predicted from the previous one."""
    texture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"g": str(GROUP), "sc_threshold": "1000000000", **options}
        stream = container.add_stream("mpeg4", rate=Fraction(25), options=options)
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for i in range(NUM_FRAMES):
            image = np.ascontiguousarray(np.roll(texture, 3 * i, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def starts_of(path: Path) -> GroupStarts:
    found = np.array(find_group_starts(path), np.int64).reshape(-1, 2)
    return GroupStarts(path.stat().st_size, *found.T)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the packets that are sent to decoders."""
    count = [0]
    feed = Video.feed

    def counting(video: Video, packet: av.Packet | None) -> list[av.VideoFrame]:
        count[0] += packet is not None
        return feed(video, packet)

    monkeypatch.setattr(Video, "feed", counting)
    return count


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ({}, [12, 24]),
        ({"bf": "2"}, [12, 24, 35]),
        # FFmpeg times interlaced fields by the first B-frame that it decodes.
        ({"bf": "2", "flags": "+ilme+ildct"}, [35]),
    ],
)
def test_groups_before_the_frame_are_skipped(
    options: dict[str, str], frames: list[int], tmp_path: Path, fed: list[int]
) -> None:
    path = encoded(tmp_path / "a.avi", **options)
    every, starts = decode_all(path), starts_of(path)
    assert starts.frames.tolist() == frames
    for wanted in (*([i] for i in range(NUM_FRAMES)), [35, 13], [1, 11, 12], [0, 30, 31], [24, 2]):
        assert torch.equal(decode(path, wanted, starts=starts), every[wanted]), wanted
    if 24 not in frames:
        return
    fed[0] = 0
    decode(path, [25], starts=starts)
    assert fed[0] <= 5
    fed[0] = 0
    decode(path, [1, 26], starts=starts)
    assert fed[0] <= 11


def test_packets_without_a_frame_do_not_count(tmp_path: Path) -> None:
    source, path = encoded(tmp_path / "a.avi"), tmp_path / "b.avi"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        number = 0
        for i, packet in enumerate(p for p in old.demux(video=0) if p.size):
            for data in [bytes(packet), EMPTY_PICTURE][: 1 + (i % 5 == 3)]:
                made = av.Packet(data)
                made.stream, made.time_base = stream, packet.time_base
                made.pts = made.dts = number
                made.is_keyframe = packet.is_keyframe and data != EMPTY_PICTURE
                new.mux(made)
                number += 1
    starts = starts_of(path)
    assert starts.frames.tolist() == [12, 24]
    assert (starts.packets > starts.frames).all()
    every = decode_all(source)
    for wanted in ([2], [17], [30, 33], [12, 35]):
        assert torch.equal(decode(path, wanted, starts=starts), every[wanted])


def test_a_file_that_changed_is_decoded_from_the_start(tmp_path: Path, fed: list[int]) -> None:
    path = encoded(tmp_path / "a.avi")
    every, starts = decode_all(path), starts_of(path)
    fed[0] = 0
    changed = starts._replace(num_bytes=starts.num_bytes + 1)
    assert torch.equal(decode(path, [30], starts=changed), every[[30]])
    assert fed[0] >= 31
    wrong = starts._replace(packets=starts.packets + NUM_FRAMES)
    assert torch.equal(decode(path, [30], starts=wrong), every[[30]])


def test_damaged_files_have_no_starts(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.avi")
    data = bytearray(path.read_bytes())
    at = data.index(b"movi") + 3000
    data[at : at + 2000] = bytes(2000)
    path.write_bytes(data)
    assert find_group_starts(path) == []


def test_through_the_index_to_the_dataset(
    make_clip: MakeClip, tmp_path: Path, fed: list[int]
) -> None:
    root = tmp_path / "root"
    encoded(root / "c" / "b.avi")
    encoded(root / "c" / "d.avi", g="6")
    make_clip("root/c/a.mp4", 20)
    (root / "c" / "e.avi").write_bytes(b"no video")
    plain = [train_set(read_folders(root), on_error="skip")[epoch, 1] for epoch in range(8)]
    names = ["c/d.avi", "c/a.mp4", "c/e.avi", "c/b.avi"]
    records = [
        {"path": name, "bytes": (root / name).stat().st_size, **describe(root / name)}
        for name in names
    ]
    assert records[1]["starts"] == []
    write_index(root, records)
    index = read_index(root)
    assert index is not None
    found = {name: index.starts.get(name) for name in sorted([*names, "c/none.avi", "z"])}
    assert {name for name, starts in found.items() if starts} == {"c/b.avi", "c/d.avi"}
    assert found["c/b.avi"].frames.tolist() == [12, 24]
    assert found["c/d.avi"].frames.tolist() == [6, 12, 18, 24, 30]
    fed[0] = 0
    dataset = train_set(read_folders(root), on_error="skip")
    indexed = [dataset[epoch, 1] for epoch in range(8)]
    assert fed[0] < 8 * NUM_FRAMES
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(plain, indexed, strict=True))


def test_an_index_without_starts_loads(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.avi")
    write_index(tmp_path, [{"path": "a.avi", "bytes": 1, **describe(path)}])
    with np.load(tmp_path / INDEX_NAME) as arrays:
        new = dict(arrays)
    old = {name: new[name] for name in new if not name.startswith(("start", "file"))}
    np.savez(tmp_path / INDEX_NAME, **old)
    index = read_index(tmp_path)
    assert index is not None
    assert not index.starts
    assert index.num_frames.tolist() == [NUM_FRAMES]
    np.savez(tmp_path / INDEX_NAME, **{**new, "start_frames": new["start_frames"][:1]})
    with pytest.raises(ValueError, match=r"is damaged: its arrays disagree; delete it"):
        read_index(tmp_path)


def test_real_files(real_data: Path) -> None:
    """Clips of every AVI among the fixtures are the frames of the whole file."""
    found = 0
    for path in sorted(real_data.glob("fixtures/*/**/*.avi")):
        if path.stat().st_size > 4_000_000 or path.parent.name == "derived_truncated":
            continue
        starts = starts_of(path)
        if not len(starts.frames):
            continue
        found += 1
        every = decode_all(path)
        generator = np.random.default_rng(0)
        for size in (1, 3, 8):
            wanted = generator.integers(0, len(every), size)
            assert torch.equal(decode(path, wanted, starts=starts), every[torch.from_numpy(wanted)])
    assert found >= 20
