"""AVI without B-pictures: packets tell the frames, so that groups of pictures are passed over."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.data.conftest import MakeClip
from videoattn.data import decode_pyav
from videoattn.data.decode import DecodeError, count_frames, decode, frame_times, probe
from videoattn.data.video import Video

NUM_FRAMES, GROUP = 36, 12
SIZE = (160, 160)  # 100 macroblocks: a coded picture takes 12 bytes or more

# vop_start_code; P, no full second, marker, 5 bits of time, marker, not coded
EMPTY_PICTURE = b"\0\0\1\xb6" + bytes([0b01010000, 0b01001111])
STUFFING = b"\x7f"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A texture that moves: no picture of it tells what the one before does."""
    path = tmp_path / "clip.avi"
    texture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        options = {"g": str(GROUP), "sc_threshold": "1000000000"}
        stream = container.add_stream("mpeg4", rate=Fraction(25), options=options)
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for i in range(NUM_FRAMES):
            image = np.ascontiguousarray(np.roll(texture, 3 * i, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


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


def rewritten(path: Path, change: Callable[[int, bytes], list[bytes]]) -> Path:
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


def from_start(path: Path, wanted: list[int]) -> torch.Tensor:
    with Video(path) as video:
        output = decode_pyav.Output(len(wanted))
        frames = decode_pyav._read_from_start(video, np.array(wanted), output)
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def test_groups_are_passed_over(clip: Path, fed: list[int]) -> None:
    assert count_frames(clip) == (NUM_FRAMES, 25.0)
    assert fed == [0]
    assert frame_times(clip).tolist() == [i / 25 for i in range(NUM_FRAMES)]
    every = from_start(clip, list(range(NUM_FRAMES)))
    for wanted, packets in (([26], 1 + 3), ([1, 2], 3), ([35, 13], 1 + 2 + GROUP), ([24], 1 + 1)):
        fed[0] = 0
        assert torch.equal(decode(clip, wanted), every[wanted])
        assert fed == [packets]  # the first one, too: it names the encoder
    with pytest.raises(DecodeError, match=r"clip\.avi: frame 36 was asked for, but only 36 frames"):
        decode(clip, [36])


@pytest.mark.parametrize("nothing", [EMPTY_PICTURE, STUFFING])
def test_packets_without_a_frame_do_not_count(clip: Path, nothing: bytes, fed: list[int]) -> None:
    path = rewritten(clip, lambda i, data: [data, nothing] if i % 5 == 3 else [data])
    with Video(path) as video:
        assert len(list(video.packets())) > NUM_FRAMES
    assert count_frames(path)[0] == NUM_FRAMES
    assert fed == [0]
    assert probe(path).num_frames == NUM_FRAMES
    wanted = [2, 17, 30, 33]
    assert torch.equal(decode(path, wanted), from_start(clip, wanted))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda i, data: [data + data] if i == 7 else [data], id="two pictures"),
        pytest.param(lambda i, data: [data[:10]] if i == 7 else [data], id="cut short"),
        pytest.param(lambda i, data: [b"\xff" * 40] if i == 7 else [data], id="no picture"),
        pytest.param(lambda i, data: [] if i == 0 else [data], id="no first key"),
        pytest.param(
            lambda i, data: [data[:4] + bytes([data[4] | 0x80]) + data[5:]] if i == 7 else [data],
            id="another type",
        ),
    ],
)
def test_what_does_not_tell_is_decoded_from_the_start(
    clip: Path, change: Callable[[int, bytes], list[bytes]]
) -> None:
    path = rewritten(clip, change)
    with Video(path) as video:
        assert decode_pyav.list_packets(video) is None
    count = probe(path).num_frames
    assert count_frames(path)[0] == count
    wanted = [count - 9, count - 1]
    assert torch.equal(decode(path, wanted), from_start(path, wanted))


def test_small_pictures_and_other_codecs_are_not_told(make_clip: MakeClip) -> None:
    small = make_clip("small.avi", 4, codec="mpeg4", size=(112, 144))
    other = make_clip("other.avi", 4, size=SIZE)
    for path in (small, other):
        with Video(path) as video:
            assert decode_pyav.list_packets(video) is None
        assert count_frames(path)[0] == 4


def test_real_files(real_data: Path) -> None:
    """Every AVI among the fixtures that can be listed: UCF101's, Weizmann's, one of KTH's."""
    listed = 0
    for path in sorted(real_data.glob("fixtures/*/**/*.avi")):
        try:
            count = probe(path).num_frames
        except DecodeError:
            continue
        assert count_frames(path)[0] == count
        with Video(path) as video:
            found = decode_pyav.list_packets(video)
        if found is None:
            continue
        listed += 1
        every = from_start(path, list(range(count)))
        generator = np.random.default_rng(0)
        for size in (1, 3, 8):
            wanted = generator.integers(0, count, size)
            assert torch.equal(decode(path, wanted), every[torch.from_numpy(wanted)])
    assert listed >= 15
