import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image

from tests.explain.maps import gray_frames, hot_spot, one_box, one_hot_map
from videoattn.attention.maps import GateMap
from videoattn.explain import write_overlay
from videoattn.explain.overlay import STRIP, even_size


def test_the_file_holds_every_frame_for_the_given_time(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    write_overlay(path, gray_frames((4, 23, 31)), one_hot_map((1, 1, 2)), hold=3, short_side=320)
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert len(frames) == 12
    assert frames[0].shape == (320 + STRIP, 432, 3)
    hot = [int(np.ptp(frame[160, 270].astype(int))) > 60 for frame in frames]
    assert hot == [False] * 6 + [True] * 6
    ring = [int(frame[:320].max()) for frame in frames]  # bright on its frame, then faint
    assert min(ring[:3]) > 230
    assert max(ring[3:6]) < 215


def test_a_webp_holds_every_frame_once(tmp_path: Path) -> None:
    path = tmp_path / "overlay.webp"
    write_overlay(path, gray_frames((4, 23, 31)), one_hot_map((1, 1, 2)), hold=5, short_side=320)
    with Image.open(path) as file:
        assert (file.format, file.n_frames, file.size) == ("WEBP", 4, (432, 320 + STRIP))
        frames = []
        for number in range(4):
            file.seek(number)
            frames.append(np.asarray(file.convert("RGB")))
            assert file.info["duration"] == 200
    hot = [int(np.ptp(frame[160, 270].astype(int))) > 60 for frame in frames]
    assert hot == [False, False, True, True]


def test_sizes_are_even_and_large_enough_to_see() -> None:
    assert even_size(72, 72, 448) == (448, 448)
    assert even_size(23, 31, 320) == (320, 432)
    assert even_size(481, 641, 448) == (480, 640)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ((4320, 8192), (1012, 1920)),
        ((4096, 2160), (1920, 1012)),
        ((16, 4096), (8, 1920)),  # too narrow for any short side
        ((1, 5000), (2, 1920)),
        ((1080, 1920), (1080, 1920)),
    ],
)
def test_no_frame_is_drawn_larger_than_the_limit(
    frame: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert even_size(*frame, 448) == expected


def test_the_drawn_size_is_returned(tmp_path: Path) -> None:
    path, frames = tmp_path / "a.mp4", torch.zeros(4, 3, 30, 2400, dtype=torch.uint8)
    assert write_overlay(path, frames, one_hot_map((1, 1, 2)), hold=1) == (24, 1920)
    with av.open(str(path)) as file:
        assert (file.streams.video[0].height, file.streams.video[0].width) == (24 + STRIP, 1920)


def test_a_frame_is_held_at_least_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hold: got 0; need 1 or more file frames"):
        write_overlay(tmp_path / "a.mp4", gray_frames(), one_hot_map(), hold=0)


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(video=0)]


def test_weights_without_a_query_are_drawn_over_the_frames(tmp_path: Path) -> None:
    weights = hot_spot(1, 2, 3, 4, at=(0, 1, 1, 2))
    path = tmp_path / "a.mp4"
    write_overlay(
        path, gray_frames(), GateMap("spatial", weights, identity_value=1.0), hold=2, short_side=240
    )
    frames = decoded(path)
    assert len(frames) == 8
    assert frames[0].shape == (240 + STRIP, 320, 3)
    hot = [int(np.ptp(frame[120, 200])) > 60 for frame in frames]
    assert hot == [False] * 4 + [True] * 4
    strip = [int(frame[-STRIP:].max()) for frame in frames]
    assert min(strip) > 200  # the bar of the current frame is white


def test_a_box_is_drawn_next_to_its_contents(tmp_path: Path) -> None:
    frames = gray_frames(level=60)
    frames[:, :, 6:18, 8:24] = 200
    path = tmp_path / "a.mp4"
    write_overlay(path, frames, one_box(left_out=3), hold=1, short_side=240)
    drawn = decoded(path)
    assert drawn[0].shape[1] % 2 == 0
    assert drawn[0].shape[1] > 640
    yellow = (drawn[0][61, 100:220] - (255, 214, 10))[:, 2]
    assert np.abs(yellow).mean() < 60  # its upper side, in 4:2:0
    assert abs(drawn[0][120, 160].mean() - 200) < 6
    assert abs(drawn[0][20:220, 360:620].mean() - 200) < 6  # the crop
    assert abs(drawn[3][20:220, 360:620].mean() - 235) < 6


def test_the_window_of_a_local_map_is_outlined(tmp_path: Path) -> None:
    whole, local = (tmp_path / name for name in ("whole.mp4", "local.mp4"))
    attention_map = one_hot_map((1, 1, 2))
    write_overlay(whole, gray_frames(), attention_map, hold=1, short_side=240)
    windowed = dataclasses.replace(attention_map, kind="local")
    write_overlay(local, gray_frames(), windowed, hold=1, short_side=240)
    changed = [
        np.argwhere(np.abs(a - b)[:240].max(axis=2) > 60)
        for a, b in zip(decoded(local), decoded(whole), strict=True)
    ]
    assert [len(pixels) > 0 for pixels in changed] == [False, False, True, True]
    assert_allclose(changed[2].min(axis=0), (80, 160), atol=3)
    assert_allclose(changed[2].max(axis=0), (159, 239), atol=3)


def test_a_temporal_gate_has_no_overlay(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"temporal map: cannot be drawn over frames; need one of spatial, mask"
    ):
        write_overlay(tmp_path / "a.mp4", gray_frames(), GateMap("temporal", torch.ones(1, 4)))
