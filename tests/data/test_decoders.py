"""PyAV, decord and torchcodec return the same frames for the same indices, or refuse the file."""

import json
import re
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.data.conftest import COMMON_CLIPS, TORCHCODEC, MakeClip
from tests.data.test_decode import levels
from videoattn.data.decode import (
    DecodeError,
    Decoder,
    Video,
    check_decoder,
    count_frames,
    decode,
)
from videoattn.data.decode import others as decode_others
from videoattn.data.transforms import Box

OTHERS = ("decord", TORCHCODEC)

CLIPS = {name: options for name, options in COMMON_CLIPS.items() if not name.endswith(".avi")}
REFUSED_CLIPS = {
    "a.avi": ({"codec": "mpeg4"}, "is not exact in files of the kind avi"),
    "a.mpg": ({"codec": "mpeg1video"}, "is not exact in files of the kind mpeg"),
    "open_gop.mp4": (
        {"options": {"x264-params": "open-gop=1:keyint=8:bframes=3:scenecut=0"}},
        "is not exact if frames stored after a key frame precede it",
    ),
}

# MP4 and Matroska files of the fixtures that a decoder refuses, and its reasons.
UNLISTED = "needs packets that determine the number of each frame"
OPEN_GROUPS = "is not exact if frames stored after a key frame precede it"
REFUSED = {
    "decord": {
        "kinetics_like/carving_ice.mp4": "takes one of 2 video streams",
        "codec/nasa_13013.mp4": "takes one of 2 video streams",
        "codec/av1_video.mkv": "ERROR cannot find video stream",
        "oneframe/tiny_av1.mp4": "ERROR cannot find video stream",
        "broken/corrupted.mp4": UNLISTED,
        "broken/no_timescale.mp4": UNLISTED,
    },
    "torchcodec": {
        "broken/corrupted.mp4": UNLISTED,
        "broken/no_timescale.mp4": UNLISTED,
    },
}


def refusal(path: Path, name: str, decoder: str) -> str | None:
    """Returns the reason for which a decoder refuses a file, or None."""
    if decoder == "pyav":
        return None
    with Video(path) as video:
        if not video.timed:
            return f"is not exact in files of the kind {video.container.format.name}"
        if video.packet_index is not None and not video.packet_index.closed:
            return OPEN_GROUPS
    return REFUSED[decoder].get(name)


@pytest.mark.parametrize("decoder", OTHERS)
@pytest.mark.parametrize("name", CLIPS)
def test_same_frames_as_pyav(name: str, decoder: Decoder, make_clip: MakeClip) -> None:
    # Of frames 48 pixels wide decord makes images of four channels, or an error.
    path = make_clip(name, 18, size=(32, 64), **CLIPS[name])
    every = decode(path, range(18))
    assert levels(every) == list(range(18))
    theirs = decode(path, range(18), decoder=decoder)
    assert theirs.shape == every.shape
    assert theirs.stride() == every.stride()
    assert levels(theirs) == list(range(18))
    generator = np.random.default_rng(0)
    for _ in range(6):
        asked = generator.integers(0, 18, size=generator.integers(1, 7))
        assert levels(decode(path, asked, decoder=decoder)) == asked.tolist()


@pytest.mark.parametrize("decoder", OTHERS)
def test_frame_past_the_end(decoder: Decoder, make_clip: MakeClip) -> None:
    path = make_clip("a.mp4", 9)
    with pytest.raises(
        DecodeError, match=r"frame 9 is out of range: 9 frames decode \(0 - 8\)$"
    ) as caught:
        decode(path, [3, 9], decoder=decoder)
    assert caught.value.num_frames == 9
    (path.parent / "empty.mp4").touch()
    with pytest.raises(DecodeError, match=r"the file is empty \(0 bytes\)$"):
        decode(path.parent / "empty.mp4", [0], decoder=decoder)


@pytest.mark.parametrize("decoder", OTHERS)
@pytest.mark.parametrize("name", REFUSED_CLIPS)
def test_other_files_are_refused(name: str, decoder: Decoder, make_clip: MakeClip) -> None:
    options, reason = REFUSED_CLIPS[name]
    path = make_clip(name, 18, size=(32, 64), **options)
    with pytest.raises(
        DecodeError, match=rf"{name}: decoder {decoder} {reason}; choose decoder pyav$"
    ):
        decode(path, [0], decoder=decoder)


