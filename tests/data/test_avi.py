"""AVI of MPEG-4: packets tell the frames, so that pictures that nobody needs are passed over."""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.data.conftest import MakeClip
from videoattn.data.decode import Block, DecodeError, count_frames, decode, frame_times, probe
from videoattn.data.decode.avi import _Layer, _Picture, _Pictures
from videoattn.data.decode.pyav import list_packets, read_from_start
from videoattn.data.decode.video import Encoded, Video
from videoattn.data.prepare.verify import describe

NUM_FRAMES, GROUP = 36, 12
SIZE = (64, 96)

VOP = b"\0\0\1\xb6"
B = 2
# P, no full second, marker, 5 bits of time, marker, not coded
EMPTY_PICTURE = VOP + bytes([0b01010000, 0b01001111])
STUFFING = b"\x7f"
MARKER, CODED = 0x40, 0x20  # in the second byte after the start code


Change = Callable[[int, bytes], list[bytes]]


def encoded(path: Path, options: dict[str, str] | None = None) -> Path:
    """A texture that moves: no picture of it tells what the one before does."""
    texture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        options = {"g": str(GROUP), "sc_threshold": "1000000000", **(options or {})}
        stream = container.add_stream("mpeg4", rate=Fraction(25), options=options)
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for i in range(NUM_FRAMES):
            image = np.ascontiguousarray(np.roll(texture, 3 * i, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return encoded(tmp_path / "clip.avi")


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Packets that decoders were given."""
    count = [0]
    feed = Video.feed

    def counting(video: Video, packet: av.Packet | None) -> list[av.VideoFrame]:
        count[0] += packet is not None
        return feed(video, packet)

    monkeypatch.setattr(Video, "feed", counting)
    return count


def rewritten(path: Path, change: Change) -> Path:
    """The same AVI, other packets: `change(number, packet)` are those that take its place."""
    out = path.with_name("rewritten.avi")
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        number = 0
        for i, packet in enumerate(p for p in source.demux(video=0) if p.size):
            for data in change(i, bytes(packet)):
                made = av.Packet(data)
                made.stream, made.time_base = stream, packet.time_base
                made.pts = made.dts = number
                made.is_keyframe = packet.is_keyframe
                target.mux(made)
                number += 1
    return out


def changed(number: int, change: Callable[[bytes], list[bytes]]) -> Change:
    return lambda i, data: change(data) if i == number else [data]


def without(bit: int, data: bytes) -> bytes:
    at = data.index(VOP) + 5
    assert data[at] & bit
    return data[:at] + bytes([data[at] & ~bit]) + data[at + 1 :]


def from_start(path: Path, wanted: list[int]) -> torch.Tensor:
    block = Block(len(wanted))
    read_from_start(path, np.array(wanted), block.put)
    return block.frames()


def listed(path: Path) -> bool:
    with Video(path) as video:
        return list_packets(video) is not None


def test_groups_are_passed_over(clip: Path, fed: list[int]) -> None:
    assert count_frames(clip) == (NUM_FRAMES, 25.0)
    assert fed == [0]
    assert frame_times(clip).tolist() == [i / 25 for i in range(NUM_FRAMES)]
    every = from_start(clip, list(range(NUM_FRAMES)))
    for wanted, packets in (([26], 3), ([1, 2], 3), ([35, 13], 2 + GROUP), ([24], 1)):
        for source in (clip, Encoded("clip.avi", clip.read_bytes())):
            fed[0] = 0
            assert torch.equal(decode(source, wanted), every[wanted])
            assert fed == [packets]
    fed[0] = 0
    assert describe(clip)["num_frames"] == NUM_FRAMES
    assert fed == [1]
    with pytest.raises(DecodeError, match=r"clip\.avi: frame 36 was asked for, but only 36 frames"):
        decode(clip, [36])


@pytest.mark.parametrize(
    "nothing",
    [
        pytest.param(EMPTY_PICTURE, id="not coded"),
        pytest.param(EMPTY_PICTURE + b"\xff" * 40, id="not coded, padded"),
        pytest.param(STUFFING, id="stuffing"),
    ],
)
def test_packets_without_a_frame_do_not_count(clip: Path, nothing: bytes, fed: list[int]) -> None:
    path = rewritten(clip, lambda i, data: [data, nothing] if i % 5 == 3 else [data])
    with Video(path) as video:
        assert len(list(video.packets())) > NUM_FRAMES
    assert count_frames(path)[0] == NUM_FRAMES
    assert fed == [0]
    assert probe(path).num_frames == NUM_FRAMES
    wanted = [2, 17, 30, 33]
    assert torch.equal(decode(path, wanted), from_start(clip, wanted))


def test_a_picture_that_became_uncoded_does_not_count(clip: Path) -> None:
    path = rewritten(clip, changed(7, lambda data: [without(CODED, data)]))
    assert listed(path)
    assert count_frames(path)[0] == probe(path).num_frames == NUM_FRAMES - 1
    assert torch.equal(decode(path, [26]), from_start(clip, [27]))


DOUBTFUL = {
    "two pictures": changed(7, lambda data: [data + data]),
    "cut short": changed(7, lambda data: [data[:6]]),
    "no picture": changed(7, lambda data: [b"\xff" * 40]),
    "no first key": changed(0, lambda data: []),
    "another type": changed(7, lambda data: [data[:4] + bytes([data[4] | 0x80]) + data[5:]]),
    "no marker": changed(7, lambda data: [without(MARKER, data)]),
    "an end that is not coded": changed(NUM_FRAMES - 1, lambda data: [data, EMPTY_PICTURE]),
    "other headers": changed(GROUP, lambda data: [b"\0\0\1\xb2other" + data]),
    "no quantiser": changed(7, lambda data: [data[:5] + bytes([data[5] & 0xF0, 0]) + data[7:]]),
}


def check_decoded_from_the_start(path: Path) -> None:
    assert not listed(path)
    count = probe(path).num_frames
    assert count_frames(path)[0] == count
    wanted = [2, count - 9, count - 1]
    assert torch.equal(decode(path, wanted), from_start(path, wanted))


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_does_not_tell_is_decoded_from_the_start(clip: Path, name: str) -> None:
    check_decoded_from_the_start(rewritten(clip, DOUBTFUL[name]))


def test_other_codecs_and_groups_of_b_pictures_are_not_told(
    make_clip: MakeClip, tmp_path: Path
) -> None:
    assert not listed(make_clip("h264.avi", 4))
    late = encoded(tmp_path / "late.avi", {"bf": "2"})
    assert not listed(late)
    assert count_frames(late)[0] == NUM_FRAMES


def kind_of(data: bytes) -> int:
    return data[data.index(VOP) + 4] >> 6


def pictures(path: Path) -> list[bytes]:
    """Without what precedes them: headers, and the groups' times."""
    with Video(path) as video:
        every = [bytes(packet) for packet in video.packets()]
    return [data[data.index(VOP) :] for data in every]


def pack(every: list[bytes]) -> list[bytes]:
    """As XviD does it: the first B-picture behind what it needs, each other one a packet late."""
    kinds = [*map(kind_of, every), -1]
    packets: list[bytes] = []
    for i, data in enumerate(every):
        if kinds[i] == B != kinds[i - 1]:
            packets[-1] += data
        else:
            packets.append(data)
        if kinds[i] == B != kinds[i + 1]:
            packets.append(EMPTY_PICTURE)
    return packets


def packed(
    folder: Path, change: Callable[[list[bytes]], list[bytes]] = list, name: bytes = b"DivX503b%dp",
    **options: str,
) -> Path:  # fmt: skip
    """An AVI of packed B-pictures, whose headers name who does so."""
    late = encoded(folder / "late.avi", {"bf": "2", "b_strategy": "0", **options})
    packets = change(pack(pictures(late)))
    data = rewritten(late, lambda i, _: packets if i == 0 else []).read_bytes()
    maker = re.search(rb"Lavc[\d.]+", data)
    assert maker
    number = 10 ** (len(maker[0]) - len(name % 0))  # so many digits that the length is the same
    path = folder / "packed.avi"
    path.write_bytes(data.replace(maker[0], name % number))
    return path


def test_packed_b_pictures_are_taken_apart(tmp_path: Path, fed: list[int]) -> None:
    path = packed(tmp_path)
    assert listed(path)
    assert (count_frames(path)[0], fed[0]) == (NUM_FRAMES, 0)
    assert probe(path).num_frames == NUM_FRAMES
    every = from_start(path, list(range(NUM_FRAMES)))
    # I0 P3 B1 B2 P6 B4 B5 P9 B7 B8 I12 B10 B11 ...: B-pictures before and behind what is asked for.
    for wanted, packets in (([9], 4), ([4], 4), ([11, 2], 7), ([12], 5), ([0], 1), ([30, 29], 12)):
        fed[0] = 0
        assert torch.equal(decode(path, wanted), every[wanted])
        assert fed == [packets], wanted
    for index in range(NUM_FRAMES):
        assert torch.equal(decode(path, [index])[0], every[index])


DOUBTFUL_PACKS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "nothing behind": lambda packets: [*packets[:3], *packets[4:]],
    "stuffing behind": lambda packets: [*packets[:3], STUFFING, *packets[3:]],
    "three in one": lambda packets: [packets[0], packets[1] + packets[2], *packets[3:]],
    "two that others need": lambda packets: [packets[0] + packets[1], *packets[2:]],
    "no picture behind": lambda packets: [
        packets[0], b"\0\0\1\xb2".join(packets[1].rsplit(VOP, 1)), *packets[2:]
    ],
    "two that nobody needs": lambda packets: [
        *packets[:4], packets[2] + packets[2], EMPTY_PICTURE, *packets[4:]
    ],
    "the first group is gone": lambda packets: packets[10:],
    "a time before its neighbours": lambda packets: [*packets[:5], packets[2], *packets[6:]],
    "no picture before": lambda packets: [packets[0] + packets[2], EMPTY_PICTURE, *packets[1:]],
    "nothing coded, alone": lambda packets: [*packets[:4], EMPTY_PICTURE, *packets[4:]],
    "not coded, but an I-picture": lambda packets: [
        *packets[:3], VOP + bytes([EMPTY_PICTURE[4] & 0x3F, EMPTY_PICTURE[5]]), *packets[4:]
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTFUL_PACKS)
def test_other_packs_are_decoded_from_the_start(name: str, tmp_path: Path) -> None:
    check_decoded_from_the_start(packed(tmp_path, DOUBTFUL_PACKS[name]))


def test_packs_are_taken_apart_where_the_headers_say_so(tmp_path: Path) -> None:
    path = packed(tmp_path, name=b"DivX503b%dq")
    assert not listed(path)
    assert count_frames(path)[0] == probe(path).num_frames < NUM_FRAMES


def test_interlaced_b_pictures_are_not_told(tmp_path: Path) -> None:
    """FFmpeg measures their fields' times by the first of them that it decodes."""
    path = packed(tmp_path, flags="+ilme+ildct")
    assert not listed(path)
    assert count_frames(path)[0] == NUM_FRAMES


@pytest.mark.parametrize(("low_delay", "told"), [(0x80, False), (0, True)])
def test_headers_that_reorder(low_delay: int, told: bool, tmp_path: Path) -> None:
    """Before the second I-picture, packet 10: FFmpeg does what the last ones say."""
    with Video(encoded(tmp_path / "any.avi", {"bf": "2"})) as video:
        headers = bytearray(video.stream.codec_context.extradata)
    layer = headers.index(b"\0\0\1\x20")
    assert headers[layer + 7] & 0x80 == 0
    headers[layer + 7] |= low_delay
    path = packed(tmp_path, lambda ps: [*ps[:10], bytes(headers) + ps[10], *ps[11:]])
    assert listed(path) == told
    every = from_start(path, list(range(30)))
    for frame in range(30):
        assert torch.equal(decode(path, [frame])[0], every[frame])


def test_times_too_far_apart() -> None:
    """FFmpeg counts ticks in 16 bits."""
    for seconds, told in ((1, False), (0, True)):
        pictures = _Pictures(_Layer(60000, 16, False))
        assert pictures.add(av.Packet(b"I"), _Picture(0, True))
        assert pictures.add(av.Packet(b"P"), _Picture(1, True, seconds, 15000))
        assert pictures.add(av.Packet(b"B"), _Picture(2, True, 0, 5000)) == told


def test_a_packed_picture_at_the_end_gives_no_frame(tmp_path: Path) -> None:
    path = packed(tmp_path, lambda packets: packets[:9])  # I0 P3B1 B2 - P6B4 B5 - P9B7 B8
    assert listed(path)
    assert count_frames(path)[0] == probe(path).num_frames == 9
    wanted = list(range(9))
    assert torch.equal(decode(path, wanted), from_start(path, wanted))


def test_damage_to_a_pack_counts(tmp_path: Path) -> None:
    """What is lost with a damaged picture moves the numbers of all behind it: none of those that
    others refer to is passed over."""

    def cut(packets: list[bytes]) -> list[bytes]:
        picture, behind = packets[1].rsplit(VOP, 1)
        damaged = picture[:200] + bytes(len(picture) - 200) + VOP + behind
        return [packets[0], damaged, *packets[2:]]

    path = packed(tmp_path, cut)
    assert listed(path)
    wanted = [30]
    assert torch.equal(decode(path, wanted), from_start(path, wanted))


@pytest.mark.parametrize(
    "options", [{"flags": "+ilme+ildct"}, {"flags": "+qpel"}, {"mpeg_quant": "1"}]
)
def test_headers_of_other_kinds(options: dict[str, str], tmp_path: Path) -> None:
    path = encoded(tmp_path / "other.avi", options)
    assert listed(path)
    every = from_start(path, list(range(NUM_FRAMES)))
    assert torch.equal(decode(path, [14, 30]), every[[14, 30]])


def test_real_files(real_data: Path) -> None:
    """Every AVI among the fixtures that can be listed: most of UCF101's, and Weizmann's."""
    found = 0
    for path in sorted(real_data.glob("fixtures/*/**/*.avi")):
        try:
            count = probe(path).num_frames
        except DecodeError:
            continue
        assert count_frames(path)[0] == count
        if not listed(path):
            continue
        found += 1
        every = from_start(path, list(range(count)))
        generator = np.random.default_rng(0)
        for size in (1, 3, 8):
            wanted = generator.integers(0, count, size)
            assert torch.equal(decode(path, wanted), every[torch.from_numpy(wanted)])
    assert found >= 25
