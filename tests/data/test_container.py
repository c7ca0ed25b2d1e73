"""Which files are opened as videos, what of them is decoded, and within which limits."""

import os
import socket
import struct
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest

from tests.data.conftest import TORCHCODEC, MakeClip
from videoattn.data.decode import Video, count_frames, decode
from videoattn.data.decode import container as opened
from videoattn.data.decode.source import DecodeError, VideoBytes
from videoattn.data.prepare.reencode import Reencode, reencode
from videoattn.data.prepare.verify import describe, probe, verify

pytestmark = pytest.mark.usefixtures("limits")

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
m=video 50044 RTP/AVP 96
a=rtpmap:96 H264/90000
"""
TEXTS = {
    "sdp": SDP,
    "ffconcat": "ffconcat version 1.0\nfile real.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nreal.mp4\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>\n',
    "subtitles": "1\n00:00:01,000 --> 00:00:02,000\nhello\n\n",
}
_events: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is not None and event.startswith(("socket.", "subprocess.", "os.system")):
        _events.append(event)


sys.addaudithook(_watch)


@pytest.fixture
def events() -> Iterator[list[str]]:
    """Sockets and processes that the test makes."""
    global _events
    _events = found = []
    yield found
    _events = None


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        yield listening


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_names_other_files_or_addresses_is_refused(
    kind: str, make_clip: MakeClip, tmp_path: Path, events: list[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip("real.mp4")
    path = tmp_path / "x.mp4"
    path.write_text(TEXTS[kind])
    for source in (path, Path("x.mp4"), VideoBytes("x.mp4", TEXTS[kind].encode())):
        for use in (count_frames, probe, Video):
            with pytest.raises(DecodeError, match=r"cannot be opened as a video: ") as raised:
                use(source)  # type: ignore[operator]
            assert "\n" not in str(raised.value)
    assert verify(path)["error"].startswith("cannot be opened as a video")
    assert events == []


def test_the_formats_that_are_read_are_listed(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text(TEXTS["sdp"])
    with pytest.raises(DecodeError, match=r"formats that are read are mov, matroska, avi, flv, "):
        count_frames(tmp_path / "x.mp4")


@pytest.mark.parametrize("scheme", ["http:", "tcp:", "rtmp:"])
def test_a_folder_with_the_name_of_a_protocol(
    scheme: str, make_clip: MakeClip, tmp_path: Path, server: socket.socket, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    host = f"127.0.0.1:{server.getsockname()[1]}"
    make_clip(f"{scheme}/{host}/x.mp4", num_frames=7)
    assert count_frames(f"{scheme}/{host}/x.mp4")[0] == 7
    with pytest.raises(TimeoutError):
        server.accept()


@pytest.mark.parametrize("decoder", ["pyav", "decord", TORCHCODEC])
@pytest.mark.parametrize(
    "name", ["day:1/x.mp4", "concat:a|b.mp4", "a%03d.mp4", "b[1-9]*.mkv", "-i.mp4", "ä ö.mp4"]
)
def test_names_that_mean_something_to_ffmpeg(
    name: str, decoder: Any, tmp_path: Path, make_clip: MakeClip, monkeypatch: Any
) -> None:
    clip = make_clip(f"plain{Path(name).suffix}", num_frames=9, size=(64, 64))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    clip.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name):
        frames = decode(path, [1, 8], decoder=decoder)
        assert [round(float(frame.float().mean())) for frame in frames] == [24, 52]


def test_an_animation_with_a_number_in_its_name_is_one_file(tmp_path: Path) -> None:
    gray = [PIL.Image.new("L", (32, 32), 20 * i) for i in range(6)]
    gray[0].save(tmp_path / "a%03d.gif", save_all=True, append_images=gray[1:])
    assert count_frames(tmp_path / "a%03d.gif")[0] == 6


def test_copies_and_descriptions_of_a_name_with_a_colon(
    make_clip: MakeClip, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    clip = make_clip("day/1.mp4", num_frames=7)
    Path("day:1").mkdir()
    clip.rename("day:1/x.mp4")
    copied = reencode(Reencode(Path("day:1/x.mp4"), Path("copies:1/y.mp4"), 32, 4))
    assert copied["num_frames"] == count_frames("copies:1/y.mp4")[0] == 7
    assert verify(Path("day:1/x.mp4"))["num_frames"] == 7
    assert describe(Path("day:1/x.mp4"))["num_frames"] == 7


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(DecodeError, match=r"embedded null byte"):
        count_frames("a\0b.mp4")


def _atom(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + kind + data


def with_cover_first(path: Path, color: int) -> Path:
    """Adds a cover picture before the tracks of an MP4, where FFmpeg makes it stream 0."""
    picture = BytesIO()
    PIL.Image.new("L", (64, 64), color).save(picture, "JPEG")
    data, at, atoms = path.read_bytes(), 0, []
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        atoms.append((kind, data[at + 8 : at + size]))
        at += size
    assert [kind for kind, _ in atoms].index(b"moov") > [kind for kind, _ in atoms].index(b"mdat")
    cover = _atom(b"covr", _atom(b"data", struct.pack(">II", 13, 0) + picture.getvalue()))
    handler = _atom(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    tags = _atom(b"udta", _atom(b"meta", bytes(4) + handler + _atom(b"ilst", cover)))
    head = struct.unpack(">I", dict(atoms)[b"moov"][:4])[0]
    path.write_bytes(
        b"".join(
            _atom(kind, content[:head] + tags + content[head:] if kind == b"moov" else content)
            for kind, content in atoms
        )
    )
    return path


@pytest.mark.parametrize("name", ["a.mp4", "b.mov", "c.m4v"])
def test_a_cover_before_the_video_is_not_the_video(
    name: str, make_clip: MakeClip, tmp_path: Path
) -> None:
    clip = make_clip(name, num_frames=10)
    plain = decode(clip, range(10))
    path = with_cover_first(clip, 200)
    with av.open(str(path)) as container:
        assert container.streams[0].codec_context.name == "mjpeg"
    for source in (path, VideoBytes(name, path.read_bytes())):
        with Video(source) as video:
            assert video.stream.index == 1
        assert count_frames(source) == (10, 25.0)
        assert probe(source).num_frames == 10
        assert decode(source, range(10)).equal(plain)
    assert verify(path)["num_frames"] == describe(path)["num_frames"] == 10
    copied = reencode(Reencode(path, tmp_path / "copy.mp4", 32, 4))
    assert (copied["num_frames"], copied["width"], copied["height"]) == (10, 48, 32)


@pytest.mark.parametrize("decoder", ["decord", TORCHCODEC])
def test_other_decoders_never_decode_the_cover(decoder: Any, make_clip: MakeClip) -> None:
    clip = make_clip("a.mp4", num_frames=10)
    path = with_cover_first(clip, 200)
    with pytest.raises(DecodeError, match=r"2 video streams|could not seek|Could not seek"):
        decode(path, [0, 5, 9], decoder=decoder)


@pytest.mark.parametrize("name", ["two.mkv", "two.avi"])
def test_the_first_of_two_videos(name: str, tmp_path: Path) -> None:
    """Both are videos; the second is larger, longer, and what FFmpeg would prefer."""
    with av.open(str(tmp_path / name), "w") as container:
        streams = [container.add_stream("mpeg4", rate=25) for _ in range(2)]
        for stream, size in zip(streams, (32, 64), strict=True):
            stream.width = stream.height = size
            stream.pix_fmt, stream.bit_rate = "yuv420p", 1_000_000 * size
        for stream, count in zip(streams, (6, 12), strict=True):
            size = stream.width
            for _ in range(count):
                image = np.full((size, size, 3), size, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    info = probe(tmp_path / name)
    assert (info.num_frames, info.height, info.width) == (6, 32, 32)


def test_music_with_a_cover_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for _ in range(4):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with_cover_first(path, 100)
    with pytest.raises(DecodeError, match=r"song\.mp4: no video stream but a cover picture"):
        count_frames(path)


def _gif(width: int, height: int) -> bytes:
    """Returns an animation of one frame without pixels."""
    screen = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6)
    return screen + b"," + struct.pack("<HHHH", 0, 0, width, height) + b"\0\x02\x02\x4c\x01\0;"


@pytest.mark.parametrize(("width", "height"), [(65535, 65535), (65535, 1100), (8192, 8193)])
def test_frames_larger_than_the_limit(width: int, height: int, tmp_path: Path) -> None:
    (tmp_path / "x.gif").write_bytes(_gif(width, height))
    for source in (tmp_path / "x.gif", VideoBytes("x.gif", _gif(width, height))):
        with pytest.raises(DecodeError, match=r"the limit is 67,108,864 pixels"):
            count_frames(source)


def test_a_frame_of_8k_decodes(tmp_path: Path) -> None:
    (tmp_path / "x.gif").write_bytes(_gif(7680, 4320))
    assert probe(tmp_path / "x.gif")[2:4] == (4320, 7680)


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.avi"])
def test_the_size_of_frames_is_checked(
    name: str, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(name, size=(64, 96), codec="mpeg4" if name == "c.avi" else "libx264")
    monkeypatch.setattr(opened, "MAX_PIXELS", 64 * 96 - 1)
    with pytest.raises(DecodeError, match=r"the limit is 6,143 pixels"):
        count_frames(path)
    monkeypatch.setattr(opened, "MAX_PIXELS", 16 * 64 * 96)  # some codecs add borders
    assert count_frames(path)[0] == 12


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.avi"])
def test_more_packets_than_the_limit(
    name: str, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(name, codec="mpeg4" if name == "c.avi" else "libx264")
    monkeypatch.setattr(opened, "MAX_PACKETS", 12)
    assert count_frames(path)[0] == 12
    monkeypatch.setattr(opened, "MAX_PACKETS", 11)
    with pytest.raises(DecodeError, match=r"has more packets than the limit of 11"):
        count_frames(path)


def _overlapping(path: Path, num_samples: int) -> Path:
    """Lets all samples of an MP4 be one chunk each, at the same bytes."""
    data = bytearray(path.read_bytes())

    def table(kind: bytes, content: bytes) -> None:
        at = data.index(kind) + 4
        end = at - 8 + struct.unpack(">I", data[at - 8 : at - 4])[0]
        data[at:end] = content
        struct.pack_into(">I", data, at - 8, len(content) + 8)
        for parent in (b"stbl", b"minf", b"mdia", b"trak", b"moov"):
            size = struct.unpack(">I", data[data.index(parent) - 4 : data.index(parent)])[0]
            struct.pack_into(">I", data, data.index(parent) - 4, size + len(content) - end + at)

    first = data.index(b"mdat") + 4
    length = os.path.getsize(path) // 2
    table(b"stsz", struct.pack(">III", 0, length, num_samples))
    table(b"stts", struct.pack(">IIII", 0, 1, num_samples, 512))
    table(b"stsc", struct.pack(">IIIII", 0, 1, 1, 1, 1))
    table(b"stco", struct.pack(">II", 0, num_samples) + struct.pack(">I", first) * num_samples)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("num_samples", [20, 1500, 5000])
def test_packets_that_overlap(num_samples: int, make_clip: MakeClip) -> None:
    path = _overlapping(make_clip("x.mp4", options={"bf": "0", "qp": "1"}), num_samples)
    with pytest.raises(DecodeError, match=r"overlap: they hold more than twice its [\d,]+ bytes"):
        count_frames(path)
    assert "overlap" in verify(path)["error"]


def test_a_folder_and_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").mkdir()
    (tmp_path / "y.mp4").touch()
    with pytest.raises(DecodeError, match=r"x\.mp4: cannot be opened as a video: "):
        count_frames(tmp_path / "x.mp4")
    with pytest.raises(DecodeError, match=r"y\.mp4: the file is empty"):
        count_frames(tmp_path / "y.mp4")