@pytest.mark.parametrize("decoder", OTHERS)
def test_damage_is_never_another_frame(decoder: Decoder, make_clip: MakeClip) -> None:
    path = make_clip("a.mp4", 30, size=(32, 64))
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") if data.index(b"moov") > start else len(data)
    generator = np.random.default_rng(0)
    outcomes = []
    for _ in range(12):
        damaged = bytearray(data)
        for place in generator.integers(start, end - 8, size=2):
            damaged[place] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            count = count_frames(path)[0]
            ours = levels(decode(path, [count // 2, count - 1]))
            theirs = levels(decode(path, [count // 2, count - 1], decoder=decoder))
        except DecodeError as error:
            outcomes.append(error.reason)
        else:
            outcomes.append("frames")
            assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1
    assert len(set(outcomes)) > 1


@pytest.mark.parametrize("decoder", OTHERS)
@pytest.mark.parametrize("damaged", [8, 10])
def test_damaged_packets_are_refused_if_a_frame_needs_them(
    damaged: int, decoder: Decoder, make_clip: MakeClip
) -> None:
    """Packet 8 holds a key frame, and packet 10 a frame that the following ones refer to."""
    path = make_clip("a.mp4", 24, size=(32, 64), options={"g": "8", "bf": "0"})
    every = decode(path, range(24))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        position, size = packets[damaged].pos, packets[damaged].size
    assert position is not None
    data = bytearray(path.read_bytes())
    data[position + 5 : position + size] = b"\x55" * (size - 5)  # the length and the type stay
    path.write_bytes(data)
    assert torch.equal(decode(path, [3, 19]), every[[3, 19]])
    with pytest.raises(
        DecodeError, match=rf"decoder {decoder} does not report the damage in this file; choose"
    ):
        decode(path, [11], decoder=decoder)


@pytest.mark.parametrize("decoder", OTHERS)
def test_an_error_of_the_crop_is_not_an_error_of_the_decoder(
    decoder: Decoder, make_clip: MakeClip
) -> None:
    path = make_clip("a.mp4", 9, codec="mpeg4", size=(64, 64))

    def crop(height: int, width: int) -> Box:
        raise RuntimeError(f"no box for {height}x{width}")

    with pytest.raises(RuntimeError, match=r"^no box for 64x64$"):
        decode(path, [2, 4], crop=crop, decoder=decoder)


@pytest.mark.parametrize("decoder", OTHERS)
def test_missing_package(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, decoder, None)
    monkeypatch.setitem(sys.modules, f"{decoder}.decoders", None)
    decode_others.import_decoder.cache_clear()
    with pytest.raises(
        ImportError, match=re.escape(f"pip install 'videoattn[{decoder}]', or choose decoder pyav")
    ):
        check_decoder(decoder)
    monkeypatch.undo()
    check_decoder(decoder)


@pytest.mark.parametrize("decoder", ["pyav", *OTHERS])
def test_every_frame_of_the_real_fixtures(decoder: Decoder, real_data: Path) -> None:
    """frames.json: what FFmpeg decodes; its grey levels cover the first 400 frames of a file.

    Every frame; of long and large files every few frames and the last.
    """
    root = real_data / "fixtures"
    generator = np.random.default_rng(0)
    for name, record in json.loads((root / "frames.json").read_text()).items():
        count, path = record["frames"], root / name
        if count == 0:
            with pytest.raises(DecodeError):
                decode(path, [0], decoder=decoder)
            with pytest.raises(DecodeError):
                count_frames(path)
            continue
        if decoder == "pyav":
            assert count_frames(path)[0] == count, name
        height, width = decode(path, [0]).shape[2:]
        step = 1 + count * height * width // (12_000_000 if decoder == "pyav" else 4_000_000)
        indices = np.union1d(np.arange(0, count, step), [count - 1])
        if (reason := refusal(path, name, decoder)) is not None:
            with pytest.raises(DecodeError, match=re.escape(reason)):
                decode(path, indices, decoder=decoder)
            continue
        frames = decode(path, indices, decoder=decoder)
        assert frames.shape[2:] == (height, width)
        step = max(height // 180, 1)
        grey = frames[..., ::step, ::step].float().mean(dim=(2, 3)).numpy()
        got = grey.astype(np.float64) @ [0.299, 0.587, 0.114]
        want = np.array(record["mean_gray"])[indices[indices < len(record["mean_gray"])]]
        check_sequence(name, got[: len(want)], want)
        asked = generator.integers(0, len(indices), size=6)
        again = decode(path, indices[asked], decoder=decoder)
        assert torch.equal(again, frames[torch.from_numpy(asked)]), name


def check_sequence(name: str, got: np.ndarray, want: np.ndarray) -> None:
    """Every frame is close, and closer than the frame before or after it."""
    error = got - want
    # The fast colour conversion is darker by a constant, up to 2 of 255 (clipped at black).
    assert np.abs(error).max() < 2.1, name
    residual = error - np.median(error)
    if len(want) > 2 and want.std() > 0.5:
        for shifted in (got[1:] - want[:-1], got[:-1] - want[1:]):
            assert np.abs(residual).mean() < np.abs(shifted - np.median(error)).mean(), name
