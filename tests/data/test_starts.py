"""A frame requested alone is the same as in the whole file, whatever the container marks as a key
frame: pictures of a gradual refresh, pictures after a splice, or frames that need earlier ones."""

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.data.conftest import TORCHCODEC, MakeClip, decode_all, needs_ffmpeg
from videoattn.data.decode import DecodeError, Decoder, Video, count_frames, decode
from videoattn.data.prepare.index import find_group_starts
from videoattn.data.prepare.verify import describe

NUM_FRAMES = 40
REFRESH = "intra-refresh=1:keyint=8:bframes={}:scenecut=0"
OPEN = "open-gop=1:keyint=8:min-keyint=8:bframes=3:scenecut=0"

Change = Callable[[int, bytes], bytes]


def clip(path: Path, codec: str, parameters: str = "", **options: str) -> Path:
    """Encodes a texture that moves; every frame is predicted from the previous ones."""
    texture = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    texture = np.ascontiguousarray(texture.repeat(8, axis=0).repeat(8, axis=1))
    if parameters:
        options = {f"{codec.removeprefix('lib')}-params": f"{parameters}:log-level=0", **options}
    if codec == "libx264":
        options = {"x264-params": parameters, "g": "8", **options}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25), options=options)
        stream.height, stream.width = texture.shape[:2]
        stream.pix_fmt = "rgb24" if codec == "qtrle" else "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(NUM_FRAMES):
            image = np.ascontiguousarray(np.roll(texture, 3 * i, axis=1) // 2 + 2 * i)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def copied(
    source: Path, name: str, *, marked: int = 0, change: Change = lambda _, data: data
) -> Path:
    """Copies the packets: every `marked`-th is marked as a key frame, and all are changed."""
    path = source.with_name(name)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(p for p in old.demux(video=0) if p.size):
            made = av.Packet(change(number, bytes(packet)))
            made.pts, made.dts, made.time_base = packet.pts, packet.dts, packet.time_base
            made.is_keyframe = packet.is_keyframe or (marked > 0 and number % marked == 0)
            made.stream = stream
            new.mux(made)
    return path


def spliced(_: int, data: bytes) -> bytes:
    """Turns the CRA pictures (type 21) of an HEVC packet into BLA pictures (16)."""
    changed, at = bytearray(data), 4
    while at < len(data):
        if data[at] >> 1 == 21:
            changed[at] = 16 << 1
        at += 4 + int.from_bytes(data[at - 4 : at], "big")
    return bytes(changed)


def without_recovery_points(_: int, data: bytes) -> bytes:
    """Removes the SEI units (type 6) of an H.264 packet."""
    kept, at = b"", 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        kept += b"" if data[at + 4] & 31 == 6 else data[at:end]
        at = end
    return kept


def refresh_mp4(folder: Path) -> Path:
    return clip(folder / "refresh.mp4", "libx264", REFRESH.format(0))


def refresh_mkv(folder: Path) -> Path:
    return clip(folder / "refresh.mkv", "libx264", REFRESH.format(2))


def refresh_hevc(folder: Path) -> Path:
    source = clip(folder / "a.mp4", "libx265", REFRESH.format(0))
    return copied(source, "refresh_hevc.mp4", marked=8)


def false_recovery_points(folder: Path) -> Path:
    """Claims an exact match from every fifth P-frame on."""
    point = b"\0\0\0\5\6\6\1\xc4\x80"
    return copied(
        clip(folder / "a.mp4", "libx264", "keyint=99:bframes=0"),
        "points.mp4",
        change=lambda number, data: data if number % 5 else point + data,
    )


def marked_hevc(folder: Path) -> Path:
    source = clip(folder / "a.mkv", "libx265", "keyint=99:bframes=0")
    return copied(source, "marked_hevc.mkv", marked=4)


def marked_mpeg4(folder: Path) -> Path:
    return copied(clip(folder / "a.mp4", "mpeg4", g="20"), "marked_mpeg4.mp4", marked=6)


def marked_vp9(folder: Path) -> Path:
    source = clip(folder / "a.mkv", "libvpx-vp9", g="99", deadline="realtime", **{"cpu-used": "8"})
    return copied(source, "marked_vp9.mkv", marked=6)


def unmarked_refresh(folder: Path) -> Path:
    return copied(refresh_mp4(folder), "plain.mp4", change=without_recovery_points)


def spliced_hevc(folder: Path) -> Path:
    return copied(clip(folder / "a.mp4", "libx265", OPEN), "spliced.mp4", change=spliced)


FALSE_KEYS = [refresh_mp4, refresh_mkv, refresh_hevc, false_recovery_points, marked_hevc]
UNLISTED = [spliced_hevc]
OTHERS = [unmarked_refresh, marked_mpeg4, marked_vp9]


@pytest.mark.parametrize("make", [*FALSE_KEYS, *UNLISTED, *OTHERS])
def test_frames_alone_are_those_of_the_whole(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    every = decode_all(path)
    assert count_frames(path)[0] == len(every)
    for number in range(len(every)):
        assert torch.equal(decode(path, [number])[0], every[number]), number
    wanted = [len(every) - 1, 3, 17]
    assert torch.equal(decode(path, wanted), every[wanted])


@pytest.mark.parametrize("make", FALSE_KEYS)
def test_false_key_frames_are_marked_but_not_used(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    with Video(make(tmp_path)) as video:
        index = video.packet_index
    assert index is not None
    assert index.keys.tolist() == [0]
    assert len(index.flagged_keys) > 3


@pytest.mark.parametrize("decoder", ["decord", TORCHCODEC])
@pytest.mark.parametrize("make", [*FALSE_KEYS, *UNLISTED])
def test_other_decoders_refuse_them(
    make: Callable[[Path], Path], decoder: Decoder, tmp_path: Path
) -> None:
    reason = "is not exact if decoding cannot start at a marked key frame"
    if make in UNLISTED:
        reason = "needs packets that determine the number of each frame"
    with pytest.raises(DecodeError, match=rf"decoder {decoder} {reason}; choose decoder pyav$"):
        decode(make(tmp_path), [20], decoder=decoder)


@pytest.mark.parametrize(
    ("codec", "parameters", "least"),
    [
        ("libx264", "keyint=8:scenecut=0", 5),
        ("libx264", OPEN, 4),
        ("libx264", f"{OPEN}:slices=3", 4),
        ("libx265", "keyint=8:min-keyint=8:open-gop=0:scenecut=0", 5),
        ("libx265", OPEN, 4),
    ],
)
def test_idr_pictures_and_open_groups_are_starts(
    codec: str, parameters: str, least: int, tmp_path: Path
) -> None:
    """Reading a late frame takes a few packets, not the whole file."""
    for name in ("a.mp4", "a.mkv"):
        path = clip(tmp_path / name, codec, parameters)
        every = decode_all(path)
        with Video(path) as video:
            index = video.packet_index
            assert index is not None
            assert len(index.keys) == len(index.flagged_keys) >= least
            assert sum(map(len, index.plan(np.array([38])))) < 24
        for number in range(NUM_FRAMES):
            assert torch.equal(decode(path, [number])[0], every[number])


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mov", "qtrle"), ("a.mkv", "ffv1"), ("a.mkv", "libvpx")]
)
def test_decoders_that_give_frames_no_type(
    name: str, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their key frames are trusted: the file is not read from its start."""
    path = clip(tmp_path / name, codec, g="8")
    every, fed, feed = decode_all(path), [0], Video.feed

    def counting(video: Video, packet: av.Packet | None) -> list[av.VideoFrame]:
        fed[0] += packet is not None
        return feed(video, packet)

    monkeypatch.setattr(Video, "feed", counting)
    assert torch.equal(decode(path, [38])[0], every[38])
    assert 0 < fed[0] < 16


@pytest.mark.parametrize("parameters", [REFRESH.format(0), REFRESH.format(2), OPEN])
def test_the_index_of_an_avi_starts_where_it_may(parameters: str, tmp_path: Path) -> None:
    path = clip(tmp_path / "a.avi", "libx264", parameters)
    every = decode_all(path)
    starts = find_group_starts(path)
    assert bool(starts) == (parameters == OPEN)
    for packet, number in starts:
        assert packet > 0
        with Video(path) as video:
            video.stream.codec_context.copy_opaque = True
            late = [p for n, p in enumerate(video.packets()) if n >= packet]
            first = next(frame for p in late for frame in video.feed(p))
        image = torch.from_numpy(first.to_ndarray(format="rgb24")).permute(2, 0, 1)
        assert (image.float() - every[number].float()).abs().mean() < 1


def test_the_index_counts_true_key_frames(tmp_path: Path) -> None:
    assert describe(refresh_mp4(tmp_path))["key_frames"] == 1
    assert describe(clip(tmp_path / "a.mp4", "libx264", OPEN))["key_frames"] >= 4


@needs_ffmpeg
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_gradual_refresh_of_the_ffmpeg_program(codec: str, tmp_path: Path) -> None:
    """Gray frames, as another build of the encoders writes them."""
    path = tmp_path / "a.mp4"
    source = "color=black:s=64x48:r=25:d=2,format=gray,geq=lum='16+4*N'"
    parameters = "intra-refresh=1:keyint=8:bframes=0:log-level=error"
    words = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-c:v", codec, "-pix_fmt"]
    words += ["yuv420p", f"-{codec.removeprefix('lib')}-params", parameters, str(path)]
    subprocess.run(words, check=True)
    every = decode_all(path)
    assert len(every) == 50
    assert torch.equal(torch.cat([decode(path, [number]) for number in range(50)]), every)


@pytest.mark.parametrize(
    ("message", "starts"),
    [
        (b"\x06\x01\xc4", True),  # recovery_frame_cnt = 0, exact_match_flag = 1
        (b"\x06\x01\x84", False),  # an approximate match
        (b"\x06\x01\x64", False),  # one frame later
        (b"\x05\x10" + bytes(range(1, 17)) + b"\x06\x01\xc4", True),
        (b"\x05\xff\x01" + bytes(range(1, 129)) * 2 + b"\x06\x01\xc4", True),
        (b"\xff\x05\x02ab\x06\x01\xc4", True),  # a type of 260
        (b"\x05\x09ab\x06\x01\xc4", False),  # inside another message
        (b"\xff\xff\xff\xff", False),
        (b"\x06", False),
        (b"", False),
    ],
)
@pytest.mark.parametrize(("slice_header", "intra"), [(b"\x88\x84", True), (b"\x9a\x01", False)])
def test_recovery_points(
    message: bytes, starts: bool, slice_header: bytes, intra: bool, make_clip: MakeClip
) -> None:
    """Replaces the units of one packet by a message and a slice of type 7 (I) or 5 (P)."""
    number = 4

    def change(at: int, data: bytes) -> bytes:
        units = [b"\x06" + message + b"\x80", b"\x61" + slice_header + bytes(9)]
        made = b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
        return made if at == number else data

    source = make_clip("a.mp4", 12, options={"g": "99", "bf": "0"})
    with Video(copied(source, "changed.mp4", marked=number, change=change)) as video:
        index = video.packet_index
    assert index is not None
    assert (number in index.keys) == (starts and intra)
