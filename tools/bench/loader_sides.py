"""The loaders that `loader.py` compares with: pipelines of mmaction2 with decord and OpenCV,
pytorchvideo, and the ffmpeg program."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from videoattn.data.dataset import sample_generator
from videoattn.data.decode import count_frames
from videoattn.data.lists import Samples
from videoattn.data.sampling import Sampler
from videoattn.data.transforms import resize
from videoattn.data.transforms.augment import MultiScaleCrop

SHORT_SIDE = 256
CROP = MultiScaleCrop((224, 224), (1.0, 0.8))  # the scales of mmaction2's I3D recipes
BATCH_SIZE = 4

Clips = Callable[[int], Iterator[Tensor]]
"""Maps an epoch to an iterator over its batches; each row of a batch is a clip."""


class Reader(Protocol):
    """Opens the video at a path. `read` returns RGB frames by their numbers."""

    def __init__(self, path: str) -> None: ...

    def __len__(self) -> int: ...

    def read(self, numbers: np.ndarray) -> UInt8[np.ndarray, "T H W 3"]: ...


class DecordReader:
    """Reads frames with decord: each once, in one call."""

    def __init__(self, path: str) -> None:
        import decord

        self._reader = decord.VideoReader(path, num_threads=1)

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, numbers: np.ndarray) -> UInt8[np.ndarray, "T H W 3"]:
        unique, inverse = np.unique(numbers, return_inverse=True)
        frames: np.ndarray = self._reader.get_batch(unique).asnumpy()
        return frames[inverse]


class OpenCVReader:
    """Reads frames as mmcv's VideoReader does: it takes the number of frames from the header, keeps
    the last 10 frames, and seeks before each frame that does not follow the previous one.

    Raises:
        ImportError: If OpenCV is not installed.
    """

    def __init__(self, path: str) -> None:
        import cv2

        cv2.setNumThreads(0)  # as mmengine sets it
        self._place, self._capture = cv2.CAP_PROP_POS_FRAMES, cv2.VideoCapture(path)
        self._count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._next = 0
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._count

    def read(self, numbers: np.ndarray) -> UInt8[np.ndarray, "T H W 3"]:
        return np.stack([self._frame(number) for number in numbers.tolist()])[..., ::-1]

    def _frame(self, number: int) -> np.ndarray:
        if number in self._kept:
            return self._kept[number]
        if number != self._next:
            self._capture.set(self._place, number)
            for _ in range(number - round(self._capture.get(self._place))):
                self._capture.read()
        found, frame = self._capture.read()
        if not found:  # the header states too many frames
            return self._frame(number - 1)
        self._next = number + 1
        self._kept[number] = frame
        if len(self._kept) > 10:
            del self._kept[next(iter(self._kept))]
        return frame


def torch_resize(frames: np.ndarray, size: tuple[int, int]) -> UInt8[np.ndarray, "T h w 3"]:
    """Resizes frames as our loader does: bilinear, antialiased."""
    return resize(torch.from_numpy(frames).permute(0, 3, 1, 2), size).permute(0, 2, 3, 1).numpy()


def opencv_resize(frames: np.ndarray, size: tuple[int, int]) -> UInt8[np.ndarray, "T h w 3"]:
    """Resizes each frame with OpenCV: bilinear, not antialiased."""
    import cv2

    return np.stack([cv2.resize(frame, size[::-1]) for frame in frames])


READERS: dict[str, tuple[type[Reader], Callable[..., np.ndarray]]] = {
    "decord, whole frames resized": (DecordReader, torch_resize),
    "OpenCV, whole frames resized": (OpenCVReader, opencv_resize),
}
"""How mmaction2's pipelines read and resize frames: name -> (reader, resize function)."""


def whole_frame_clips(
    name: str, samples: Samples, sampler: Sampler, *, num_workers: int = 0
) -> Clips:
    """Loads clips as mmaction2's training pipelines do: they read the frames, resize whole frames,
    crop at a random scale and resize again.

    Raises:
        ImportError: If the library is not installed.
    """
    loader: DataLoader[Tensor] = DataLoader(
        _WholeFrames(name, samples, sampler),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    return lambda _: iter(loader)


class _WholeFrames(Dataset[Tensor]):
    def __init__(self, name: str, samples: Samples, sampler: Sampler) -> None:
        self._open, self._resize = READERS[name]
        self._samples = samples
        self._sampler = sampler
        self._draw = 0
        self._open(str(samples.path(0)))  # raises if the library is not installed

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Tensor:
        self._draw += 1
        generator = sample_generator(0, self._draw, index)
        reader = self._open(str(self._samples.path(index)))
        frames = reader.read(self._sampler(len(reader), 30.0, generator)[0])
        height, width = _scaled(*frames.shape[1:3])
        frames = self._resize(frames, (height, width))
        y0, x0, y1, x1 = CROP(height, width, generator)
        frames = self._resize(frames[:, y0:y1, x0:x1], CROP.crop)
        return _flip(torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2), generator)


