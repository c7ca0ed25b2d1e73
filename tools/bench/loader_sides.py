"""The loaders that `loader.py` compares with: decord, pytorchvideo, and the ffmpeg program."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
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

Clips = Callable[[int], Iterator[int]]
"""Maps an epoch to an iterator over the number of clips in each batch."""


def decord_clips(samples: Samples, sampler: Sampler, *, num_workers: int = 0) -> Clips:
    """Loads clips with decord as mmaction2's training pipelines do.

    They read the frames, resize whole frames, crop at a random scale and resize again. Here torch
    resizes (uint8, antialiased), which takes as long as OpenCV.
    """
    loader: DataLoader[Tensor] = DataLoader(
        _DecordDataset(samples, sampler),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    return lambda _: (len(batch) for batch in loader)


class _DecordDataset(Dataset[Tensor]):
    def __init__(self, samples: Samples, sampler: Sampler) -> None:
        self._samples = samples
        self._sampler = sampler
        self._draw = 0

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Tensor:
        import decord

        self._draw += 1
        generator = sample_generator(0, self._draw, index)
        reader = decord.VideoReader(str(self._samples.path(index)), num_threads=1)
        indices = self._sampler(len(reader), 30.0, generator)[0]
        unique, inverse = np.unique(indices, return_inverse=True)
        frames = torch.from_numpy(reader.get_batch(unique).asnumpy()[inverse]).permute(0, 3, 1, 2)
        frames = resize(frames, _scaled(*frames.shape[-2:]))
        height, width = frames.shape[-2:]
        box = CROP(height, width, generator)
        frames = resize(frames[..., box.y0 : box.y1, box.x0 : box.x1], CROP.crop)
        return _flip(frames, generator)


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
    return lambda _: (len(batch) for batch in loader)


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
    """Returns the size with a short side of 256."""
    scale = SHORT_SIDE / min(height, width)
    return max(round(height * scale), SHORT_SIDE), max(round(width * scale), SHORT_SIDE)


def _flip(frames: Tensor, generator: torch.Generator) -> Tensor:
    return frames.flip(-1) if float(torch.rand(1, generator=generator)) < 0.5 else frames
