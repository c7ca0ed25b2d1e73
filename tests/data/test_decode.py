import pickle
import re
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.data.conftest import COMMON_CLIPS, MakeClip, decode_all
from videoattn.data.decode import (
    DecodeError,
    Video,
    check_decoder,
    count_frames,
    decode,
    frame_times,
)
from videoattn.data.prepare.verify import probe


def levels(frames: torch.Tensor) -> list[int]:
    """Returns the index that `make_clip` stored as the gray level of each frame."""
    grey = frames.float().mean(dim=(1, 2, 3))
    return ((grey - 20) / 4).round().int().tolist()


CLIPS = {
    **COMMON_CLIPS,
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg1.mpg": {"codec": "mpeg1video"},
}


@pytest.mark.parametrize("name", CLIPS)
def test_an_index_gives_that_frame(name: str, make_clip: MakeClip) -> None:
    path = make_clip(name, 18, **CLIPS[name])
    info = probe(path)
    assert info[:1] + info[2:4] == (18, 32, 48)
    assert count_frames(path) == (18, info.fps)
    shown = CLIPS[name].get("times", list(range(18)))
    if name == "mpeg1.mpg":
        shown = np.arange(18) * 25 / info.fps  # only a rate is known
    assert frame_times(path) * 25 == pytest.approx(np.array(shown) - shown[0], abs=0.02)
    every = decode(path, range(18))
    assert every.shape == (18, 3, 32, 48)
    assert every.dtype == torch.uint8
    assert every.stride() == (3 * 32 * 48, 1, 3 * 48, 3)
    assert levels(every) == list(range(18))
    generator = np.random.default_rng(0)
    for _ in range(12):
        asked = generator.integers(0, 18, size=generator.integers(1, 7))
        assert torch.equal(decode(path, asked), every[torch.from_numpy(asked)])


def test_frame_past_the_end(make_clip: MakeClip) -> None:
    for name in ("a.mp4", "a.avi"):
        path = make_clip(name, 9, codec="mpeg4")
        with pytest.raises(
            DecodeError, match=r"a\.\w+: frame 9 is out of range: 9 frames decode \(0 - 8\)$"
        ) as caught:
            decode(path, [3, 9])
        assert caught.value.num_frames == 9


def test_bad_arguments(make_clip: MakeClip) -> None:
    path = make_clip("a.mp4", 2)
    with pytest.raises(ValueError, match=r"^indices: got \[0, -1\]; need one or more, none neg"):
        decode(path, [0, -1])
    with pytest.raises(ValueError, match=r"^indices: got \[\]; need one or more"):
        decode(path, [])
    with pytest.raises(
        ValueError, match=r"^decoder: 'cv2' does not exist; choose from auto, pyav, decord, torchc"
    ):
        check_decoder("cv2")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", r"the file is empty \(0 bytes\)"),
        (
            "text.avi",
            b"this is no video\n" * 9,
            "cannot be opened as a video: Invalid data found when processing input",
        ),
        ("missing.mp4", None, "No such file or directory"),
    ],
)
def test_unreadable_file(name: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for read in (probe, count_frames, lambda p: decode(p, [0])):
        with pytest.raises(DecodeError, match=f"^{re.escape(str(path))}: {reason}$"):
            read(path)


def test_a_damaged_packet_is_found_without_decoding(make_clip: MakeClip) -> None:
    path = make_clip("a.mp4", 20)
    intact = decode(path, range(20))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = start + int.from_bytes(data[start - 8 : start - 4], "big") - 8
    data[end - 120 : end - 60] = b"\xff" * 60
    path.write_bytes(data)
    count = probe(path).num_frames
    assert count < 20
    assert count_frames(path)[0] == count
    with pytest.raises(DecodeError, match=rf"out of range: {count} frames decode"):
        decode(path, [count])
    assert torch.equal(decode(path, [1, 0]), intact[[1, 0]])


def test_no_frame_at_all(make_clip: MakeClip) -> None:
    path = make_clip("a.mp4", 1)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = start + int.from_bytes(data[start - 8 : start - 4], "big") - 8
    data[start:end] = b"\xff" * (end - start)
    path.write_bytes(data)
    for read in (probe, count_frames, lambda p: decode(p, [0])):
        with pytest.raises(DecodeError, match=r"a\.mp4: no frame decodes \(Invalid data found"):
            read(path)


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "broken", 3)))
    assert (error.path, error.reason, error.num_frames) == ("a.mp4", "broken", 3)
    assert str(error) == "a.mp4: broken"