def whole_frame_views(name: str, path: Path, sampler: Sampler) -> int:
    """Makes the test views of a video as mmaction2 does: it reads the frames of all clips, resizes
    whole frames, and cuts three squares out of each. Returns the number of views."""
    open_video, resize_frames = READERS[name]
    reader = open_video(str(path))
    numbers = sampler(len(reader), 30.0, torch.Generator())
    frames = reader.read(numbers.ravel())
    frames = resize_frames(frames, _scaled(*frames.shape[1:3]))
    height, width = frames.shape[1:3]
    y, x = height - SHORT_SIDE, width - SHORT_SIDE
    crops = [
        frames[:, y0 : y0 + SHORT_SIDE, x0 : x0 + SHORT_SIDE]
        for y0, x0 in ((0, 0), (y // 2, x // 2), (y, x))
    ]
    views = np.stack(crops).reshape(3, *numbers.shape, SHORT_SIDE, SHORT_SIDE, 3)
    return views.shape[0] * views.shape[1]


def pytorchvideo_clips(samples: Samples, seconds: float, num_frames: int) -> Clips:
    """Loads clips with pytorchvideo's LabeledVideoDataset and the transforms of its tutorial.

    It decodes all frames of the clip with PyAV, and then selects, resizes and crops frames.

    Raises:
        ImportError: If pytorchvideo is not installed.
    """
    from pytorchvideo.data import LabeledVideoDataset, make_clip_sampler

    generator = torch.Generator().manual_seed(0)

    def transform(sample: dict[str, Tensor]) -> Tensor:
        video = sample["video"]  # (C, T, H, W) float
        video = video[:, torch.linspace(0, video.shape[1] - 1, num_frames).long()]
        video = F.interpolate(video, size=_scaled(*video.shape[-2:]), mode="bilinear")
        y, x = torch.rand(2, generator=generator).tolist()
        h, w = CROP.crop
        y0, x0 = int(y * (video.shape[-2] - h)), int(x * (video.shape[-1] - w))
        return _flip(video[..., y0 : y0 + h, x0 : x0 + w], generator)

    dataset: IterableDataset[Tensor] = LabeledVideoDataset(
        [(str(samples.path(index)), {}) for index in range(len(samples))],
        make_clip_sampler("random", seconds),
        transform=transform,
        decode_audio=False,
    )
    loader: DataLoader[Tensor] = DataLoader(dataset, batch_size=BATCH_SIZE)
    return lambda _: iter(loader)


def ffmpeg_rate(samples: Samples, sampler: Sampler, seconds: float) -> float:
    """Returns the clips per second that the ffmpeg program decodes with one thread.

    It decodes from the key frame before a clip's first frame to its last frame. Nothing is
    converted, resized or copied. The time excludes the start of ffmpeg.

    Raises:
        FileNotFoundError: If ffmpeg is not installed.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise FileNotFoundError("ffmpeg is not installed; run apt-get install ffmpeg")
    started, clips, spent = time.perf_counter(), 0, 0.0
    while clips < 1 or time.perf_counter() - started < seconds:
        path = samples.path(clips % len(samples))
        num_frames, fps = count_frames(path)
        clip = sampler(num_frames, fps, sample_generator(0, clips, 0))[0]
        first, last = int(clip.min()), int(clip.max())
        command = [program, "-hide_banner", "-nostdin", "-benchmark", "-threads", "1"]
        command += ["-ss", f"{first / fps:.3f}", "-i", str(path), "-an"]
        command += ["-frames:v", str(last - first + 1), "-f", "null", "-"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        clips, spent = clips + 1, spent + float(re.findall(r"rtime=([0-9.]+)s", output)[-1])
    return clips / max(spent, 1e-3)


def _scaled(height: int, width: int) -> tuple[int, int]:
    """Returns the (height, width) of a frame that is resized to a short side of 256."""
    scale = SHORT_SIDE / min(height, width)
    return max(round(height * scale), SHORT_SIDE), max(round(width * scale), SHORT_SIDE)


def _flip(frames: Tensor, generator: torch.Generator) -> Tensor:
    return frames.flip(-1) if float(torch.rand(1, generator=generator)) < 0.5 else frames
