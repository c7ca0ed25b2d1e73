"""PyAV, decord and torchcodec: the same frames for the same indices, or an error that says why."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.conftest import COMMON_CLIPS, TORCHCODEC, MakeClip
from tests.data.test_decode import levels
from videoattn.data.decode import (
    Block,
    DecodeError,
    Decoder,
    check_decoder,
    count_frames,
    decode,
    decode_each,
)
from videoattn.data.decode import others as decode_others
from videoattn.data.decode.video import Image

OTHERS = ("decord", TORCHCODEC)

CLIPS = {
    **COMMON_CLIPS,
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=8:bframes=3:scenecut=0"}},
}

# Files of the fixtures that a decoder refuses when it is asked for every frame, and its words.
NO_NEXT = "fails (Requested next frame while there are no more frames left to decode.)"
UNTOLD = "needs packets that tell which frame is which"
B_FRAMES_IN_AVI = (
    "ucf101/ApplyLipstick/v_ApplyLipstick_g12_c02.avi",
    "ucf101/ApplyLipstick/v_ApplyLipstick_g10_c01.avi",
    "ucf101/BalanceBeam/v_BalanceBeam_g01_c02.avi",
    "hmdb51/brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi",
    "hmdb51/climb_stairs/Increase_stride_length_by_running_stairs__working_step_over_action_speed"
    "_development_climb_stairs_f_cm_np1_le_med_1.avi",
    "hmdb51/pour/KOREAN_TEA_CEREMONY_-_Simple_Demo_pour_u_nm_np1_fr_med_0.avi",
    "hmdb51/cartwheel/cartwheel.avi",
    "ntu/S001C001P001R001A001_rgb.avi",
)
REFUSED = {
    "pyav": {},
    "decord": {
        "kinetics_like/carving_ice.mp4": "takes one of 2 video streams",
        "codec/nasa_13013.mp4": "takes one of 2 video streams",
        "ucf11/biking/v_biking_01/v_biking_01_01.mpg": "is not exact in files of the kind mpeg",
        "codec/av1_video.mkv": "ERROR cannot find video stream",
        "oneframe/tiny_av1.mp4": "ERROR cannot find video stream",
        "codec/newtonscradle.gif": "Failed to measure duration/frame-count",
        "broken/corrupted.mp4": UNTOLD,
        "broken/no_timescale.mp4": UNTOLD,
    },
    "torchcodec": {
        **dict.fromkeys(B_FRAMES_IN_AVI, NO_NEXT),
        "ucf11/biking/v_biking_01/v_biking_01_01.mpg": "is not exact in files of the kind mpeg",
        "broken/corrupted.mp4": UNTOLD,
        "broken/no_timescale.mp4": UNTOLD,
    },
}


@pytest.mark.parametrize("decoder", OTHERS)
@pytest.mark.parametrize("name", CLIPS)
def test_same_frames_as_pyav(name: str, decoder: str, make_clip: MakeClip) -> None:
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
def test_refusals(decoder: str, make_clip: MakeClip) -> None:
    path = make_clip("a.mp4", 9)
    with pytest.raises(
        DecodeError, match=r"frame 9 was asked for, but only 9 frames decode \(0 - 8\)$"
    ) as caught:
        decode(path, [3, 9], decoder=decoder)
    assert caught.value.num_frames == 9
    path = make_clip("a.mpg", 9, codec="mpeg1video")
    with pytest.raises(
        DecodeError,
        match=rf"decoder {decoder} is not exact in files of the kind mpeg; choose decoder pyav$",
    ):
        decode(path, [0], decoder=decoder)
    (path.parent / "empty.mp4").touch()
    with pytest.raises(DecodeError, match=r"the file is empty \(0 bytes\)$"):
        decode(path.parent / "empty.mp4", [0], decoder=decoder)


@pytest.mark.parametrize("decoder", OTHERS)
def test_damage_is_never_another_frame(decoder: str, make_clip: MakeClip) -> None:
    path = make_clip("a.avi", 30, size=(32, 64), codec="mpeg4")
    data = bytearray(path.read_bytes())
    start = data.index(b"movi") + 4
    generator = np.random.default_rng(0)
    outcomes = []
    for _ in range(12):
        damaged = data.copy()
        at = generator.integers(start, len(data) - 400, size=20)
        for place in at:
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


def test_read_on_starts_at_the_first_frame(make_clip: MakeClip) -> None:
    path = make_clip("a.avi", 9, codec="mpeg4")
    images = decode(path, range(9)).permute(0, 2, 3, 1).numpy()
    read = decode_others._read_on
    wanted = np.array([2, 4])
    block = Block(2)
    read(path, "x", wanted, block.put, images[0], lambda i: images[i])
    np.testing.assert_array_equal(block.frames().permute(0, 2, 3, 1), images[[2, 4]])
    for wrong in (lambda i: images[i + 1], lambda i: images[i][:-1]):
        with pytest.raises(DecodeError, match="decoder x gives a first frame that is not PyAV's"):
            read(path, "x", wanted, block.put, images[0], wrong)


@pytest.mark.parametrize("decoder", OTHERS)
@pytest.mark.parametrize("name", ["a.avi", "b.mp4"])
def test_an_error_of_who_takes_the_frames_is_no_error_of_the_decoder(
    name: str, decoder: Decoder, make_clip: MakeClip
) -> None:
    path = make_clip(name, 9, codec="mpeg4", size=(64, 64))

    def put(slot: int, image: Image) -> None:
        raise RuntimeError(f"no room for frame {slot} of {image.shape}")

    with pytest.raises(RuntimeError, match=r"^no room for frame 0 of \(64, 64, 3\)$"):
        decode_each(path, np.array([2, 4]), put, decoder=decoder)


@pytest.mark.parametrize("decoder", OTHERS)
def test_missing_package(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = {
        "decord": decode_others.import_decord,
        "torchcodec": decode_others.import_torchcodec,
    }
    monkeypatch.setitem(sys.modules, decoder, None)
    imported[decoder].cache_clear()
    with pytest.raises(
        ImportError, match=re.escape(f"pip install 'videoattn[{decoder}]', or choose decoder pyav")
    ):
        check_decoder(decoder)
    monkeypatch.undo()
    check_decoder(decoder)


@pytest.mark.parametrize("decoder", ["pyav", *OTHERS])
def test_every_frame_of_the_real_fixtures(decoder: str, real_data: Path) -> None:
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
        if name in REFUSED[decoder]:
            with pytest.raises(DecodeError, match=re.escape(REFUSED[decoder][name])):
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
    """Close in every frame, and closer as it stands than shifted by a frame either way."""
    error = got - want
    # The fast colour conversion is darker by a constant, up to 2 of 255 (clipped at black).
    assert np.abs(error).max() < 2.1, name
    residual = error - np.median(error)
    if len(want) > 2 and want.std() > 0.5:
        for shifted in (got[1:] - want[:-1], got[:-1] - want[1:]):
            assert np.abs(residual).mean() < np.abs(shifted - np.median(error)).mean(), name
