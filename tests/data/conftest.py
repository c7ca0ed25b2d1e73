"""Clips that the tests encode themselves, and real ones where VIDEOATTN_DATA names them."""

import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from videoattn.data.decode.pyav import Video
from videoattn.data.decode.rgb import ToRGB
from videoattn.types import Frames

MakeClip = Callable[..., Path]
BreakDecoder = Callable[..., None]

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None,
    reason="torchcodec needs FFmpeg's shared libraries: apt-get install ffmpeg",
)
TORCHCODEC = pytest.param("torchcodec", marks=needs_ffmpeg)

COMMON_CLIPS = {
    "h264.mp4": {},
    "h264.mkv": {},
    "variable.mp4": {"times": [0, 1, 2, 7, 8, 20, 21, 22, 40, 41, 42, 43, 60, 61, 90, 91, 92, 99]},
    "delayed.mkv": {"times": list(range(100, 118))},
    "mpeg4.avi": {"codec": "mpeg4"},
}
"""Options of `make_clip`, for clips of 18 frames."""


def decode_all(path: Path) -> Frames:
    """Decodes every frame from the first packet on, which defines the number of each frame."""
    to_rgb = ToRGB()
    with Video(path) as video:
        images = [to_rgb(frame).copy() for frame in video.frames()]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@pytest.fixture
def real_data() -> Path:
    root = os.environ.get("VIDEOATTN_DATA")
    if not root:
        pytest.skip("needs real clips: set VIDEOATTN_DATA to their folder")
    return Path(root)


@pytest.fixture
def make_clip(tmp_path: Path) -> MakeClip:
    """make_clip(name, num_frames): frame i has the gray level 20 + 4 * i, which identifies it."""

    def make(
        name: str,
        num_frames: int = 12,
        *,
        size: tuple[int, int] = (32, 48),
        times: list[int] | None = None,
        codec: str = "libx264",
        options: dict[str, str] | None = None,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(25))
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            if codec == "libx264":
                default = {"g": "8", "bf": "3", "x264-params": "scenecut=0", "qp": "4"}
                stream.options = default | (options or {})
            else:
                stream.bit_rate = 4_000_000
            stream.codec_context.thread_count = 1
            for i in range(num_frames):
                image = np.full((*size, 3), 20 + 4 * i, np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = i if times is None else times[i]
                frame.time_base = Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make


@pytest.fixture
def thirteen(make_clip: MakeClip, tmp_path: Path) -> Path:
    """13 clips of two classes in folders; lengths differ, one is H.264 in Matroska."""
    for i in range(13):
        name = f"thirteen/{'left' if i % 2 else 'right'}/{i:02d}.{'mkv' if i == 3 else 'mp4'}"
        make_clip(name, 10 + i, size=(32, 48 + 2 * i))
    return tmp_path / "thirteen"


@pytest.fixture
def break_decoder(monkeypatch: pytest.MonkeyPatch) -> BreakDecoder:
    """break_decoder(do, name, ...): calls `do` in a worker that opens one of these files."""
    opened = Video.__init__

    def change(do: Callable[[], object], *names: str) -> None:
        def broken(video: Video, path: Path) -> None:
            if Path(path).name in names and get_worker_info() is not None:
                do()
            opened(video, path)

        monkeypatch.setattr(Video, "__init__", broken)

    return change
