"""A video and its label by (epoch, index): sampled, decoded in one pass, cropped.

All randomness of a sample comes from a generator seeded by (seed, epoch, index): neither the
number of workers, nor of ranks, nor where a run was resumed changes a byte.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from videoattn.data.annotations import Samples
from videoattn.data.decode import DecodeError, count_frames, decode
from videoattn.data.frame_folder import count_folder, decode_folder
from videoattn.data.sampling import Sampler, ShortVideoError
from videoattn.data.transforms import Clips, Crops
from videoattn.types import Failure, Frames

Transform = Callable[[Clips, torch.Generator], Crops]


@dataclass(frozen=True)
class Sample:
    """One video's views, its label (-1: none) and its place in the data set."""

    frames: UInt8[Tensor, "V T C H W"]
    label: int
    index: int


class ClipDataset(Dataset[Sample | Failure]):
    """`dataset[(epoch, index)]` -> Sample, or Failure for a file that fails under on_error="skip".

    `still_frame` replaces a clip by its middle frame, repeated: what the scene alone tells.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        sample_frames: Sampler,
        transform: Transform,
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        still_frame: bool = False,
    ) -> None:
        self.samples = samples
        self.sample_frames = sample_frames
        self.transform = transform
        self.seed = seed
        self.on_error = on_error
        self.still_frame = still_frame
        # What nobody knows yet is counted on first use, in memory that workers share: no file is
        # counted twice in a run.
        self._counts = torch.zeros(len(samples), dtype=torch.int64).share_memory_()
        self._rates = torch.zeros(len(samples), dtype=torch.float64).share_memory_()
        if samples.num_frames is not None:
            self._counts += torch.from_numpy(samples.num_frames)
        if samples.fps is not None:
            self._rates += torch.from_numpy(samples.fps)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Sample | Failure:
        item = self.fetch(key)
        if isinstance(item, Failure) and self.on_error == "raise":
            raise DecodeError(item.path, item.reason)
        return item

    def fetch(self, key: tuple[int, int]) -> Sample | Failure:
        """The same, with a failure handed back whatever `on_error` says."""
        epoch, index = key
        try:
            frames = self.clips(epoch, index)
        except DecodeError as error:
            return Failure(index, error.path, error.reason)
        return Sample(frames, self.samples.label(index), index)

    def clips(self, epoch: int, index: int) -> UInt8[Tensor, "V T C H W"]:
        """The transformed views of one video. Raises: DecodeError."""
        generator = sample_generator(self.seed, epoch, index)
        start = generator.get_state()
        num_frames, fps = self._timing(index)
        try:
            return self._views(num_frames, fps, index, generator)
        except DecodeError as error:
            # The packet count promised more than decodes (damage): sample again from what is
            # there. Not remembered, or a resumed run would draw other clips than this one.
            if error.num_frames is None or error.num_frames >= num_frames:
                raise
            generator.set_state(start)
            return self._views(error.num_frames, fps, index, generator)

    def no_clips(self) -> UInt8[Tensor, "N V T C H W"]:
        """A batch of none, in the shape that others have: what is left when all samples fail."""
        generator = sample_generator(0, 0, 0)
        num_clips, num_frames = self.sample_frames(1 << 20, 30.0, generator).shape
        clips = torch.zeros(num_clips, num_frames, 3, 64, 64, dtype=torch.uint8)
        return self.transform(clips, generator)[None][:0]

    def _views(
        self, num_frames: int, fps: float, index: int, generator: torch.Generator
    ) -> UInt8[Tensor, "V T C H W"]:
        path = self.samples.path(index)
        try:
            indices = self.sample_frames(num_frames, fps, generator)
        except ShortVideoError as error:
            raise DecodeError(path, str(error)) from error
        if self.still_frame:
            middle = indices.shape[1] // 2
            indices = np.repeat(indices[:, middle : middle + 1], indices.shape[1], axis=1)
        wanted, places = np.unique(indices, return_inverse=True)
        crops = self.transform(self._decode(path, wanted)[None], generator)
        # Frames that clips share, or a clip repeats, are decoded and resized once: (K, U, ...).
        places = places.reshape(indices.shape)
        if np.array_equal(places, np.arange(len(wanted))[None]):
            return crops
        views = crops[:, torch.from_numpy(places)]  # (K crops, clips, T, C, H, W)
        return views.transpose(0, 1).flatten(0, 1)

    def _decode(self, path: Path, indices: np.ndarray) -> Frames:
        template = self.samples.frame_template
        return decode(path, indices) if template is None else decode_folder(path, indices, template)

    def _timing(self, index: int) -> tuple[int, float]:
        count = int(self._counts[index])
        if count == 0:
            path, template = self.samples.path(index), self.samples.frame_template
            count, fps = count_frames(path) if template is None else count_folder(path, template)
            # The rate first: another worker that sees the count must find the rate there.
            self._rates[index] = fps
            self._counts[index] = count
        return count, float(self._rates[index])


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """A generator of its own for each (seed, epoch, index)."""
    digest = hashlib.blake2b(struct.pack("<3q", seed, epoch, index), digest_size=8).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator
