"""Clips per second of the loader, beside decord with full-frame resizing, in one run.

The reference does what the common loaders do: decord reads the clip's frames, every whole frame is
resized to a short side of 256 (uint8, antialiased: torchvision's way), then 224 x 224 are cut.
Both draw the same kinds of clip from the same files in the same number of processes, alternating.
"""

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from videoattn.data.annotations import VIDEO_SUFFIXES, Samples
from videoattn.data.augment import ShortSideCrop, TrainTransform
from videoattn.data.dataset import ClipDataset, sample_generator
from videoattn.data.decode import DecodeError, probe
from videoattn.data.loader import ClipLoader
from videoattn.data.sampling import Sampler, train_sampler
from videoattn.types import Frames

CROP = 224
SHORT_SIDE = 256
BATCH_SIZE = 4

SETTINGS: dict[str, Sampler] = {
    "dense 32x2": train_sampler("dense", num_frames=32, frame_stride=2),
    "dense 8x8": train_sampler("dense", num_frames=8, frame_stride=8),
    "8 segments": train_sampler("segments", num_frames=8),
}


def loader_benchmark(
    root: Path, *, num_workers: int, seconds: float
) -> list[dict[str, str | int | float]]:
    """One row per sampling: setting, videos, ours and decord in clips/s, and ours over decord.

    `seconds` is how long each side of each row runs, in three turns of a third. Frame counts are
    made in the first pass over the files and are part of the time, as in training.

    Raises: ValueError when `root` holds no video that decodes; ImportError without decord.
    """
    _import_decord()
    samples = find_videos(root)
    rows: list[dict[str, str | int | float]] = []
    for name, sampler in SETTINGS.items():
        dataset = ClipDataset(
            samples,
            sample_frames=sampler,
            transform=TrainTransform(ShortSideCrop((CROP, CROP), (SHORT_SIDE, SHORT_SIDE))),
        )
        ours = ClipLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=num_workers)
        theirs: DataLoader[Tensor] = DataLoader(
            _DecordDataset(samples, sampler),
            batch_size=BATCH_SIZE,
            shuffle=True,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        rates = _alternate(
            {
                "ours": _Endless(partial(_ours, ours)),
                "decord": _Endless(partial(_theirs, theirs)),
            },
            num_workers,
            seconds,
        )
        # Workers of this row end now: forked into the next row's, their handles would complain.
        del ours, theirs
        gc.collect()
        rows.append(
            {
                "setting": name,
                "videos": len(samples),
                "num_workers": num_workers,
                "ours_clips_per_second": rates["ours"],
                "decord_clips_per_second": rates["decord"],
                "ratio": rates["ours"] / rates["decord"],
            }
        )
    return rows


def find_videos(root: Path) -> Samples:
    """Every video under `root` that both sides can be asked for: 8 frames or more."""
    if not root.is_dir():
        raise ValueError(f"data root {root} does not exist; set data.root to the folder of videos")
    paths = []
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        try:
            if probe(path).num_frames >= 8:
                paths.append(str(path.relative_to(root)))
        except DecodeError:
            continue  # fixtures hold broken files on purpose; a benchmark is no check
    if not paths:
        raise ValueError(f"{root} holds no video of 8 frames or more that decodes")
    return Samples(root, paths=paths, labels=[0] * len(paths), class_names=["any"])


class _DecordDataset(Dataset[Tensor]):
    def __init__(self, samples: Samples, sampler: Sampler) -> None:
        self._samples = samples
        self._sampler = sampler
        self._draw = 0

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Frames:
        decord = _import_decord()
        self._draw += 1
        generator = sample_generator(0, self._draw, index)
        reader = decord.VideoReader(str(self._samples.path(index)), num_threads=1)
        indices = self._sampler(len(reader), 30.0, generator)[0]
        wanted, places = np.unique(indices, return_inverse=True)
        frames = torch.from_numpy(reader.get_batch(wanted).asnumpy()[places]).permute(0, 3, 1, 2)
        height, width = frames.shape[-2:]
        scale = SHORT_SIDE / min(height, width)
        size = [max(round(height * scale), SHORT_SIDE), max(round(width * scale), SHORT_SIDE)]
        frames = F.interpolate(frames, size=size, mode="bilinear", antialias=True)
        y, x = torch.rand(2, generator=generator).tolist()
        y0, x0 = int(y * (size[0] - CROP)), int(x * (size[1] - CROP))
        frames = frames[..., y0 : y0 + CROP, x0 : x0 + CROP]
        return frames.flip(-1) if float(torch.rand(1, generator=generator)) < 0.5 else frames


def _ours(loader: ClipLoader, epoch: int) -> Iterator[Tensor]:
    return (batch.frames for batch in loader.epoch(epoch))


def _theirs(loader: "DataLoader[Tensor]", epoch: int) -> Iterator[Tensor]:
    return iter(loader)


class _Endless:
    """Batches of one epoch after the other, with the time of each piece that is asked for."""

    def __init__(self, epoch_of: Callable[[int], Iterator[Tensor]]) -> None:
        self._epoch_of = epoch_of
        self._batches = self._run()

    def _run(self) -> Iterator[Tensor]:
        epoch = 0
        while True:
            yield from self._epoch_of(epoch)
            epoch += 1

    def clips_in(self, seconds: float) -> tuple[int, float]:
        """(clips, seconds) until that many seconds are over, at a batch's end."""
        start, clips = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            clips += len(next(self._batches))
        return clips, time.perf_counter() - start


def _alternate(sides: dict[str, _Endless], num_workers: int, seconds: float) -> dict[str, float]:
    """Clips per second of each side; the turns spread a machine's moods over both.

    Each turn starts with as many batches, uncounted, as workers made ready while the other ran.
    """
    clips = dict.fromkeys(sides, 0)
    spent = dict.fromkeys(sides, 0.0)
    for _ in range(3):
        for name, side in sides.items():
            for _ in range(2 * num_workers + 1):
                side.clips_in(1e-9)
            done, took = side.clips_in(seconds / 3)
            clips[name] += done
            spent[name] += took
    return {name: clips[name] / spent[name] for name in sides}


def _import_decord() -> ModuleType:
    try:
        import decord
    except ImportError as error:
        raise ImportError(
            "the loader benchmark compares with decord, which is not installed; "
            "install the extra: pip install 'videoattn[decord]'"
        ) from error
    module: ModuleType = decord
    return module
