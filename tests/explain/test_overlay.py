from pathlib import Path

import av
import numpy as np
import pytest

from tests.explain.maps import grey_frames, one_hot_map
from videoattn.explain import write_overlay
from videoattn.explain.overlay import STRIP, even_size


def test_the_file_holds_every_frame_as_long_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    write_overlay(path, grey_frames((4, 23, 31)), one_hot_map((1, 1, 2)), hold=3, short_side=320)
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


def test_sizes_are_even_and_large_enough_to_see() -> None:
    assert even_size(72, 72, 448) == (448, 448)
    assert even_size(23, 31, 320) == (320, 432)
    assert even_size(481, 641, 448) == (480, 640)


def test_a_frame_is_held_at_least_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hold: 0 file frames .* give 1 or more"):
        write_overlay(tmp_path / "a.mp4", grey_frames(), one_hot_map(), hold=0)
