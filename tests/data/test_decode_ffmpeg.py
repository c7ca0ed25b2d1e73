"""Frames are equal to those of the `ffmpeg` program, which is another build of FFmpeg."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from videoattn.data.decode import decode
from videoattn.data.synthetic import demo_clip, encode_clip

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")


def frames_of_ffmpeg(path: Path, height: int, width: int) -> np.ndarray:
    words = ["ffmpeg", "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    words += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(words, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def test_moving_pictures_with_b_frames(tmp_path: Path) -> None:
    clip = demo_clip("turns_clockwise", seed=0, split="test", number=0)
    path = tmp_path / "clip.mp4"
    encode_clip(path, clip)
    theirs = frames_of_ffmpeg(path, *clip.frames.shape[2:])
    assert len(theirs) == len(clip.frames)
    wanted = [3, 17, 4, 4, len(theirs) - 1, 0]
    ours = decode(path, wanted).permute(0, 2, 3, 1).numpy()
    difference = np.abs(ours.astype(int) - theirs[wanted].astype(int))
    assert difference.mean() < 2  # fast colour conversion rounds by a level or two
    neighbour = np.abs(ours[0].astype(int) - theirs[4].astype(int)).mean()
    assert neighbour > 2 * difference[0].mean()  # the next frame would be seen