def test_cut_files(real_data: Path) -> None:
    root = real_data / "fixtures" / "derived_truncated"
    assert probe(root / "avi_cut_60pct.avi").num_frames == 41
    for name in ("avi_header_only.avi", "mp4_cut_60pct.mp4", "text.avi", "empty.mp4"):
        with pytest.raises(
            DecodeError, match=rf"{re.escape(name)}: (cannot be opened|the file is)"
        ):
            decode(root / name, [0])


def test_rotation_is_applied(real_data: Path) -> None:
    root = real_data / "fixtures" / "rotation"
    sizes = {"video_0.mov": (320, 568), "video_90.mov": (568, 320), "video_180.mov": (320, 568)}
    for name, size in sizes.items():
        assert tuple(decode(root / name, [0]).shape[2:]) == size
        assert probe(root / name)[2:4] == size


def test_files_are_closed(make_clip: MakeClip) -> None:
    path = make_clip("a.mp4", 10)
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("needs /proc")
    before = len(list(descriptors.iterdir()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for _ in range(20):
            decode(path, [9, 0])
    assert len(list(descriptors.iterdir())) <= before


@pytest.mark.parametrize(("name", "at_most"), [("a.mp4", 6), ("a.mkv", 50)])
def test_mp4_is_listed_up_to_the_last_requested_frame(
    name: str, at_most: int, make_clip: MakeClip
) -> None:
    """B-frames are stored after the frames that they need, so a few more packets are listed."""
    path = make_clip(name, 50, options={"bf": "3", "b-adapt": "0"})
    with Video(path) as video:
        times = [packet.pts for packet in video.packets()]
    assert times != sorted(times)
    every = decode(path, range(50))
    for frame in range(50):
        with Video(path) as video:
            listed = [packet.pts for packet in video.packets_up_to(frame)]
        assert sorted(listed)[: frame + 1] == sorted(times)[: frame + 1]
        assert len(listed) <= frame + at_most
        assert torch.equal(decode(path, [frame])[0], every[frame])


@pytest.mark.parametrize("shown", [18, 19, 20])
def test_an_edit_list_that_ends_before_the_file(shown: int, make_clip: MakeClip) -> None:
    """The packets after its end give no frames; frames before it are found without them."""
    path = make_clip("a.mp4", 30, options={"g": "8", "bf": "2", "b-adapt": "0"})
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12  # the duration of the only entry, in milliseconds
    data[place : place + 4] = (shown * 40).to_bytes(4, "big")
    path.write_bytes(data)
    with Video(path) as video:
        discarded = [packet.is_discard for packet in video.packets()]
        assert any(discarded)
        assert (video.packet_index is not None) == (discarded == sorted(discarded))
    every = decode_all(path)
    assert levels(every) == list(range(shown))
    assert count_frames(path)[0] == len(every)
    for frame in range(len(every)):
        assert torch.equal(decode(path, [frame])[0], every[frame])


def test_times_in_the_order_of_decoding_are_not_used(make_clip: MakeClip) -> None:
    """An AVI's packets copied to MP4 have times in the order of decoding."""
    source = make_clip("a.mp4", 30, options={"bf": "3", "b-adapt": "0"})
    path = source.with_name("copied.mp4")
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        first = packets[0].dts
        for packet in packets:
            packet.stream = stream
            packet.pts = packet.dts = packet.dts - first
            new.mux(packet)
    every = decode_all(path)
    assert levels(every) == list(range(30))
    for frame in range(30):
        assert torch.equal(decode(path, [frame])[0], every[frame])


def test_an_open_video_is_listed_once(make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip("a.mp4", 30)
    every = decode(path, range(30))
    opened: list[str] = []
    with Video(path) as video:
        monkeypatch.setattr("av.open", lambda *_, **__: opened.append("again"))
        assert video.num_frames == 30
        assert frame_times(video).tolist() == pytest.approx([i / 25 for i in range(30)])
        for wanted in ([29], [3, 12], [0, 28, 1]):
            assert torch.equal(decode(video, wanted), every[wanted])
    assert opened == []


@pytest.mark.parametrize("name", ["a.avi", "a.mpg"])
def test_an_open_video_that_has_to_be_decoded(name: str, make_clip: MakeClip) -> None:
    path = make_clip(name, 20, codec="mpeg4" if name == "a.avi" else "mpeg1video")
    every = decode_all(path)
    with Video(path) as video:
        assert torch.equal(decode(video, [7]), every[[7]])
        assert video.num_frames == 20
        assert len(video.frame_times()) == 20
        assert torch.equal(decode(video, [3, 19]), every[[3, 19]])
        with pytest.raises(DecodeError, match="frame 20 is out of range: 20 frames decode"):
            decode(video, [20])
